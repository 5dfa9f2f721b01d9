"""What the curvature matrices of one loss share: they live at points, and their rows are its parameters."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.objective.groups import RaggedObjective
from hessian_tools.curvature.objective.indexing import checked_points
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.layout import ParamLayout
from hessian_tools.loss import Loss


@dataclass(frozen=True)
class LossOperator(Operator):
    """An interface: a concrete operator adds what it does to a vector at one point."""

    points: Objective | RaggedObjective
    single: bool

    matrix_at: ClassVar[Any]  # a LinearMap

    @property
    def route(self) -> str:
        """How its products have been done so far: "direct", "kept" or "traced"; "a/b" where ragged groups differ."""
        return self.points.taken

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

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns, exact."""
        return self.points.products(V, type(self).matrix_at)

    @property
    def at_once(self) -> int:
        """At how many points results should be asked for together, within ``max_memory``."""
        return self.points.at_once(type(self).matrix_at)

    def select(self, points: Int[Tensor, " chosen"]) -> "LossOperator":
        """The operator at some of its points."""
        if self.single:
            raise ValueError("an operator at a single point has no points to select; give thetas [point, param]")
        return replace(self, points=self.points.select(checked_points(points, len(self.points.thetas))))
