"""The part of a product that depends on the vector, as one graph for several points and probes at once.

``vmap`` costs more time than the operations of a small network. It is therefore run only once for each number of points
and probes: the operations that it performs are recorded and simplified, and their memory is planned.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from hessian_tools.curvature.engines.compiled.inductor import InductorGraph
from hessian_tools.curvature.engines.compiled.memory_plan import Buffer, reuse_memory
from hessian_tools.curvature.engines.compiled.simplify import simplify


@dataclass(frozen=True)
class BatchedGraph:
    """A graph as a function ``run(V, *kept, *buffers) -> products``.

    kept: the tensors that the products need besides V, computed once for each point (see ``split_graph``).
    buffers: the form of the memory that the caller must pass to ``run``, with any contents (see ``memory_plan``).
    """

    run: Callable[..., Tensor]
    buffers: tuple[Buffer, ...]


def batched_graph(
    vector: Callable[..., Tensor],
    V: Tensor,
    kept: tuple[Tensor, ...],
    *,
    points: bool,
    probes: bool,
    compile: bool = False,
) -> BatchedGraph:
    """The graph of ``vector(V, *kept)`` for V and kept of these shapes.

    vector: the product for one vector at one point. points: True if V and kept have a leading point axis. probes: True
    if V has a trailing probe axis. compile: True if Inductor compiles the graph. Inductor plans the memory itself.
    """

    def over_probes(V: Tensor, *kept: Tensor) -> Tensor:
        return vmap(lambda v: vector(v, *kept), in_dims=-1, out_dims=-1)(V) if probes else vector(V, *kept)

    def over_points(V: Tensor, *kept: Tensor) -> Tensor:
        return vmap(over_probes)(V, *kept) if points else over_probes(V, *kept)

    with torch.no_grad():
        module = graph_of(over_points, V, *kept)
    simplify(module.graph)
    if compile:
        module.recompile()
        return BatchedGraph(InductorGraph(module, points=points), ())
    buffers = reuse_memory(module.graph)
    module.recompile()
    return BatchedGraph(module.forward, buffers)


def graph_of(function: Callable[..., Tensor], *inputs: Tensor) -> fx.GraphModule:
    """The operations of a function at some inputs, each with the shape, strides and dtype of its result."""
    # One FakeTensorMode serves all operations. Without it make_fx makes one for each, which takes half of its time.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return make_fx(function)(*inputs)
