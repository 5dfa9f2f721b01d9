"""A batched outer step traced once and replayed: the same operations to the bit, without the work around them.

Of a small network's step more than half is what ``torch.func`` does in Python to find its few hundred
operations, and those operations are the same in every outer step.
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
    """What a training process knows of its batched steps; ``seen`` counts those taken as they are written.

    after: steps before the trace is made, about as long as making it takes: short runs never pay for it, long
        ones at most twice what they must. checks: how many replays are compared with the step itself, each at
        new parameters and new tasks; one that differs in a bit, or cannot be traced, ends replaying for good.
    """

    after: int = 300
    checks: int = 2
    seen: int = 0
    shapes: Any = None
    trace: Callable[..., Any] | None = None

    def __call__(self, step: Step, theta: Tensor, episodes: Any) -> Any:
        """``step(theta, episodes)``, from the trace where there is one of these shapes."""
        shapes = [(t.shape, t.dtype, t.device) for t in pytree.tree_leaves((theta, episodes))]
        if self.trace is not None and shapes == self.shapes and self.checks == 0:
            with torch.no_grad():
                return self.trace(theta, episodes)
        expected = step(theta, episodes)
        self.seen += 1
        if self.seen == self.after:
            self.trace, self.shapes = _traced(step, theta, episodes), shapes
        elif self.trace is not None and shapes == self.shapes:
            self._compare(self.trace, theta, episodes, expected)
        return expected

    def _compare(self, trace: Callable[..., Any], theta: Tensor, episodes: Any, expected: Any) -> None:
        self.checks -= 1
        with torch.no_grad():
            found = trace(theta, episodes)
        if not all(_same(a, b) for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)):
            self.trace = None


def _traced(step: Step, theta: Tensor, episodes: Any) -> Callable[..., Any] | None:
    """None where it cannot be traced: the step itself has just run, and goes on doing so."""
    try:
        graph = make_fx(step)(theta, episodes)
    except Exception:
        return None
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
