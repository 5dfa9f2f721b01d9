"""An operator taken apart by points, so that what its products keep fits in memory; and products row by row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.operators.operator import Operator

# Products asked for at once: columns times points.
AT_ONCE = 16


@dataclass(frozen=True)
class Parts(Sequence[Operator]):
    """An operator at some points after the other; nothing is held of one when the next is at work."""

    whole: Operator
    at_once: int

    def __len__(self) -> int:
        return -(-(self.whole.num_points or 1) // self.at_once)

    @overload
    def __getitem__(self, part: int) -> Operator: ...

    @overload
    def __getitem__(self, part: slice) -> Sequence[Operator]: ...

    def __getitem__(self, part: int | slice) -> Operator | Sequence[Operator]:
        if isinstance(part, slice):
            return [self[i] for i in range(*part.indices(len(self)))]
        first = range(len(self))[part] * self.at_once
        return self.whole.select(
            torch.arange(first, min(first + self.at_once, self.whole.num_points or 1), device="cpu")
        )

    def __iter__(self) -> Iterator[Operator]:
        return (self[i] for i in range(len(self)))


def part_by_part(H: Operator, function: Callable[[Operator, slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """``function(part, its points among all)`` of every part of H, put together along the points."""
    found, start = [], 0
    for part in H.parts():
        stop = start + (part.num_points or 1)
        found.append(function(part, slice(start, stop)))
        start = stop
    return found[0] if len(found) == 1 else tuple(torch.cat(pieces) for pieces in zip(*found, strict=True))


def row_products(
    H: Operator, rows: Float[Tensor, "#point row param"], *, at_once: int = AT_ONCE
) -> Float[Tensor, "point row param"]:
    """H times each row, few at a time: vectors that lie together in memory, columns of a block do not."""
    num_points = H.num_points or 1
    out = rows.new_empty(num_points, *rows.shape[1:])
    rows = rows.expand(num_points, -1, -1)
    for columns in torch.arange(rows.shape[1], device="cpu").split(max(1, at_once // num_points)):
        here = slice(int(columns[0]), int(columns[-1]) + 1)
        out[:, here] = H.products(rows[:, here].mT).mT
    return out
