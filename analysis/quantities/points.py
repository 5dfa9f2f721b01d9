"""The points at which a block of tasks is measured.

A point is a parameter vector theta_k of the inner loop of one task: the start, or the result of its k-th step. The
quantities of a task are computed at each of its points.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from analysis.config import LevelConfig
from hessian_tools.curvature import Hessian, filter_scale, hessian
from hessian_tools.loss import Loss
from hessian_tools.trajectory import Trajectory

Values = Mapping[str, Tensor]

# The number of products that is announced for each point. Its value does not matter as long as it is large enough for
# the engine that traces the product once to be chosen; see ``docs/architecture.md``.
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

    trajectory: the recorded inner loops, stacked as [task, step], with thetas and gradients.
    support: the support sets (x, y), with a leading task axis.
    normalised: the names of the weights that are followed by a normalisation.
    step_size: the inner step size alpha; NaN where the inner steps are not alpha times the gradient.
    level: the settings of the measurement, full or light: how many eigenvalues and probes, and how precisely.
    probes: random signs [task, param, probe]. A task has the same probes at all inner steps, at all checkpoints and for
        all learners, so that differences between these are not blurred by different probes. Tasks have independent
        probes, so that the spread over tasks gives the right error of their mean.
    seed: the seed of the starting vectors of the Lanczos runs.
    """

    loss: Loss
    trajectory: Trajectory
    support: tuple[Tensor, Tensor]
    normalised: tuple[str, ...]
    step_size: float
    level: LevelConfig
    probes: Tensor
    seed: int

    @property
    def thetas(self) -> Tensor:
        """The parameters [task, step, param]."""
        assert self.trajectory.thetas is not None
        return self.trajectory.thetas

    @property
    def gradients(self) -> Tensor:
        """The inner gradients [task, step, param]."""
        assert self.trajectory.gradients is not None
        return self.trajectory.gradients

    @cached_property
    def hessian(self) -> Hessian:
        """The Hessian of the support loss at all points, task by task."""
        num_steps = self.thetas.shape[1]
        batch = tuple(leaf.repeat_interleave(num_steps, dim=0) for leaf in self.support)
        H = hessian(self.loss, self.thetas.flatten(0, 1), batch)
        # All blocks of tasks in a process share one trace of the product, so that it pays even if this block takes few
        # products. A fixed number is announced so that the engine, and with it the rounding of the results, does not
        # depend on how many blocks were measured before.
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

    def unflatten(self, values: Tensor) -> Tensor:
        """Values [point, ...] as [task, step, ...]."""
        return values.unflatten(0, self.thetas.shape[:2])
