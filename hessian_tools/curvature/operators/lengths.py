"""Lengths and inner products of vectors, right also for millions of entries and for very small and large numbers.

On a CPU, torch adds the terms of a float32 length or matrix product one after the other, in a few sums at most, and a
large sum no longer notices a small term. A length is too short by a fraction of 4e-4 with 10 million random entries and
of 1e-2 with 100 million. An inner product computed as a matrix product is off by up to 30 times that. Here long vectors
are divided into pieces, whose results are added in float64. (``(x * y).sum()`` has no such error, because torch adds it
pairwise.) ``Shards`` has the same for vectors of which each process holds a part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.processes import Ranks

# A vector of more than LONG entries is divided into pieces of PIECE entries. The errors of lengths and inner products
# are then about 1e-7. Pieces are longer on a GPU, which adds many sums at the same time and where a call costs more.
PIECE, LONG = 2**12, 2**14
PIECE_ON_GPU = LONG_ON_GPU = 2**20
# Random numbers are drawn in pieces, so that no process ever holds a whole vector. torch draws normal numbers in blocks
# of 16, and draws the last 16 anew where the length is no multiple of 16. The pieces give the same numbers as one call,
# because all but the last have a multiple of 16 numbers, and the last has at least 16 of them.
DRAWN, BLOCK = 2**20, 16


def lengths(vectors: Float[Tensor, "*rows param"]) -> Float[Tensor, "*rows"]:
    """The length of each row, in float64.

    Squares of float32 numbers underflow below 1e-19 and overflow above 1e19, so lengths outside of this range are
    computed again in float64. Otherwise a Hessian of size 1e-30 would have residuals of zero for any vectors, and one
    of size 1e20 would be called not finite. Vectors in float64 are not treated so, because their squares are right from
    1e-154 to 1e154.

    >>> [f"{length:.1e}" for length in lengths(torch.tensor([[3e-30, 4e-30], [3e30, 4e30]])).tolist()]
    ['5.0e-30', '5.0e+30']
    """
    if vectors.is_cuda:  # all rows in float64, because it costs more to wait for the GPU to say which rows need it
        return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    length = vector_norm(vectors).double()
    limits = torch.finfo(vectors.dtype)
    # Below this length, squares that underflow could add up to more than the rounding of the sum.
    doubtful = ~((length > limits.tiny**0.5 / limits.eps) & length.isfinite())
    if vectors.dtype != torch.float64 and doubtful.any():  # only these rows, because float64 doubles the work
        length[doubtful] = torch.linalg.vector_norm(vectors[doubtful], dim=-1, dtype=torch.float64)
    return length


def vector_norm(vectors: Tensor, dim: int = -1, *, keepdim: bool = False) -> Tensor:
    """The lengths along one axis, in the dtype of the vectors.

    >>> round(float(vector_norm(torch.full((3_000_000,), 0.1))), 2)  # torch's own length is 173.28
    173.21
    """
    if vectors.shape[dim] <= LONG or vectors.is_cuda or vectors.dtype != torch.float32:
        return vectors.norm(dim=dim, keepdim=keepdim)
    body, rest = _pieces(vectors.movedim(dim, -1), PIECE)
    parts = torch.cat([body.norm(dim=-1), rest.norm(dim=-1, keepdim=True)], -1).double()
    length = parts.norm(dim=-1).to(vectors.dtype)
    return length.unsqueeze(dim) if keepdim else length


def inner_products(
    A: Float[Tensor, "*#point row param"], B: Float[Tensor, "*#point column param"]
) -> Float[Tensor, "*point row column"]:
    """A @ B.mT, for rows that may have millions of entries.

    >>> round(float(inner_products(torch.full((1, 3_000_000), 0.1), torch.ones(1, 3_000_000))), -1)  # A @ B.mT: 290770
    300000.0
    """
    piece, long = (PIECE_ON_GPU, LONG_ON_GPU) if A.is_cuda else (PIECE, LONG)
    if A.shape[-1] <= long or A.dtype != torch.float32:
        return A @ B.mT
    if A.ndim > 2:  # one point at a time, because torch would copy all rows to multiply their pieces together
        points = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        rows, columns = (M.expand(*points, *M.shape[-2:]).flatten(0, -3) for M in (A, B))
        products = [inner_products(a, b) for a, b in zip(rows, columns, strict=True)]
        return torch.stack(products).view(*points, A.shape[-2], B.shape[-2])
    (a, a_rest), (b, b_rest) = _pieces(A, piece), _pieces(B, piece)
    total = torch.bmm(a.transpose(0, 1), b.permute(1, 2, 0)).double().sum(0) + (a_rest @ b_rest.mT).double()
    return total.to(A.dtype)


def _pieces(vectors: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Views of the vectors divided into pieces, and of the entries that remain."""
    whole = vectors.shape[-1] // size * size
    return vectors[..., :whole].unflatten(-1, (-1, size)), vectors[..., whole:]


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
            piece = draw(DRAWN if remaining >= DRAWN + BLOCK else remaining)
            stop = start + len(piece)
            offset = 0  # where the segment begins in ``own``
            for a, b in self.segments:
                low, high = max(a, start), min(b, stop)  # the part of the segment that lies in this piece
                if low < high:
                    own[offset + low - a : offset + high - a] = piece[low - start : high - start]
                offset += b - a
            start = stop
        return own
