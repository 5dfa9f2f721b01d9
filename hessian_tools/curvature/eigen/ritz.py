"""The form in which the stages of the eigenvalue solver pass pairs on: all points in one padded batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from hessian_tools.curvature.eigen.selection import Selection


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
