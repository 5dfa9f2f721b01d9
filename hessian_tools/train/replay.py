"""Replaying a batched outer step from a trace: the numbers are the same to the bit, without the Python code around it.

More than half of the time of a small network's step goes into the Python code of ``torch.func``, which works out the
step's few hundred operations anew each time, although they are the same in every outer step. On a GPU the operations
can be recorded as a CUDA graph instead, which launches all of them together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.compiled import recorded
from hessian_tools.curvature.engines.compiled.recorded import RecordedGraph
from hessian_tools.failures import is_out_of_memory

Step = Callable[..., Any]
CHECKS = 2  # the number of replays of a trace that are compared with the step itself


@dataclass
class Replay:
    """Computes the batched steps of a training run, and replays them from a trace once there is one.

    On a GPU, where ``recorded.RECORD`` is set, the trace is a CUDA graph.

    trace_after, record_after: the number of steps after which the trace or the CUDA graph is made.
    checks_left: the number of replays still to be compared with the step itself, each at new parameters and new tasks.
        A replay that differs, or a step that cannot be traced, ends replaying for good. A trace must have the same
        numbers to the bit. A CUDA graph has them up to rounding, because some operations of a GPU add up their numbers
        in another order each time.
    direct_steps: the number of steps taken so far without the trace.
    shapes: the shapes, dtypes and devices that the trace was made for.
    """

    # 300 steps take about as long as making the trace. So a shorter run never pays for a trace, and a longer one takes
    # at most twice the time that it would take without one.
    trace_after: int = 300
    # A CUDA graph costs only about three steps. The first outer step is passed over, because it computes one of its
    # tasks alone, so that its chunks have other sizes than those of all later steps.
    record_after: int = 10
    checks_left: int = CHECKS
    direct_steps: int = 0
    shapes: Any = None
    trace: Callable[..., Any] | None = None

    def __call__(self, step: Step, theta: Tensor, episodes: Any) -> Any:
        """The value of ``step(theta, episodes)``, from the trace where there is a checked one for these shapes."""
        try:
            return self._value(step, theta, episodes)
        except RuntimeError as error:
            # The tasks are going to be computed in smaller chunks, for which the trace cannot be used, and a CUDA graph
            # holds memory. Another one is made for those chunks.
            if is_out_of_memory(error):
                self.trace, self.direct_steps, self.checks_left = None, 0, CHECKS
            raise

    def _value(self, step: Step, theta: Tensor, episodes: Any) -> Any:
        recording = recorded.switched_on(theta.device)
        shapes = [(t.shape, t.dtype, t.device) for t in pytree.tree_leaves((theta, episodes))]
        if self.trace is not None and shapes == self.shapes and self.checks_left == 0:
            with torch.no_grad():
                return self.trace(theta, episodes)
        expected = step(theta, episodes)
        self.direct_steps += 1
        if self.direct_steps == (self.record_after if recording else self.trace_after):
            self.trace, self.shapes = (_recorded if recording else _traced)(step, theta, episodes), shapes
        elif self.trace is not None and shapes == self.shapes:
            self.checks_left -= 1
            with torch.no_grad():
                replayed = self.trace(theta, episodes)
            pairs = zip(pytree.tree_leaves(replayed), pytree.tree_leaves(expected), strict=True)
            if not all((_close if recording else _same)(a, b) for a, b in pairs):
                self.trace = None
        return expected


def _recorded(step: Step, theta: Tensor, episodes: Any) -> Callable[..., Any] | None:
    """The step, replayed as a CUDA graph; None where it cannot be recorded."""
    graph = RecordedGraph(lambda given: step(*given))
    graph((theta, episodes))
    return None if graph.cannot_be_recorded else lambda *given: graph(given)


def _traced(step: Step, theta: Tensor, episodes: Any) -> Callable[..., Any] | None:
    """The operations of a step; None where it cannot be traced."""
    try:
        graph = make_fx(step)(theta, episodes)
    except Exception:  # whatever tracing fails on, the step itself has just run and can be run again
        return None
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, where NaN counts as equal to NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to rounding, where NaN counts as equal to NaN."""
    same_nans, a, b = (a.isnan() == b.isnan()).all(), a.nan_to_num(), b.nan_to_num()
    return bool(same_nans & ((a - b).norm() <= sqrt(torch.finfo(a.dtype).eps) * b.norm()))
