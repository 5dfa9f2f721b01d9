"""The half of a product that the vector enters, as a flat graph for a number of points and probes at once.

``vmap`` costs more than the operations of a small network. It is therefore gone through once for a number of points and
probes; the operations that it makes are recorded and simplified, and their memory is planned.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from hessian_tools.curvature.engines.compiled.memory_plan import Buffer, reuse_memory
from hessian_tools.curvature.engines.compiled.simplify import simplify


@dataclass(frozen=True)
class BatchedGraph:
    """The graph as a function, ``run(V, *kept, *buffers) -> products``, and the buffers that must be lent to it.

    Nothing in the buffers is needed between two runs.
    """

    run: Callable[..., Tensor]
    buffers: tuple[Buffer, ...]


def batched_graph(
    vector: Callable[..., Tensor], V: Tensor, kept: tuple[Tensor, ...], *, points: bool, probes: bool
) -> BatchedGraph:
    """``vector`` over a leading point axis of V and kept, and over a trailing probe axis of V, where asked for."""

    def over_probes(V: Tensor, *kept: Tensor) -> Tensor:
        return vmap(lambda v: vector(v, *kept), in_dims=-1, out_dims=-1)(V) if probes else vector(V, *kept)

    def over_points(V: Tensor, *kept: Tensor) -> Tensor:
        return vmap(over_probes)(V, *kept) if points else over_probes(V, *kept)

    with torch.no_grad():
        module = graph_of(over_points, V, *kept)
    simplify(module.graph)
    buffers = reuse_memory(module.graph)
    module.recompile()
    return BatchedGraph(module.forward, buffers)


def graph_of(function: Callable[..., Tensor], *inputs: Tensor) -> fx.GraphModule:
    """The operations of a function at some inputs, each with the shape, strides and dtype of its result."""
    # One mode for all of it, because make_fx left to itself makes a new one for every operation: half of its time.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return make_fx(function)(*inputs)
