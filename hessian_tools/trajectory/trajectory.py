"""The trajectory of an inner loop: the result of recording it, which all measurements take as their input."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.html import lines_html
from hessian_tools.result import Result

# An inner loop counts as exploded above this multiple of its first loss. In the demo study of the README, no support
# loss of the 400 recorded inner loops rose above its start.
EXPLOSION = 1000.0


def exploded(loss: Any, first_loss: Any) -> Any:
    """Whether a loss (an array or a tensor) is above EXPLOSION times the larger of the first loss and 1.

    The 1 keeps a loop that begins at a loss of nearly 0 from counting as exploded because of a small rise.
    """
    return (loss > EXPLOSION * first_loss) & (loss > EXPLOSION)


@dataclass(frozen=True)
class SaveAt:
    """Which vectors a recording keeps besides the numbers, which it always keeps.

    thetas: whether the points are kept. gradients: whether the gradients at the points are kept. Each takes one vector
    per point, which is 0.5 MB for Conv4 of width 64 and 32 MB for ResNet-12.
    """

    thetas: bool = False
    gradients: bool = False


@dataclass(frozen=True, repr=False)
class Trajectory(Result):
    """One inner loop of K steps: numbers at its K + 1 points, the parameter vectors theta_0 ... theta_K.

    A trajectory made by ``stack`` has an axis of tasks in front.

    support_loss, query_loss: means over the examples. Without a query set, query_loss and query_accuracy are None.
    support_accuracy, query_accuracy: NaN for a loss that is not a classification.
    theta_norm, grad_norm: Euclidean norms of the points and of the gradients of the support loss there.
    displacement: the distance |theta_k - theta_0|.
    gram: the inner products g_i'g_j of the gradients at the first K points, from which the K steps start.
    thetas, gradients: the vectors at all K + 1 points, where ``SaveAt`` asked for them.
    step_norm: the length |theta_{k+1} - theta_k| of each step; None where the library's own inner loop took the steps.
    step_cosine: cos(-g_k, theta_{k+1} - theta_k) of each step; None where ``step_norm`` is None. For plain gradient
        steps of size alpha on the support batch the cosine is 1, and the final displacement is alpha times the square
        root of the sum of all entries of ``gram``. With another optimiser, momentum, weight decay or other batches,
        neither holds.
    """

    support_loss: Float[Tensor, "*task step"]
    query_loss: Float[Tensor, "*task step"] | None
    support_accuracy: Float[Tensor, "*task step"]
    query_accuracy: Float[Tensor, "*task step"] | None
    theta_norm: Float[Tensor, "*task step"]
    grad_norm: Float[Tensor, "*task step"]
    displacement: Float[Tensor, "*task step"]
    gram: Float[Tensor, "*task step_i step_j"]
    thetas: Float[Tensor, "*task step param"] | None = None
    gradients: Float[Tensor, "*task step param"] | None = None
    step_norm: Float[Tensor, "*task step_k"] | None = None
    step_cosine: Float[Tensor, "*task step_k"] | None = None

    def _repr_html_(self) -> str:
        losses = {"support loss": self.support_loss, "query loss": self.query_loss}
        known = {name: loss for name, loss in losses.items() if loss is not None}
        return lines_html(f"Trajectory of {self.steps} inner steps", known)

    @property
    def steps(self) -> int:
        """The number K of inner steps."""
        return self.gram.shape[-1]

    @property
    def diverged(self) -> Tensor:
        """For each task, whether a loss, gradient or parameter is not finite, or a loss has exploded."""
        losses = [column for column in (self.support_loss, self.query_loss) if column is not None]
        numbers = torch.stack([*losses, self.theta_norm, self.grad_norm], -1)
        loss_exploded = [exploded(loss, loss[..., :1]).any(-1) for loss in losses]
        return torch.stack([~torch.isfinite(numbers).flatten(-2).all(-1), *loss_exploded]).any(0)


def trajectory_of_points(
    thetas: Float[Tensor, "step param"],
    gradients: Float[Tensor, "step param"],
    support: Sequence[tuple[Tensor, Tensor]],
    query: Sequence[tuple[Tensor, Tensor]] | None,
    save: SaveAt,
    *,
    foreign_steps: bool = False,
) -> Trajectory:
    """Put the numbers of a trajectory together from its points and what was computed there.

    gradients: those of the support loss at the points.
    support, query: the pair (loss, accuracy) at each point.
    foreign_steps: True if a loop other than the library's inner loop took the steps.
    """
    stepped, steps = gradients[:-1], thetas.diff(dim=0)  # no step follows the gradient at the last point
    support_loss, support_accuracy = (torch.stack(column) for column in zip(*support, strict=True))
    query_loss, query_accuracy = (torch.stack(c) for c in zip(*query, strict=True)) if query else (None, None)
    cosine = -(stepped * steps).sum(-1) / (stepped.norm(dim=-1) * steps.norm(dim=-1)) if foreign_steps else None
    return Trajectory(
        support_loss=support_loss,
        query_loss=query_loss,
        support_accuracy=support_accuracy,
        query_accuracy=query_accuracy,
        theta_norm=thetas.norm(dim=-1),
        grad_norm=gradients.norm(dim=-1),
        displacement=(thetas - thetas[0]).norm(dim=-1),
        gram=stepped @ stepped.T,
        thetas=thetas if save.thetas else None,
        gradients=gradients if save.gradients else None,
        step_norm=steps.norm(dim=-1) if foreign_steps else None,
        step_cosine=cosine,
    )


def stack(trajectories: Sequence[Trajectory]) -> Trajectory:
    """The trajectories of several tasks as one, with a task axis in front."""
    if not trajectories:
        raise ValueError("no trajectory to stack; record at least one task")
    columns = {field.name: [getattr(t, field.name) for t in trajectories] for field in fields(Trajectory)}
    stacked: dict[str, Any] = {n: None if rows[0] is None else torch.stack(rows) for n, rows in columns.items()}
    return Trajectory(**stacked)
