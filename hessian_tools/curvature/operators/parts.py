"""Operators cut into parts by their points, so that what the products keep fits in memory; and products by rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.operators.operator import Operator

# The number of products that are computed at once: columns times points.
AT_ONCE = 16


@dataclass(frozen=True)
class Parts(Sequence[Operator]):
    """A sequence of one operator at consecutive groups of points.

    A part is made when it is asked for, and the sequence holds none of them, so that what the products of one part keep
    can be freed before the next one works. points: those of each part.
    """

    whole: Operator
    points: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.points)

    @overload
    def __getitem__(self, part: int) -> Operator: ...

    @overload
    def __getitem__(self, part: slice) -> Sequence[Operator]: ...

    def __getitem__(self, part: int | slice) -> Operator | Sequence[Operator]:
        if isinstance(part, slice):
            return Parts(self.whole, self.points[part])
        return self.whole.select(self.points[part])


def part_by_part(H: Operator, function: Callable[[Operator, slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The results of ``function(part, slice of its points)`` for every part of H, concatenated along the points."""
    results, start = [], 0
    for part in H.parts():
        stop = start + (part.num_points or 1)
        results.append(function(part, slice(start, stop)))
        start = stop
    return results[0] if len(results) == 1 else tuple(torch.cat(pieces) for pieces in zip(*results, strict=True))


def row_products(
    H: Operator, rows: Float[Tensor, "#point row param"], *, at_once: int = AT_ONCE
) -> Float[Tensor, "point row param"]:
    """H times each row, a few rows at a time. at_once: how many, counted over the points.

    A row lies together in memory, while the columns of a block do not.
    """
    num_points = H.num_points or 1
    out = rows.new_empty(num_points, *rows.shape[1:])
    rows = rows.expand(num_points, -1, -1)
    for columns in torch.arange(rows.shape[1], device="cpu").split(max(1, at_once // num_points)):
        some = slice(int(columns[0]), int(columns[-1]) + 1)
        out[:, some] = H.products(rows[:, some].mT).mT
    return out
