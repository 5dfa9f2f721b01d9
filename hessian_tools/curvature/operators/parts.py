"""Operators cut into parts by their points, so that the data kept for products fits in memory; products with rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.engines.memory import vectors_at_once
from hessian_tools.curvature.operators.operator import Operator

# The number of products that ``row_products`` computes at once: rows times points.
AT_ONCE = 16


@dataclass(frozen=True)
class Parts(Sequence[Operator]):
    """A sequence of operators, which are one operator at consecutive groups of its points.

    A part is made when the sequence is indexed, and the sequence holds no part. The data that a part keeps for its
    products can therefore be freed before the next part begins.

    whole: the operator at all points. points: the positions of the points of each part.
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
    """H times each row, a few rows at a time. at_once: the most products that run together, rows times points.

    Large rows are multiplied one by one. Rows are used because each of them is contiguous in memory, which the columns
    of a block are not.
    """
    num_points = H.num_points or 1
    out = rows.new_empty(num_points, *rows.shape[1:])
    rows = rows.expand(num_points, -1, -1)
    at_once = vectors_at_once(rows.device, rows.shape[-1] * rows.element_size(), at_once)
    for chosen in torch.arange(rows.shape[1], device="cpu").split(max(1, at_once // num_points)):
        block = slice(int(chosen[0]), int(chosen[-1]) + 1)
        out[:, block] = H.products(rows[:, block].mT).mT
    return out
