"""The half of a product that the vector enters, as a flat program for so many points and probes at once.

``vmap`` costs more than the operations of a small network, so it is gone through once for a number of points and
probes, and what it does is written down, simplified, and its memory planned.
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
class Program:
    """run(V, *kept, *buffers) -> products; buffers hold nothing between two runs."""

    run: Callable[..., Tensor]
    buffers: tuple[Buffer, ...]


def flat_program(
    vector: Callable[..., Tensor], V: Tensor, kept: tuple[Tensor, ...], *, points: bool, probes: bool
) -> Program:
    """``vector`` over the leading point axis of V and kept, and over the trailing probe axis of V, where asked."""

    def over_probes(V: Tensor, *kept: Tensor) -> Tensor:
        return vmap(lambda v: vector(v, *kept), in_dims=-1, out_dims=-1)(V) if probes else vector(V, *kept)

    def over_points(V: Tensor, *kept: Tensor) -> Tensor:
        return vmap(over_probes)(V, *kept) if points else over_probes(V, *kept)

    with torch.no_grad():
        module = graph_of(over_points, V, *kept)
    simplify(module.graph)
    buffers = reuse_memory(module.graph)
    module.recompile()
    return Program(module.forward, buffers)


def graph_of(function: Callable[..., Tensor], *inputs: Tensor) -> fx.GraphModule:
    """The operations of a function at some inputs, each with the shape, strides and dtype of its result."""
    # One mode for all: left to itself, make_fx makes a new one for every operation, half of its time.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return make_fx(function)(*inputs)
