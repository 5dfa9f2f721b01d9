"""What the curvature matrices of one loss share: they live at points, and their rows are its parameters."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from hessian_tools.curvature.interface import Operator
from hessian_tools.curvature.points import Points
from hessian_tools.flat import ParamLayout
from hessian_tools.loss import Loss


@dataclass(frozen=True)
class AtPoints(Operator):
    """An interface: a concrete operator adds its products."""

    points: Points
    single: bool

    @property
    def num_params(self) -> int:
        """Length of theta."""
        return self.points.thetas.shape[-1]

    @property
    def num_points(self) -> int | None:
        """How many points; None for a single one."""
        return None if self.single else len(self.points.thetas)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of theta."""
        return self.points.thetas.dtype

    @property
    def device(self) -> torch.device:
        """Device of theta."""
        return self.points.thetas.device

    @property
    def layout(self) -> ParamLayout | None:
        """The names of theta's entries; None for a loss that is a plain function."""
        return self.points.loss.layout if isinstance(self.points.loss, Loss) else None

    def parts(self) -> list[Operator]:
        """The operator at as many points at a time as their shared part fits in memory."""
        if self.num_points is None or self.num_points <= self.points.at_once:
            return [self]
        return [self.select(rows) for rows in torch.arange(self.num_points).split(self.points.at_once)]

    def select(self, points: Int[Tensor, " chosen"]) -> "AtPoints":
        """The operator at some of its points."""
        if self.single:
            raise ValueError("an operator at a single point has no points to select; give thetas [point, param]")
        return replace(self, points=self.points.select(points))
