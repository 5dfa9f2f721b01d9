"""A traced product cut in two: the part that only the point enters, and the part that the vector enters.

The first part is computed once a point and kept, the second once a product.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.compiled.batched_graph import graph_of
from hessian_tools.curvature.engines.compiled.simplify import ATEN, simplify, tensor_of
from hessian_tools.loss import Batch
from hessian_tools.torch_fixes.batchnorm import ShortBatchNorm

Product = Callable[[Tensor, Batch, Tensor], Tensor]

# On the CPU a convolution of kept images whose kernel covers at most so many numbers is done as a matrix product: that
# is 8 times as quick for one channel and 6 times for three (3x3 kernels, torch 2.13).
SMALL_KERNEL = 32


def split_product(product: Product, theta: Tensor, batch: Batch, v: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The two parts of ``product(theta, batch, v)``, for these shapes.

    The first is ``point(theta, *batch tensors) -> kept``, the second ``vector(v, *kept) -> product``.
    """
    leaves, spec = pytree.tree_flatten(batch)
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def flat(theta: Tensor, v: Tensor, *tensors: Tensor) -> Tensor:
        filled = list(leaves)
        for i, tensor in zip(positions, tensors, strict=True):
            filled[i] = tensor
        return product(theta, pytree.tree_unflatten(filled, spec), v)

    tensors = [leaves[i] for i in positions]
    with ShortBatchNorm():
        module = graph_of(flat, theta, v, *tensors)
    # The graph is functionalised, because an operation in place on what is kept would spoil the next product. That is
    # done after tracing, because functionalize does not go through autograd.Function.
    module = graph_of(functionalize(module), theta, v, *tensors)
    simplify(module.graph)
    _convolve_kept_images(module.graph)
    simplify(module.graph)
    return _split(module)


def _split(module: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    nodes = list(module.graph.nodes)
    vector = [n for n in nodes if n.op == "placeholder"][1]
    reached = _reached(nodes, vector)
    body = [n for n in nodes if n.op not in ("placeholder", "output")]
    inputs = [n for n in nodes if n.op == "placeholder" and n is not vector]
    late = [n for n in body if n in reached or n.op == "get_attr"]
    early = [n for n in body if n not in reached]
    output = nodes[-1].args[0]
    used = ({i for n in late for i in n.all_input_nodes} | {output}) - reached
    kept = [n for n in [*inputs, *early] if n in used and n.op != "get_attr"]
    return (
        _part(module, inputs, early, lambda env: tuple(env[n] for n in kept)),
        _part(module, [vector, *kept], late, lambda env: env[output]),
    )


def _reached(nodes: list[fx.Node], source: fx.Node) -> set[fx.Node]:
    reached = {source}
    for node in nodes:
        if reached.intersection(node.all_input_nodes):
            reached.add(node)
    return reached


def _part(module: fx.GraphModule, inputs: list[fx.Node], body: list[fx.Node], output: Callable[[Any], Any]) -> Any:
    graph, env = fx.Graph(), {}
    for node in inputs:
        env[node] = graph.placeholder(node.name)
    for node in body:
        env[node] = graph.node_copy(node, lambda n: env[n])
    graph.output(output(env))
    return fx.GraphModule(module, graph)


def _convolve_kept_images(graph: fx.Graph) -> None:
    """Replaces convolutions of kept images by matrix products, and so the gradients of their weights.

    Only those are replaced in which the images are kept and the vector enters the weights or the incoming gradient.
    """
    nodes = list(graph.nodes)
    late = _reached(nodes, [n for n in nodes if n.op == "placeholder"][1])
    for node in nodes:
        if node.target is ATEN.convolution.default:
            x, w, bias, *how = node.args
            if bias is None and x not in late and w in late and _is_small(x, w, how):
                with graph.inserting_before(node):
                    result = graph.call_function(_convolved, (_columns(graph, x, w, how), w, _sizes(node)))
                node.replace_all_uses_with(result)
        elif node.target is ATEN.convolution_backward.default:
            gradient, x, w, _, *how, wanted = node.args
            if wanted == [False, True, False] and gradient in late and x not in late and _is_small(x, w, how):
                with graph.inserting_before(node):
                    result = graph.call_function(_correlated, (gradient, _columns(graph, x, w, how), _sizes(w)))
                for user in list(node.users):
                    user.replace_all_uses_with(result)


def _is_small(x: fx.Node, w: fx.Node, how: list[Any]) -> bool:
    images, weight, (*_, transposed, _, groups) = tensor_of(x), tensor_of(w), how
    if images is None or weight is None or images.ndim != 4 or images.device.type != "cpu":
        return False
    return not transposed and groups == 1 and prod(weight.shape[1:]) <= SMALL_KERNEL


def _columns(graph: fx.Graph, x: fx.Node, w: fx.Node, how: list[Any]) -> fx.Node:
    stride, padding, dilation = how[:3]
    return graph.call_function(ATEN.im2col.default, (x, _sizes(w)[2:], dilation, padding, stride))


def _sizes(node: fx.Node) -> list[int]:
    tensor = tensor_of(node)
    assert tensor is not None
    return list(tensor.shape)


def _convolved(columns: Tensor, w: Tensor, sizes: list[int]) -> Tensor:
    return torch.matmul(w.flatten(1), columns).reshape(sizes)


def _correlated(gradient: Tensor, columns: Tensor, sizes: list[int]) -> Tensor:
    return torch.bmm(gradient.flatten(2), columns.mT).sum(0).reshape(sizes)
