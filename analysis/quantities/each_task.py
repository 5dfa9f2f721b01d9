"""Calls a function for one task of a block after the other, where a quantity does not treat all tasks at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.quantities.points import Points
from hessian_tools.inner.adapt import learner_path
from hessian_tools.inner.gradients import Gradient


@dataclass(frozen=True)
class Task:
    """One task of a block.

    points, index: the block, and the position of the task in it.
    support, query: the examples (x, y).
    thetas: the parameters [step, param] along the recorded inner loop, before the first step and after each.
    """

    points: Points
    index: int
    support: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]
    thetas: Tensor

    @property
    def has_classes(self) -> bool:
        """True for classification, where labels are integers; False for regression."""
        return not self.query[1].is_floating_point()

    def adapted(
        self, *, steps: int | None = None, step_factor: float = 1.0, first_gradient: Gradient | None = None
    ) -> Tensor:
        """The parameters after an inner loop that differs from the recorded one; see ``learner_path``."""
        path = learner_path(
            self.points.learner,
            self.points.loss,
            self.points.meta_theta.detach(),
            self.support,
            steps=steps,
            step_factor=step_factor,
            first_gradient=first_gradient,
        )
        return path.adapted


def each_task(points: Points, values: Callable[[Task], Tensor], *lengths: int) -> Tensor:
    """The values [*lengths] of each task, stacked as [task, *lengths].

    Infinite values become NaN. All values of a task whose inner loop diverged are NaN; ``values`` is not called on it.
    """
    result = points.thetas.new_full((len(points.thetas), *lengths), float("nan"))
    for index in torch.nonzero(~points.trajectory.diverged).flatten().tolist():
        (x, y), (query_x, query_y) = points.support, points.query
        task = Task(points, index, (x[index], y[index]), (query_x[index], query_y[index]), points.thetas[index])
        value = values(task).detach()
        result[index] = torch.where(value.isfinite(), value, torch.nan)
    return result


def cosine_and_ratio(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of two vectors and the ratio |a| / |b| of their norms, as [2]."""
    return torch.stack([a @ b / (a.norm() * b.norm()), a.norm() / b.norm()])
