"""Which eigenvalues are wanted at each point, how accurately, and the form in which pairs are passed on.

The stages of the eigenvalue solver pass the pairs of all points on as one padded batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

Which = Literal["LM", "LA", "SA", "BE"]

# A residual counts as rounding below ROUNDING * eps * |H|, and so does what orthogonalisation leaves of a vector.
ROUNDING = 64


def rounding(dtype: torch.dtype) -> float:
    """The size of rounding errors in products with H, as a share of |H|.

    >>> rounding(torch.float64) == 64 * 2.0**-52
    True
    """
    return ROUNDING * torch.finfo(dtype).eps


@dataclass(frozen=True)
class Selection:
    """The k eigenvalues that are wanted at each point, and the tolerance of their residuals.

    which: "LM" the largest in magnitude, "LA" the largest, "SA" the smallest, "BE" both ends.
    rtol: a pair has converged once its residual is at most max(rtol * |value|, 64 eps |H|).

    Where points have different numbers of values, the rows are padded and ``count`` says how many values of each row
    are real; without ``count`` all of them are.
    """

    which: Which
    k: int
    rtol: float

    @property
    def low(self) -> int:
        """How many of the k values come from the low end, if both ends are wanted; otherwise 0."""
        return self.k // 2 if self.which == "BE" else 0

    def pick(
        self, values: Float[Tensor, "*point value"], count: Int[Tensor, "*point"] | None = None
    ) -> Int[Tensor, "*point k"]:
        """Positions of the wanted values: LM by falling magnitude, LA and BE by falling value, SA by rising value.

        >>> Selection("BE", k=3, rtol=0.0).pick(torch.tensor([1.0, -4.0, 3.0, 2.0])).tolist()  # 3, 2 and -4
        [2, 3, 1]
        """
        key = values.abs() if self.which == "LM" else values
        rank = torch.arange(self.k, device=values.device)
        last = torch.full_like(rank[:1], values.shape[-1] - 1) if count is None else count[..., None] - 1
        if count is not None:  # padding goes to the end of the order
            key = key.masked_fill(torch.arange(values.shape[-1], device=values.device) > last, -inf)
        order = key.sort(dim=-1, descending=True, stable=True).indices
        if self.which == "SA":
            rank = last - rank
        elif self.which == "BE":
            # The first k - low come from the top of the order, the others from its end.
            rank = torch.where(rank < self.k - self.low, rank, last + 1 - self.k + rank)
        # A point that is not finite has a single pair of NaN, which stands for all k.
        rank = torch.minimum(rank, last).clamp(min=0)
        return order.gather(-1, rank.expand(*values.shape[:-1], self.k))

    def preference(self, values: Float[Tensor, "*point value"]) -> Int[Tensor, "*point value"]:
        """The rank of each value in the order in which values are wanted; 0 is wanted most."""
        key = values.abs() if self.which == "LM" else values
        # The inverse of a sorting permutation gives each value its rank.
        from_top = key.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
        from_below = values.shape[-1] - 1 - from_top
        if self.which == "BE":
            return torch.minimum(from_top, from_below)
        return from_below if self.which == "SA" else from_top

    def thresholds(
        self, values: Float[Tensor, "*point value"], count: Int[Tensor, "*point"] | None = None
    ) -> tuple[Float[Tensor, "*point"], Float[Tensor, "*point"]]:
        """Two thresholds of each point: a further eigenvalue would be wanted above the first or below the second.

        A threshold is infinite where no further eigenvalue could be wanted at that end.
        """
        return self._thresholds(values.gather(-1, self.pick(values, count)))

    def _thresholds(self, picked: Float[Tensor, "*point k"]) -> tuple[Float[Tensor, "*point"], Float[Tensor, "*point"]]:
        """The thresholds if ``picked`` are the wanted values, in the order of :meth:`pick`."""
        never = picked.new_full(picked.shape[:-1], inf)
        if self.k == 0:
            return never, -never
        last = picked[..., -1]
        if self.which == "LM":
            return last.abs(), -last.abs()
        if self.which == "SA":
            return never, last
        # The last value from the high end, and the first one from the low end.
        return picked[..., self.k - self.low - 1], picked[..., self.k - self.low] if self.low else -never

    def distance(
        self, values: Float[Tensor, "point value"], pick: Int[Tensor, "point k"]
    ) -> Float[Tensor, "point value"]:
        """How far each value is from being wanted. pick: the positions of the wanted values."""
        high, low = self._thresholds(values.gather(-1, pick))
        return torch.minimum(high[:, None] - values, values - low[:, None])

    def tolerance(
        self, values: Float[Tensor, "point value"], floor: Float[Tensor, " point"]
    ) -> Float[Tensor, "point value"]:
        """The largest residual with which each value counts as converged. floor: ``rounding`` times |H|."""
        return torch.maximum(self.rtol * values.abs(), floor[:, None])


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs of every point. The first ``count`` pairs of a point are real; padding by zeros follows.

    values: float64. vectors: as rows, in the dtype and on the device of the operator; all else lies on the CPU.
    norm: |H|, the largest magnitude of a Ritz value. num_matvecs: products used. converged: True where the
    stopping rule was met before the products ran out. complete: True where no wanted eigenvalue can be missing. finite:
    False where a product was not finite; the pairs of such a point are NaN.
    """

    values: Float[Tensor, "point pair"]
    vectors: Float[Tensor, "point pair param"]
    count: Int[Tensor, " point"]
    norm: Float[Tensor, " point"]
    num_matvecs: Int[Tensor, " point"]
    converged: Bool[Tensor, " point"]
    complete: Bool[Tensor, " point"]
    finite: Bool[Tensor, " point"]

    @property
    def real(self) -> Bool[Tensor, "point pair"]:
        """True for pairs, False for padding."""
        return torch.arange(self.values.shape[1], device="cpu") < self.count[:, None]

    def select(self, points: Int[Tensor, " chosen"]) -> "RitzPairs":
        """The pairs of some points, in the order given."""
        return RitzPairs(*[column[points.to(column.device, non_blocking=True)] for column in self.columns()])

    def keep(self, mask: Bool[Tensor, "point pair"]) -> "RitzPairs":
        """Only the pairs in the mask, moved to the front of each point's row."""
        columns, count = true_columns(mask)
        padding = torch.arange(columns.shape[1], device="cpu") >= count[:, None]
        device = self.vectors.device
        rows, device_columns = torch.arange(len(mask), device=device)[:, None], columns.to(device, non_blocking=True)
        values = self.values.gather(1, columns).masked_fill(padding, 0.0)
        vectors = self.vectors[rows, device_columns].masked_fill_(padding[..., None].to(device, non_blocking=True), 0.0)
        return RitzPairs(values, vectors, count, *self.columns()[3:])  # the fields after count stay

    def wanted(self, selections: Sequence[Selection]) -> "RitzPairs":
        """The pairs that the selections want; a pair that several selections want is listed once."""
        picked = torch.cat([selection.pick(self.values, self.count) for selection in selections], dim=-1)
        mask = torch.zeros_like(self.values, dtype=torch.bool).scatter_(-1, picked, True)
        # One pair of NaN stands for all pairs of a point that is not finite.
        return self.keep(torch.where(self.finite[:, None], mask, torch.arange(mask.shape[1], device="cpu") == 0))

    def columns(self) -> list[Tensor]:
        """The fields, in order."""
        # ``vars`` gives the fields alone, and in order, as long as no value is cached on the instance.
        return list(vars(self).values())


def true_columns(mask: Bool[Tensor, "point column"]) -> tuple[Int[Tensor, "point chosen"], Int[Tensor, " point"]]:
    """The rising positions of the True entries of each row, padded with other positions, and their number.

    >>> columns, count = true_columns(torch.tensor([[False, True, True], [True, False, False]]))
    >>> columns[0].tolist(), columns[1, :1].tolist(), count.tolist()
    ([1, 2], [0], [2, 1])
    """
    count = mask.sum(-1)
    return mask.byte().sort(dim=-1, descending=True, stable=True).indices[:, : int(count.max())], count


def in_order(batches: Sequence[tuple[Int[Tensor, " _"], RitzPairs]]) -> RitzPairs:
    """The pairs of all points, from batches of (positions of the points, pairs); positions rise within a batch."""
    if len(batches) == 1:
        return batches[0][1]
    order = torch.cat([positions for positions, _ in batches]).argsort()
    width = max(pairs.values.shape[1] for _, pairs in batches)
    columns = []
    for pieces in zip(*[pairs.columns() for _, pairs in batches], strict=True):
        if pieces[0].ndim > 1:  # the values and vectors have an axis of pairs
            no_padding = (0, 0) * (pieces[0].ndim - 2)
            pieces = tuple([pad(piece, (*no_padding, 0, width - piece.shape[1])) for piece in pieces])
        columns.append(torch.cat(pieces)[order.to(pieces[0].device, non_blocking=True)])
    return RitzPairs(*columns)
