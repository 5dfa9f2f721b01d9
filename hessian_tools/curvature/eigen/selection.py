"""Which eigenvalues are asked for, and how well."""

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Which = Literal["LM", "LA", "SA", "BE"]

# A residual, or what is left of a new direction, below this many eps * |H| is rounding.
ROUNDING = 64


@dataclass(frozen=True)
class Selection:
    """Some eigenvalues of each point, and how well: residual <= max(rtol * |value|, ROUNDING * eps * |H|)."""

    which: Which
    k: int
    rtol: float

    def pick(self, values: Float[Tensor, "*point value"]) -> Int[Tensor, "*point k"]:
        """Positions of the wanted in each row: LM by falling magnitude; LA and BE by falling value; SA by rising."""
        if self.which == "LM":
            return values.abs().sort(dim=-1, descending=True, stable=True).indices[..., : self.k]
        falling = values.sort(dim=-1, descending=True, stable=True).indices
        if self.which == "SA":
            return falling.flip(-1)[..., : self.k]
        return torch.cat([falling[..., : self.k - self.low], falling[..., falling.shape[-1] - self.low :]], dim=-1)

    @property
    def low(self) -> int:
        """How many are taken from the low end where both are asked for."""
        return self.k // 2 if self.which == "BE" else 0

    def preference(self, values: Float[Tensor, "*point value"]) -> Int[Tensor, "*point value"]:
        """For each value its place in the order in which values are wanted, 0 first."""
        if self.which == "LM":
            return _places(values.abs())
        from_top = _places(values)
        from_below = values.shape[-1] - 1 - from_top
        if self.which == "BE":
            return torch.minimum(from_top, from_below)
        return from_below if self.which == "SA" else from_top

    def bars(self, values: Float[Tensor, " value"]) -> tuple[float, float]:
        """Another eigenvalue would belong to the wanted above the first bar or below the second."""
        if self.k == 0:
            return inf, -inf
        picked = values[self.pick(values)]
        last = float(picked[-1])
        if self.which == "LM":
            return abs(last), -abs(last)
        if self.which == "BE":
            return float(picked[self.k - self.low - 1]), float(picked[self.k - self.low]) if self.low else -inf
        return (inf, last) if self.which == "SA" else (last, -inf)

    def distance(
        self, values: Float[Tensor, "point value"], pick: Int[Tensor, "point k"]
    ) -> Float[Tensor, "point value"]:
        """How far each value is from being wanted, where ``pick`` are."""
        picked = values.gather(-1, pick)
        last = picked[:, -1:]
        if self.which == "LM":
            return last.abs() - values.abs()
        if self.which == "SA":
            return values - last
        above = picked[:, self.k - self.low - 1, None] - values
        return torch.minimum(above, values - picked[:, self.k - self.low, None]) if self.low else above

    def tolerance(
        self, values: Float[Tensor, "point value"], norm: Float[Tensor, " point"], dtype: torch.dtype
    ) -> Float[Tensor, "point value"]:
        """The residual allowed to each value; norm: |H| at each point."""
        return torch.maximum(self.rtol * values.abs(), ROUNDING * torch.finfo(dtype).eps * norm[:, None])


def _places(values: Float[Tensor, "*point value"]) -> Int[Tensor, "*point value"]:
    """The place of each value in falling order."""
    return values.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
