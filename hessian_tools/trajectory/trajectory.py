"""What an inner loop did: the second waist between training and everything that measures."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SaveAt:
    """Which vectors a recording keeps; numbers are always kept.

    One vector a step: 0.5 MB for Conv4 of width 64, 32 MB for ResNet-12, twice with gradients.
    """

    thetas: bool = False
    gradients: bool = False


@dataclass(frozen=True)
class Trajectory:
    """One inner loop of K steps: K + 1 points theta_0 ... theta_K (any leading task axes when stacked).

    All norms are Euclidean, losses are means over examples; accuracies are NaN for a loss that is
    not a classification; what concerns a query set is None where there is none. ``gram`` holds
    g_i'g_j of the gradients at the first K points, which an inner loop steps along; ``grad_norm`` and
    ``gradients`` also have the one at the last point theta_K.

    step_norm = |theta_{k+1} - theta_k| and step_cosine = cos(-g_k, theta_{k+1} - theta_k) are there where
    somebody else's loop took the steps (``trajectory_from``, ``Recorder``). For plain gradient steps on
    this batch the cosine is 1 and the displacement is alpha times the root of the Gram matrix's sum; another optimiser,
    momentum, weight decay or other batches step along something else, and then neither holds.
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

    @property
    def steps(self) -> int:
        """Number of inner steps K."""
        return self.gram.shape[-1]

    @property
    def diverged(self) -> Tensor:
        """True for each task whose losses, gradients or parameters left the finite numbers."""
        kept = [self.support_loss, self.query_loss, self.theta_norm, self.grad_norm]
        numbers = torch.stack([column for column in kept if column is not None], -1)
        return ~torch.isfinite(numbers).flatten(-2).all(-1)


def stack(trajectories: Sequence[Trajectory]) -> Trajectory:
    """Trajectories of several tasks as one, with a leading task axis."""
    if not trajectories:
        raise ValueError("no trajectory to stack; record at least one task")
    columns = {f.name: [getattr(t, f.name) for t in trajectories] for f in fields(Trajectory)}
    stacked: dict[str, Any] = {n: None if rows[0] is None else torch.stack(rows) for n, rows in columns.items()}
    return Trajectory(**stacked)
