"""Proves, from the operations that a network runs, that its output is piecewise affine in each parameter tensor alone.

That is, the output is piecewise affine in any one of these tensors while the others are held fixed. Every second
derivative d2 output / dw2 in one entry w is then zero. The part of the Hessian that Gauss-Newton leaves out therefore
has a zero diagonal, and tr H = tr G exactly for the Gauss-Newton matrix G, whatever the criterion. Networks of linear
layers, ReLU, max-pooling and the like qualify, unless they normalise by statistics of the batch. Products of functions
that share a parameter (tied weights in sequence, multiplicative skip connections) do not qualify.
"""

from operator import getitem
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.compiled.simplify import ATEN, operations
from hessian_tools.loss import Batch, Loss
from hessian_tools.torch_fixes.precision import full_precision

# Operations that are affine, or piecewise affine, in all arguments that can depend on parameters.
_AFFINE = operations(
    "view _unsafe_view reshape alias detach clone _to_copy t transpose.int permute expand squeeze squeeze.dim "
    "unsqueeze select.int slice.Tensor split.Tensor split_with_sizes cat stack constant_pad_nd "
    "neg add.Tensor sub.Tensor sum sum.dim_IntList mean mean.dim avg_pool2d _adaptive_avg_pool2d "
    "relu leaky_relu hardtanh abs max_pool2d_with_indices"
)

# Operations that are affine in each of two factors, given by their positions. The factors must not share a parameter.
_PRODUCTS = {
    **dict.fromkeys(operations("mul.Tensor mm mv bmm convolution"), (0, 1)),
    ATEN.addmm.default: (1, 2),
}

# Normalisation by given statistics: (input, weight, bias, mean, variance, ...), affine in input, weight and bias.
# The value is the position of the argument that is True for statistics of the batch instead, in which case the
# operation is not affine; None if there is no such argument. On NVIDIA's and AMD's cards torch calls the vendor's
# kernel.
_NORMALISATIONS = {
    ATEN._native_batch_norm_legit_no_training.default: None,
    **dict.fromkeys(operations("native_batch_norm cudnn_batch_norm miopen_batch_norm"), 5),
}

# The parameter tensors that a value depends on, by their positions in the layout.
Parameters = frozenset[int]


@full_precision
def is_multiaffine(loss: Loss, theta: Float[Tensor, " param"], batch: Batch) -> bool:
    """True if the outputs are certainly piecewise affine in each parameter tensor alone; False if that is not certain.

    One forward pass is traced, which takes milliseconds. The tables above then show on which parameters the result of
    each operation depends. The answer is False if parameters reach an operation that is in no table, or if the control
    flow depends on data.

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
            graph = make_fx(functionalize(lambda t, x: _differentiable(loss.outputs(t, x))))(
                theta, loss.split(batch)[0]
            ).graph
    except Exception:  # nothing is certain of a network that cannot be traced
        return False
    flat = next(node for node in graph.nodes if node.op == "placeholder")  # theta, the first argument
    parameters_of: dict[fx.Node, Parameters] = {}
    for node in graph.nodes:
        if node is not flat:
            reached = _parameters_reaching(node, flat, parameters_of)
            if reached is None:
                return False
            parameters_of[node] = reached
    return True


def _differentiable(outputs: Any) -> Any:
    """The outputs. Raises TypeError unless all of them are floating-point tensors."""
    if not all(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in pytree.tree_leaves(outputs)):
        raise TypeError("an output is not differentiable")
    return outputs


def _parameters_reaching(node: fx.Node, flat: fx.Node, parameters_of: dict[fx.Node, Parameters]) -> Parameters | None:
    """The parameters on which a node depends, if it is affine in each of them; None if that is not certain.

    flat: the node of the flat vector theta. parameters_of: the results for all earlier nodes.
    """
    if node.op == "call_function" and node.args[:1] == (flat,):
        # Only a split keeps the parameters apart. Any other use of theta may mix them.
        return frozenset() if node.target is ATEN.split_with_sizes.default else None
    if node.op == "call_function" and node.target is getitem:
        source = node.args[0]
        if isinstance(source, fx.Node) and source.args[:1] == (flat,):
            # The i-th part of the split is the i-th parameter tensor.
            return frozenset([int(node.args[1])])  # type: ignore[arg-type]
    inputs = node.all_input_nodes
    if flat in inputs:
        return None
    reached = frozenset().union(*(parameters_of[i] for i in inputs))
    if not reached or node.op == "output":  # an operation on constants, or no operation at all
        return reached
    return reached if node.op == "call_function" and _is_affine_in_each(node, parameters_of) else None


def _is_affine_in_each(node: fx.Node, parameters_of: dict[fx.Node, Parameters]) -> bool:
    """True if a node is in one of the tables, and its arguments depend on parameters as that table demands."""

    def parameters_at(position: int) -> Parameters:
        argument = node.args[position] if position < len(node.args) else None
        return parameters_of[argument] if isinstance(argument, fx.Node) else frozenset()

    if node.target in _AFFINE or node.target is getitem:
        return True
    if node.target in _PRODUCTS:
        first, second = _PRODUCTS[node.target]
        return not parameters_at(first) & parameters_at(second)
    if node.target is ATEN.div.Tensor:  # affine in the first argument, if the second does not depend on parameters
        return not parameters_at(1)
    if node.target in _NORMALISATIONS:
        position = _NORMALISATIONS[node.target]
        given_statistics = position is None or node.args[position] is False
        statistics_fixed = not parameters_at(3) | parameters_at(4)
        return given_statistics and statistics_fixed and not parameters_at(0) & parameters_at(1)
    return False
