"""The points at which a block of tasks is measured, and what a measured quantity is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from analysis.config import LevelConfig
from hessian_tools.curvature import Hessian, filter_scale, hessian
from hessian_tools.loss import Loss
from hessian_tools.trajectory import Trajectory

Values = Mapping[str, Tensor]

# The products announced for each point of a study: any number for which a trace is worth its while.
PRODUCTS_OF_A_STUDY = 10_000


@dataclass(frozen=True)
class Products:
    """Products with the Hessian that several quantities share, all [task, step, param(, probe)].

    scale: D, which maps to coordinates where filters have unit norm. hg: the product with the gradient g. hd2g: the
    product with D^2 g. hz: the products with the probes.
    """

    scale: Tensor
    hg: Tensor
    hd2g: Tensor
    hz: Tensor


@dataclass(frozen=True)
class Points:
    """Every inner-loop point of a block of tasks, with everything that the quantities need.

    trajectory: the inner loops, stacked as [task, step], with thetas and gradients.
    support: (x, y) with a leading task axis.
    normalised: the names of the weights that are followed by a normalisation.
    step_size: alpha; NaN where the inner steps are not alpha times the gradient.
    probes: random signs [task, param, probe]. They are the same along a task's inner steps and at every checkpoint
        and learner, so that differences between these are sharp, and independent between tasks, so that the error of
        the mean over tasks is honest.
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
        # All units of a study share one trace, so it pays however few products this unit takes; and the numbers of a
        # unit must not depend on how many units came before it in the process.
        H.announce(PRODUCTS_OF_A_STUDY)
        return H

    @cached_property
    def products(self) -> Products:
        """One product with a block of vectors serves the curvature along g, its normalised form and the trace."""
        scale = filter_scale(self.loss.layout, self.thetas, self.normalised)
        probes = self.probes.unsqueeze(1).expand(*self.thetas.shape, -1)
        block = torch.cat([torch.stack([self.gradients, scale**2 * self.gradients], -1), probes], -1)
        h_block = self.unflatten(self.hessian @ block.flatten(0, 1))
        return Products(scale, h_block[..., 0], h_block[..., 1], h_block[..., 2:])

    def unflatten(self, values: Tensor) -> Tensor:
        """Values [point, ...] as [task, step, ...]."""
        return values.unflatten(0, self.thetas.shape[:2])


@dataclass(frozen=True)
class Quantity:
    """A measured quantity: the variables that it fills, where it comes from, and how it is measured.

    variables: their names in ``analysis.schema``.
    measure: a function from Points to values [task, step, ...] or [task, ...] by variable.
    curvature: whether it needs products with the Hessian; it is then skipped for a task whose trajectory diverged.
    """

    name: str
    variables: tuple[str, ...]
    reference: str
    measure: Callable[[Points], Values]
    curvature: bool = True
