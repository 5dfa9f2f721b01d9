"""Splits a traced product into a part that depends only on the point and a part that depends on the vector.

The first part is computed once for each point and its results are kept; the second is computed for each product.
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

# On the CPU a convolution of images that the first part keeps is computed as a matrix product if its kernel covers at
# most this many numbers (channels times height times width). With 3x3 kernels that is 8 times as fast for one channel
# and 6 times for three (torch 2.13).
SMALL_KERNEL = 32


def split_product(product: Product, theta: Tensor, batch: Batch, v: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The two parts of ``product(theta, batch, v)``, for arguments of these shapes.

    The first is ``point(theta, *batch tensors) -> kept``, the second ``vector(v, *kept) -> product``.
    """
    leaves, spec = pytree.tree_flatten(batch)
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def flat(theta: Tensor, v: Tensor, *tensors: Tensor) -> Tensor:
        """The product as a function of tensors alone, as tracing needs it."""
        filled = list(leaves)
        for i, tensor in zip(positions, tensors, strict=True):
            filled[i] = tensor
        return product(theta, pytree.tree_unflatten(filled, spec), v)

    tensors = [leaves[i] for i in positions]
    with ShortBatchNorm():
        module = graph_of(flat, theta, v, *tensors)
    # The graph is functionalised, because an in-place operation on a kept tensor would spoil the next product. This
    # comes after tracing, because functionalize does not work through an autograd.Function.
    module = graph_of(functionalize(module), theta, v, *tensors)
    simplify(module.graph)
    _convolve_kept_images(module.graph)
    simplify(module.graph)
    return _split(module)


def _split(module: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The two parts of a graph with the inputs (theta, v, *batch tensors)."""
    nodes = list(module.graph.nodes)
    theta, vector, *tensors = (n for n in nodes if n.op == "placeholder")
    reached = _reached(nodes, vector)
    body = [n for n in nodes if n.op not in ("placeholder", "output")]
    inputs = [theta, *tensors]
    # The nodes in ``late`` depend on the vector, those in ``early`` do not. Both parts need the constants (get_attr).
    late = [n for n in body if n in reached or n.op == "get_attr"]
    early = [n for n in body if n not in reached]
    output = nodes[-1].args[0]
    # What the second part needs besides the vector.
    used = ({i for n in late for i in n.all_input_nodes} | {output}) - reached
    kept = [n for n in [*inputs, *early] if n in used and n.op != "get_attr"]
    return (
        _part(module, inputs, early, lambda copy_of: tuple(copy_of[n] for n in kept)),
        _part(module, [vector, *kept], late, lambda copy_of: copy_of[output]),
    )


def _reached(nodes: list[fx.Node], source: fx.Node) -> set[fx.Node]:
    """The source and all nodes whose results depend on it."""
    reached = {source}
    for node in nodes:
        if reached.intersection(node.all_input_nodes):
            reached.add(node)
    return reached


def _part(module: fx.GraphModule, inputs: list[fx.Node], body: list[fx.Node], output: Callable[[Any], Any]) -> Any:
    """A new graph with copies of the nodes of body. output: gives the result, from the copy of each node."""
    graph, copy_of = fx.Graph(), {}
    for node in inputs:
        copy_of[node] = graph.placeholder(node.name)
    for node in body:
        copy_of[node] = graph.node_copy(node, lambda n: copy_of[n])
    graph.output(output(copy_of))
    return fx.GraphModule(module, graph)


def _convolve_kept_images(graph: fx.Graph) -> None:
    """Replaces small convolutions of images that the first part keeps, and their weight gradients, by matrix products.

    The matrix of image patches is then computed once for each point. A convolution is replaced only if the vector does
    not enter its images but enters its weights; a weight gradient, only if the vector enters the incoming gradient.
    """
    nodes = list(graph.nodes)
    _, vector, *_ = (n for n in nodes if n.op == "placeholder")  # the inputs are (theta, v, *batch tensors)
    late = _reached(nodes, vector)
    for node in nodes:
        if node.target is ATEN.convolution.default:
            x, w, bias, *options = node.args
            if bias is None and x not in late and w in late and _is_small(x, w, options):
                with graph.inserting_before(node):
                    result = graph.call_function(_convolved, (_patches(graph, x, w, options), w, _sizes(node)))
                node.replace_all_uses_with(result)
        elif node.target is ATEN.convolution_backward.default:
            gradient, x, w, _, *options, wanted = node.args
            weights_only = wanted == [False, True, False]
            if weights_only and gradient in late and x not in late and _is_small(x, w, options):
                with graph.inserting_before(node):
                    result = graph.call_function(_correlated, (gradient, _patches(graph, x, w, options), _sizes(w)))
                for user in list(node.users):  # each takes the weight's gradient out of the three that node computes
                    user.replace_all_uses_with(result)


def _is_small(x: fx.Node, w: fx.Node, options: list[Any]) -> bool:
    """True for an ordinary 2-d convolution on the CPU with a small kernel.

    options: stride, padding, dilation, transposed, output padding and groups, as in ``aten.convolution``.
    """
    images, weight, (*_, transposed, _, groups) = tensor_of(x), tensor_of(w), options
    if images is None or weight is None or images.ndim != 4 or images.device.type != "cpu":
        return False
    return not transposed and groups == 1 and prod(weight.shape[1:]) <= SMALL_KERNEL


def _patches(graph: fx.Graph, x: fx.Node, w: fx.Node, options: list[Any]) -> fx.Node:
    """The image patches under the kernel as columns: [example, numbers in the kernel, position]."""
    stride, padding, dilation = options[:3]
    return graph.call_function(ATEN.im2col.default, (x, _sizes(w)[2:], dilation, padding, stride))


def _sizes(node: fx.Node) -> list[int]:
    """The shape of a node's result."""
    tensor = tensor_of(node)
    assert tensor is not None
    return list(tensor.shape)


def _convolved(patches: Tensor, w: Tensor, sizes: list[int]) -> Tensor:
    """The convolution with kernel w, from the patches of the images."""
    return torch.matmul(w.flatten(1), patches).reshape(sizes)


def _correlated(gradient: Tensor, patches: Tensor, sizes: list[int]) -> Tensor:
    """The gradient in the kernel, from the gradient in the convolution's result and the patches of the images."""
    return torch.bmm(gradient.flatten(2), patches.mT).sum(0).reshape(sizes)
