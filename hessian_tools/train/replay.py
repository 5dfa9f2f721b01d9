"""Replaying a batched outer step from a trace: the numbers are the same to the bit, without the Python code around it.

More than half of the time of a small network's step goes into the Python code of ``torch.func``, which works out the
step's few hundred operations anew each time, although they are the same in every outer step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

Step = Callable[..., Any]


@dataclass
class Replay:
    """Computes the batched steps of a training run, and replays them from a trace once there is one.

    trace_after: the number of steps after which the trace is made.
    checks_left: the number of replays still to be compared with the step itself, each at new parameters and new tasks.
        A replay that differs in a bit, or a step that cannot be traced, ends replaying for good.
    direct_steps: the number of steps taken so far without the trace.
    shapes: the shapes, dtypes and devices that the trace was made for.
    """

    # 300 steps take about as long as making the trace. So a shorter run never pays for a trace, and a longer one takes
    # at most twice the time that it would take without one.
    trace_after: int = 300
    checks_left: int = 2
    direct_steps: int = 0
    shapes: Any = None
    trace: Callable[..., Any] | None = None

    def __call__(self, step: Step, theta: Tensor, episodes: Any) -> Any:
        """The value of ``step(theta, episodes)``, from the trace where there is a checked one for these shapes."""
        shapes = [(t.shape, t.dtype, t.device) for t in pytree.tree_leaves((theta, episodes))]
        if self.trace is not None and shapes == self.shapes and self.checks_left == 0:
            with torch.no_grad():
                return self.trace(theta, episodes)
        expected = step(theta, episodes)
        self.direct_steps += 1
        if self.direct_steps == self.trace_after:
            self.trace, self.shapes = _traced(step, theta, episodes), shapes
        elif self.trace is not None and shapes == self.shapes:
            self.checks_left -= 1
            with torch.no_grad():
                replayed = self.trace(theta, episodes)
            pairs = zip(pytree.tree_leaves(replayed), pytree.tree_leaves(expected), strict=True)
            if not all(_same(a, b) for a, b in pairs):
                self.trace = None
        return expected


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
