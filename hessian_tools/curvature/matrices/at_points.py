"""What the curvature matrices of one loss share: they live at points, and their rows are its parameters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.matrices.interface import Operator
from hessian_tools.curvature.products.pieces import checked_points
from hessian_tools.curvature.products.points import Points
from hessian_tools.curvature.products.ragged import RaggedPoints
from hessian_tools.flat import ParamLayout
from hessian_tools.loss import Loss


@dataclass(frozen=True)
class AtPoints(Operator):
    """An interface: a concrete operator adds what it does to a vector at one point."""

    points: Points | RaggedPoints
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

    def parts(self) -> Sequence[Operator]:
        """The operator at as many points at a time as fit in memory; each made when it is asked for."""
        if self.num_points is None:
            return [self]
        at_once = self.points.at_once(type(self).matrix_at)
        return [self] if self.num_points <= at_once else Parts(self, at_once)

    def select(self, points: Int[Tensor, " chosen"]) -> "AtPoints":
        """The operator at some of its points."""
        if self.single:
            raise ValueError("an operator at a single point has no points to select; give thetas [point, param]")
        return replace(self, points=self.points.select(checked_points(points, len(self.points.thetas))))


@dataclass(frozen=True)
class Parts(Sequence[Operator]):
    """An operator at some points after the other; nothing is held of one when the next is at work."""

    whole: AtPoints
    at_once: int

    def __len__(self) -> int:
        return -(-len(self.whole.points.thetas) // self.at_once)

    @overload
    def __getitem__(self, part: int) -> Operator: ...

    @overload
    def __getitem__(self, part: slice) -> Sequence[Operator]: ...

    def __getitem__(self, part: int | slice) -> Operator | Sequence[Operator]:
        if isinstance(part, slice):
            return [self[i] for i in range(*part.indices(len(self)))]
        first = range(len(self))[part] * self.at_once
        return self.whole.select(torch.arange(first, min(first + self.at_once, len(self.whole.points.thetas))))

    def __iter__(self) -> Iterator[Operator]:
        return (self[i] for i in range(len(self)))
