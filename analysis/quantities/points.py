"""The points at which a block of tasks is measured.

A point is a parameter vector theta_k of the inner loop of one task: the start, or the result of its k-th step. The
quantities of a task are computed at each of its points.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from analysis.config import LevelConfig
from hessian_tools.curvature import Extremes, Hessian, extremal_eigenpairs, filter_scale, gradient, hessian
from hessian_tools.inner.learners import Learner
from hessian_tools.loss import Loss
from hessian_tools.trajectory import Trajectory

Values = Mapping[str, Tensor]  # the values of a quantity, by the names of its variables

# The number of Hessian-vector products at each point for which the Hessian is told to choose its engine. Its value does
# not matter as long as it is large enough for the engine that traces the product once; see ``docs/architecture.md``.
PRODUCTS_OF_A_STUDY = 10_000


@dataclass(frozen=True)
class Products:
    """Products with the Hessian H that several quantities share.

    scale: the diagonal of D [task, step, param], which holds the norm of each parameter's filter where a normalisation
        follows it, and 1 elsewhere. In the coordinates theta / D these filters have unit norm.
    hg: H g for the inner gradient g [task, step, param].
    hd2g: H D^2 g [task, step, param].
    hz: H z for each probe z [task, step, param, probe].
    """

    scale: Tensor
    hg: Tensor
    hd2g: Tensor
    hz: Tensor


@dataclass(frozen=True)
class Points:
    """All points of a block of tasks, with everything from which the quantities are computed.

    learner: the learner whose inner loops were recorded. meta_theta: the meta-parameters [meta] at their start.
    trajectory: the recorded inner loops, stacked as [task, step], with thetas and gradients.
    support, query: the support and the query sets (x, y), with a leading task axis.
    other_support: for each task, the support set of another held-out task.
    normalised: the names of the weights that are followed by a normalisation.
    step_size: the inner step size alpha; NaN where the inner steps are not alpha times the gradient.
    level: the settings of the measurement, full or light: how many eigenvalues and probes, and how precisely.
    probes: random signs [task, param, probe]. A task has the same probes at all inner steps, at all checkpoints and for
        all learners, so that differences between these are not blurred by different probes. Tasks have independent
        probes, so that the spread over tasks gives the right error of their mean.
    tasks, task_seed: the indices of the held-out tasks, and the seed with which they were drawn. An index and this seed
        name a task, and random numbers that belong to the task are drawn from both.
    seed: the seed of the starting vectors of the Lanczos runs.
    eigenvectors: True if ``extremes`` shall have eigenvectors, and one eigenpair of largest magnitude more than the
        level asks for, because the errors of an eigenspace follow from the gap to the next eigenvalue.
    batch: the examples whose loss is differentiated twice; None stands for the support sets.
    directions: the vectors [task, step, param] along which curvature is measured; None stands for the inner gradients.
    """

    loss: Loss
    learner: Learner
    meta_theta: Tensor
    trajectory: Trajectory
    support: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]
    other_support: tuple[Tensor, Tensor]
    normalised: tuple[str, ...]
    step_size: float
    level: LevelConfig
    probes: Tensor
    tasks: tuple[int, ...]
    task_seed: int
    seed: int
    eigenvectors: bool = False
    batch: tuple[Tensor, Tensor] | None = None
    directions: Tensor | None = None

    @property
    def thetas(self) -> Tensor:
        """The parameters [task, step, param]."""
        assert self.trajectory.thetas is not None
        return self.trajectory.thetas

    @property
    def trajectory_gradients(self) -> Tensor:
        """The inner gradients [task, step, param], which are those of the support loss."""
        assert self.trajectory.gradients is not None
        return self.trajectory.gradients

    @property
    def gradients(self) -> Tensor:
        """The vectors g [task, step, param] along which curvature is measured: inner gradients, or ``directions``."""
        return self.trajectory_gradients if self.directions is None else self.directions

    @property
    def examples(self) -> tuple[Tensor, Tensor]:
        """The examples (x, y) whose loss is differentiated twice: the support sets, or ``batch``."""
        return self.support if self.batch is None else self.batch

    @cached_property
    def hessian(self) -> Hessian:
        """The Hessian of the support loss (or of the loss on ``batch``) at all points, task by task."""
        H = hessian(self.loss, self.thetas.flatten(0, 1), self.at_points(self.examples))
        # All blocks of tasks in a process share one trace of the product, so tracing pays even if this block takes few
        # products. The number that is announced is fixed. The choice of the engine, and with it the rounding of the
        # results, therefore does not depend on how many blocks were measured before.
        H.announce(PRODUCTS_OF_A_STUDY)
        return H

    @cached_property
    def products(self) -> Products:
        """The products of H with g, D^2 g and the probes, computed together as one product with a block of vectors."""
        scale = filter_scale(self.loss.layout, self.thetas, self.normalised)
        probes = self.probes.unsqueeze(1).expand(*self.thetas.shape, -1)
        block = torch.cat([torch.stack([self.gradients, scale**2 * self.gradients], -1), probes], -1)
        h_block = self.unflatten(self.hessian @ block.flatten(0, 1))
        return Products(scale, h_block[..., 0], h_block[..., 1], h_block[..., 2:])

    @cached_property
    def extremes(self) -> Extremes:
        """The eigenpairs of largest magnitude, and the one at either end of the spectrum, at all points.

        With ``eigenvectors``, there is one eigenpair of largest magnitude more than the level asks for; it comes last.
        """
        magnitude = min(self.level.eigenvalues + self.eigenvectors, self.thetas.shape[-1])
        return extremal_eigenpairs(
            self.hessian,
            magnitude=magnitude,
            ends=1,
            rtol=self.level.tolerance,
            vectors=self.eigenvectors,
            seed=self.seed,
            # The level allows enough products for its own pairs; each pair needs one to be found and one to be checked.
            max_matvecs=max(self.level.max_matvecs, 2 * (magnitude + 2)),
        )

    @cached_property
    def _variants(self) -> dict[str, "Points"]:
        """The results of ``on`` so far, kept so that the quantities of a variant share its products."""
        return {}

    def on(self, loss: str) -> "Points":
        """The same points with the loss or the directions of a variant; see ``analysis.quantities.variants``."""
        if loss not in self._variants:
            batch = self.other_support if loss == "other_task" else self.query
            directions = self.gradient_on(batch) if loss == "query" else None
            self._variants[loss] = replace(self, batch=batch, directions=directions)
        return self._variants[loss]

    def gradient_on(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The gradient of the loss on a batch [task, ...] at all points, [task, step, param]."""
        return self.unflatten(gradient(self.loss, self.thetas.flatten(0, 1), self.at_points(batch)))

    def at_points(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """A batch [task, ...] repeated for each point of its task, [point, ...]."""
        x, y = (leaf.repeat_interleave(self.thetas.shape[1], dim=0) for leaf in batch)
        return x, y

    def unflatten(self, values: Tensor) -> Tensor:
        """Values [point, ...] as [task, step, ...]."""
        return values.unflatten(0, self.thetas.shape[:2])
