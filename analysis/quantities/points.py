"""The points of a block of tasks, and the products with the Hessian that several quantities share."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from analysis.config import LevelConfig
from hessian_tools.curvature import Hessian, filter_scale, hessian
from hessian_tools.loss import Loss
from hessian_tools.trajectory import Trajectory

# Announced for each point; any number that makes a trace worth while will do.
PRODUCTS_OF_A_STUDY = 10_000


@dataclass(frozen=True)
class Products:
    """H times the gradient, the normalised gradient D^2 g and each probe; all [task, step, param(, probe)]."""

    scale: Tensor
    hg: Tensor
    hd2g: Tensor
    hz: Tensor


@dataclass(frozen=True)
class Points:
    """Every inner-loop point of a block of tasks, with what measuring needs.

    trajectory: stacked [task, step], with thetas and gradients. support: (x, y) with a leading task
    axis. normalised: names of weights followed by normalisation. probes: [task, param, probe] of +-1,
    the same along a task's inner steps (differences between steps get sharp) and at every
    checkpoint and learner, independent across tasks (so the mean over tasks has an honest error).
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
        """[task, step, param]"""
        assert self.trajectory.thetas is not None
        return self.trajectory.thetas

    @property
    def gradients(self) -> Tensor:
        """[task, step, param]"""
        assert self.trajectory.gradients is not None
        return self.trajectory.gradients

    @cached_property
    def hessian(self) -> Hessian:
        """The Hessian of the support loss at all points, task-major."""
        points = self.thetas.shape[1]
        batch = tuple(leaf.repeat_interleave(points, dim=0) for leaf in self.support)
        H = hessian(self.loss, self.thetas.flatten(0, 1), batch)
        # All units of a study share a trace, so that it pays however few products this unit takes; and a unit must not
        # depend on what came before it in the process.
        H.announce(PRODUCTS_OF_A_STUDY)
        return H

    @cached_property
    def products(self) -> Products:
        """One block product serves the curvature along g, its normalised form and the trace."""
        scale = filter_scale(self.loss.layout, self.thetas, self.normalised)
        probes = self.probes.unsqueeze(1).expand(*self.thetas.shape, -1)
        block = torch.cat([torch.stack([self.gradients, scale**2 * self.gradients], -1), probes], -1)
        h_block = self.unflatten(self.hessian @ block.flatten(0, 1))
        return Products(scale, h_block[..., 0], h_block[..., 1], h_block[..., 2:])

    def unflatten(self, values: Tensor) -> Tensor:
        """[point, ...] -> [task, step, ...]"""
        return values.unflatten(0, self.thetas.shape[:2])
