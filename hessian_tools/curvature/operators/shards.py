"""Vectors of which each process holds a part: their inner products, lengths, and random numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.operators.lengths import inner_products, lengths
from hessian_tools.processes import Ranks

# Random numbers are drawn in pieces, so that no process ever holds a whole vector. torch draws normal numbers in blocks
# of 16, and draws the last 16 anew where the length is no multiple of 16. The pieces give the same numbers as one call,
# because all but the last have a multiple of 16 numbers, and the last has at least 16 of them.
PIECE, BLOCK = 2**20, 16


@dataclass(frozen=True)
class Shards:
    """The division of vectors of length ``total`` over processes.

    segments: the parts [start, stop) of the whole vector that this process holds, one after the other, in rising order.
    """

    ranks: Ranks
    total: int
    segments: Sequence[tuple[int, int]]

    @property
    def length(self) -> int:
        """How many numbers of a vector this process holds."""
        return sum(stop - start for start, stop in self.segments)

    def inner(self, partial: Tensor) -> Tensor:
        """Inner products of whole vectors, from those of the parts; the same to the bit on all processes."""
        return self.ranks.sum(partial.clone())

    def inner_products(
        self, A: Float[Tensor, "*#point row param"], B: Float[Tensor, "*#point column param"]
    ) -> Float[Tensor, "*point row column"]:
        """The inner products of the rows of A with those of B, where all rows are whole vectors."""
        return self.inner(inner_products(A, B))

    def lengths(self, vectors: Float[Tensor, "*rows param"]) -> Float[Tensor, "*rows"]:
        """The lengths of whole vectors, in float64."""
        return self.ranks.sum(lengths(vectors) ** 2).sqrt()

    def own_numbers(self, draw: Callable[[int], Tensor], dtype: torch.dtype) -> Float[Tensor, " param"]:
        """This process's part of the vector ``draw(total)``, drawn piece by piece, on the CPU."""
        own = torch.empty(self.length, dtype=dtype, device="cpu")
        start = 0
        while start < self.total:
            remaining = self.total - start
            piece = draw(PIECE if remaining >= PIECE + BLOCK else remaining)
            stop = start + len(piece)
            offset = 0  # where the segment begins in ``own``
            for a, b in self.segments:
                low, high = max(a, start), min(b, stop)  # the part of the segment that lies in this piece
                if low < high:
                    own[offset + low - a : offset + high - a] = piece[low - start : high - start]
                offset += b - a
            start = stop
        return own
