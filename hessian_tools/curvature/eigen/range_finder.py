"""Compresses matrices of small rank by products with a few random vectors (Halko, Martinsson, Tropp 2011).

The products H w of random vectors w span the range of H. Let Q have orthonormal rows that span it, and T = Q H Q'. Then
H = Q' T Q + E. For a new random vector w, which was not used for Q, E w can be computed from H w. |E w| >= |E| |u'w|
for the right singular vector u of the largest singular value of E, and u'w is standard normal. Hence s such vectors w_i
give, with chi2_s(risk) the quantile of the chi-square distribution with s degrees of freedom,

    |E|^2 <= sum_i |E w_i|^2 / chi2_s(risk)        with a probability of at least 1 - risk,

and no eigenvalue of H is further than |E| from its counterpart in T or zero (Weyl 1912).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import sqrt

import torch
from jaxtyping import Float, Int
from scipy.special import gammaincinv
from torch import Tensor

from hessian_tools.curvature.eigen.krylov import CANCELLATION, move_to_front
from hessian_tools.curvature.eigen.small_eigh import eigh
from hessian_tools.curvature.operators.lengths import inner_products, lengths, vector_norm
from hessian_tools.curvature.operators.operator import Operator, row_products
from hessian_tools.rng import stream

# The number of random vectors in each round of the range finder.
BLOCK = 32
# The probability, at one point, that an error bound does not hold.
RISK = 1e-6


@dataclass(frozen=True)
class Compressed:
    """H at some points as Q'TQ, up to a matrix of norm ``error``; Q has orthonormal rows.

    Q and T are None where H has no such form, because it is not finite (``finite`` is False) or its rank is too large.
    """

    points: Int[Tensor, " point"]
    Q: Float[Tensor, "point row param"] | None
    T: Float[Tensor, "point row row"] | None
    error: Float[Tensor, " point"]
    num_matvecs: int
    finite: bool = True


def compress(H: Operator, *, rtol: float, max_rank: int, seed: int) -> Iterator[Compressed]:
    """Compresses H at every point with an error of at most rtol |H|_F, if max_rank rows of Q suffice for it.

    |H|_F is estimated from random products. Points that are finished in the same round are yielded together. It costs
    about 2 (rank + BLOCK) products and max_rank * param numbers of memory at each point.
    """
    num_points, n = H.num_points or 1, H.num_params
    points = torch.arange(num_points, device="cpu")
    Q = torch.empty(num_points, max_rank, n, dtype=H.dtype, device=H.device)
    T = torch.zeros(num_points, max_rank, max_rank, dtype=H.dtype, device=H.device)
    # The quantile is chi2_s(risk) of the module's docstring, with s = BLOCK.
    rank, quantile = 0, 2 * float(gammaincinv(BLOCK / 2, RISK))
    for step in count():  # the rounds; in each of them Q gets BLOCK rows more
        drawn = torch.randn(BLOCK, n, generator=stream(seed, "range", step), dtype=torch.float64, device="cpu")
        probes = drawn.to(H.device, H.dtype)
        Y = row_products(H, probes[None])
        W = _orthogonal_part(Y, Q[:, :rank])
        bound = lengths(W.flatten(1)) / sqrt(quantile)  # of |H - Q'QH|, by the argument of the module's docstring
        size = lengths(Y.flatten(1)) / sqrt(BLOCK)  # E |H w|^2 = |H|_F^2
        finite = bound.isfinite()
        small = (bound <= rtol * size) & finite
        num_matvecs = (2 * step + 1) * BLOCK  # each earlier round multiplied its random vectors and its new rows of Q
        if small.any():
            chosen = Q[small, :rank]
            t = T[small, :rank, :rank].double()
            t = (t + t.mT) / 2
            Ew = Y[small] - (inner_products(probes[None], chosen) @ t.to(Q)) @ chosen
            yield Compressed(points[small.cpu()], chosen, t, lengths(Ew.flatten(1)) / sqrt(quantile), num_matvecs)
        too_large = finite & ~small & (rank + BLOCK > max_rank)
        for lost, is_finite in ((~finite, False), (too_large, True)):
            if lost.any():
                error = torch.full_like(bound[lost], torch.nan)
                yield Compressed(points[lost.cpu()], None, None, error, num_matvecs, is_finite)
        stay = (finite & ~small & ~too_large).nonzero()[:, 0]
        if len(stay) == 0:
            return
        if len(stay) < len(points):
            kept = stay.cpu()
            move_to_front(Q[:, :rank], kept.tolist())
            move_to_front(T, kept.tolist())
            Q, T, W, points, H = Q[: len(stay)], T[: len(stay)], W[stay], points[kept], H.select(kept)
        _extend(H, Q, T, W, rank)
        rank += BLOCK


def _orthogonal_part(Y: Float[Tensor, "point row param"], Q: Float[Tensor, "point found param"]) -> Tensor:
    """The part of the rows Y that is orthogonal to the rows Q."""
    return torch.baddbmm(Y, inner_products(Y, Q), Q, alpha=-1)


def _extend(H: Operator, Q: Tensor, T: Tensor, W: Float[Tensor, "point row param"], rank: int) -> None:
    """Adds the rows W, made orthonormal, to the first ``rank`` rows of Q, and their products to T, in place."""
    known, total = Q[:, :rank], rank + W.shape[1]
    new = _orthogonal_part(torch.linalg.qr(W.mT).Q.mT, known)
    # Rows of W that were only rounding lose most of their length here. They are made orthonormal again and then serve
    # as random rows.
    while bool((vector_norm(new) < CANCELLATION).any()):
        new = _orthogonal_part(torch.linalg.qr(new.mT).Q.mT, known)
    # The rows are nearly orthonormal; G^(-1/2) times them, with G their Gram matrix, is the nearest orthonormal set.
    # The second time removes the rounding errors of the first.
    for _ in range(2):
        d, U = eigh(inner_products(new, new).double())
        new = ((U / d[:, None].sqrt()) @ U.mT).to(new) @ new
    Q[:, rank:total] = new
    block = inner_products(Q[:, :total], row_products(H, new))
    T[:, :total, rank:total] = block
    T[:, rank:total, :rank] = block[:, :rank].mT
