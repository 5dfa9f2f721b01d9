"""Is a network's output piecewise affine in each of its parameter tensors alone? Proved from the operations it runs.

Then every second derivative d2 output / dw2 in one entry w is zero, the part of the Hessian that Gauss-Newton leaves
out has a zero diagonal, and tr H = tr G exactly, whatever the criterion: networks of linear layers, ReLU,
max-pooling and the like, without normalisation by statistics of the batch. Products of functions that
share a parameter (tied weights in sequence, multiplicative skip connections) do not qualify.
"""

from operator import getitem
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from hessian_tools.loss import Batch, Loss
from hessian_tools.torch_fixes.precision import full_precision

_ATEN = torch.ops.aten

# Affine, or piecewise affine with kinks, in all that depends on parameters; the rest of their arguments is fixed.
_AFFINE = {
    getitem,
    _ATEN.view.default,
    _ATEN._unsafe_view.default,
    _ATEN.reshape.default,
    _ATEN.alias.default,
    _ATEN.detach.default,
    _ATEN.clone.default,
    _ATEN._to_copy.default,
    _ATEN.t.default,
    _ATEN.transpose.int,
    _ATEN.permute.default,
    _ATEN.expand.default,
    _ATEN.squeeze.dim,
    _ATEN.squeeze.default,
    _ATEN.unsqueeze.default,
    _ATEN.select.int,
    _ATEN.slice.Tensor,
    _ATEN.split.Tensor,
    _ATEN.split_with_sizes.default,
    _ATEN.cat.default,
    _ATEN.stack.default,
    _ATEN.constant_pad_nd.default,
    _ATEN.neg.default,
    _ATEN.add.Tensor,
    _ATEN.sub.Tensor,
    _ATEN.sum.default,
    _ATEN.sum.dim_IntList,
    _ATEN.mean.default,
    _ATEN.mean.dim,
    _ATEN.avg_pool2d.default,
    _ATEN._adaptive_avg_pool2d.default,
    _ATEN.relu.default,
    _ATEN.leaky_relu.default,
    _ATEN.hardtanh.default,
    _ATEN.abs.default,
    _ATEN.max_pool2d_with_indices.default,
}

# Affine in each factor; the factors, by position, must not share a parameter.
_PRODUCTS = {
    _ATEN.mul.Tensor: (0, 1),
    _ATEN.mm.default: (0, 1),
    _ATEN.mv.default: (0, 1),
    _ATEN.bmm.default: (0, 1),
    _ATEN.addmm.default: (1, 2),
    _ATEN.convolution.default: (0, 1),
}

# Affine in the first argument where the others do not depend on parameters.
_DIVISIONS = {_ATEN.div.Tensor}

# Normalisation by kept statistics: (input, weight, bias, mean, variance, ...); affine in input, weight and bias.
# On CUDA and on AMD's cards torch takes the vendor's kernel.
_NORMALISED = {
    _ATEN._native_batch_norm_legit_no_training.default: None,
    _ATEN.native_batch_norm.default: 5,
    _ATEN.cudnn_batch_norm.default: 5,
    _ATEN.miopen_batch_norm.default: 5,
}

Depends = frozenset[int]


@full_precision
def is_multiaffine(loss: Loss, theta: Float[Tensor, " param"], batch: Batch) -> bool:
    """Whether the outputs are piecewise affine in each parameter tensor alone; False wherever that is not certain.

    Traces one forward pass (milliseconds) and follows which parameters each number depends on, through operations
    that are known; an unknown one that parameters reach, or control flow that looks at data, gives False.

    >>> from hessian_tools.layout import flatten
    >>> from hessian_tools.loss import make_loss
    >>> def answer(*layers):
    ...     theta, layout = flatten(model := torch.nn.Sequential(*layers))
    ...     loss = make_loss(model, torch.nn.functional.cross_entropy, layout)
    ...     return is_multiaffine(loss, theta, (torch.ones(2, 3), torch.tensor([0, 1])))
    >>> linear, deep = torch.nn.Linear(3, 2), torch.nn.Linear(3, 3)
    >>> answer(linear), answer(deep, torch.nn.ReLU(), linear), answer(deep, torch.nn.Tanh(), linear), answer(deep, deep)
    (True, True, False, False)
    """
    try:
        with torch.no_grad():
            graph = make_fx(functionalize(lambda t, x: _numbers(loss.outputs(t, x))))(theta, batch[0]).graph
    except Exception:  # whatever tracing cannot follow is not certain
        return False
    return _follows(graph)


def _numbers(outputs: Any) -> Any:
    """The outputs, if all of them are numbers with a derivative."""
    if not all(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in pytree.tree_leaves(outputs)):
        raise TypeError("an output is not differentiable")
    return outputs


def _follows(graph: fx.Graph) -> bool:
    """Whether every node that parameters reach is of a known kind."""
    theta = next(node for node in graph.nodes if node.op == "placeholder")
    depends: dict[fx.Node, Depends] = {}
    for node in graph.nodes:
        if node is theta:
            continue
        found = _depends(node, theta, depends)
        if found is None:
            return False
        depends[node] = found
    return True


def _depends(node: fx.Node, theta: fx.Node, depends: dict[fx.Node, Depends]) -> Depends | None:
    """The parameters, by position, that a node depends on, affinely in each; None where that is not known."""
    if node.op == "call_function" and node.args[:1] == (theta,):
        # Parameters are told apart where theta is split; used whole, it is like one of them used everywhere.
        return frozenset() if node.target is _ATEN.split_with_sizes.default else None
    if node.op == "call_function" and node.target is getitem and _splits(node.args[0], theta):
        return frozenset([int(node.args[1])])  # type: ignore[arg-type]
    inputs = node.all_input_nodes
    if theta in inputs:
        return None
    reached = frozenset().union(*(depends[i] for i in inputs))
    if not reached or node.op == "output":
        return reached
    return reached if node.op == "call_function" and _is_known(node, depends) else None


def _splits(node: Any, theta: fx.Node) -> bool:
    return isinstance(node, fx.Node) and node.args[:1] == (theta,)


def _is_known(node: fx.Node, depends: dict[fx.Node, Depends]) -> bool:
    def of(position: int) -> Depends:
        argument = node.args[position] if position < len(node.args) else None
        return depends[argument] if isinstance(argument, fx.Node) else frozenset()

    if node.target in _AFFINE:
        return True
    if node.target in _PRODUCTS:
        first, second = _PRODUCTS[node.target]
        return not of(first) & of(second)
    if node.target in _DIVISIONS:
        return not of(1)
    if node.target in _NORMALISED:
        training = _NORMALISED[node.target]
        fixed = training is None or node.args[training] is False
        return fixed and not (of(3) | of(4)) and not of(0) & of(1)
    return False
