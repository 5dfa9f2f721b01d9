"""Matrices of small rank: their whole spectrum from products with a few random vectors (Halko, Martinsson, Tropp 2011).

The products H w of random w span the range of H. With orthonormal rows Q for that span, and T = Q H Q', H is
Q' T Q + E. Of new random vectors w, not used for Q, the E w are known: |E w| >= |E| |u'w| for the unit vector u of the
largest singular value, and u'w is standard normal. So s of them give, with chi2_s(risk) the quantile of chi square,

    |E|^2 <= sum_i |E w_i|^2 / chi2_s(risk)        but for a chance of ``risk``,

and no eigenvalue of H is further than |E| from its counterpart in T or zero (Weyl 1912).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import gammaincinv
from torch import Tensor

from hessian_tools.curvature.eigen.krylov import CANCELLED
from hessian_tools.curvature.eigen.small_eigh import eigh
from hessian_tools.curvature.operators.lengths import lengths
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.parts import row_products
from hessian_tools.rng import stream

# Random vectors a round.
BLOCK = 32
# The chance that an error bound does not hold, a point.
RISK = 1e-6


@dataclass(frozen=True)
class Compressed:
    """One point's H as Q'TQ to within ``error`` in norm; Q has orthonormal rows. No Q where H was not finite or too
    much was left of it.
    """

    Q: Float[Tensor, "row param"] | None
    T: Float[Tensor, "row row"] | None
    error: float
    num_matvecs: int
    finite: bool = True


def compressed(
    H: Operator, *, rtol: float, max_rank: int, seed: int, done: Callable[[int], None] = lambda count: None
) -> list[Compressed]:
    """Every point's H to within rtol |H|_F (as the random products estimate it) where max_rank rows suffice.

    Costs 2 (rank + BLOCK) products and rank * param numbers a point. done: told how many points have left.
    """
    finder = _RangeFinder(H, max_rank)
    while len(finder.points):
        before = len(finder.left)
        finder.round(rtol, seed)
        if len(finder.left) > before:
            done(len(finder.left) - before)
    return [finder.left[point] for point in sorted(finder.left)]


class _RangeFinder:
    """The points still running: Q with room for more rows, and T."""

    def __init__(self, H: Operator, max_rank: int) -> None:
        num_points, self.num_params = H.num_points or 1, H.num_params
        self.H, self.max_rank = H, max_rank
        self.points = np.arange(num_points)
        self.Q = torch.empty(num_points, max_rank, self.num_params, dtype=H.dtype, device=H.device)
        self.T = torch.zeros(num_points, max_rank, max_rank, dtype=H.dtype, device=H.device)
        self.rank, self.rounds = 0, 0
        self.left: dict[int, Compressed] = {}

    def round(self, rtol: float, seed: int) -> None:
        """New random products: where they show little outside of Q the point is done; else they go into Q."""
        drawn = torch.randn(
            BLOCK, self.num_params, generator=stream(seed, "range", self.rounds), dtype=torch.float64, device="cpu"
        )
        probes = drawn.to(self.H.device, self.H.dtype)
        self.rounds += 1
        Y = row_products(self.H, probes[None])
        W = self._outside(Y)
        bound = lengths(W.flatten(1)) / sqrt(_quantile(BLOCK))
        size = lengths(Y.flatten(1)) / sqrt(BLOCK)
        finite = torch.isfinite(bound)
        small = (bound <= rtol * size) & finite
        room = self.rank + BLOCK <= self.max_rank
        self._leave(small, ~finite, probes, Y, nothing_more=not room)
        stay = torch.nonzero(finite & ~small if room else torch.zeros_like(small))[:, 0]
        if 0 < len(stay) < len(self.points):
            self._keep(stay)
            W = W[stay]
        elif len(stay) == 0:
            self.points = self.points[:0]
        if len(self.points):
            self._grow(W)

    def _outside(self, Y: Float[Tensor, "point row param"]) -> Float[Tensor, "point row param"]:
        Q = self.Q[:, : self.rank]
        return torch.baddbmm(Y, Y @ Q.mT, Q, alpha=-1)

    def _grow(self, W: Float[Tensor, "point row param"]) -> None:
        """Q takes in the rows W, made orthonormal; where they are rounding they are as good as random."""
        new = self._outside(torch.linalg.qr(W.mT).Q.mT)
        while bool((new.norm(dim=-1) < CANCELLED).any()):  # what W had left outside of Q was rounding
            new = self._outside(torch.linalg.qr(new.mT).Q.mT)
        new = _polished(new)
        old, self.rank = self.rank, self.rank + BLOCK
        self.Q[:, old : self.rank] = new
        block = self.Q[:, : self.rank] @ row_products(self.H, new).mT
        self.T[:, : self.rank, old : self.rank] = block
        self.T[:, old : self.rank, :old] = block[:, :old].mT

    def _leave(self, small: Tensor, broken: Tensor, probes: Tensor, Y: Tensor, *, nothing_more: bool) -> None:
        count = (2 * self.rounds - 1) * BLOCK
        for i in torch.nonzero(small | broken | nothing_more)[:, 0].cpu().tolist():
            if not small[i]:
                self.left[int(self.points[i])] = Compressed(None, None, torch.nan, count, not bool(broken[i]))
                continue
            Q, T = self.Q[i, : self.rank], self.T[i, : self.rank, : self.rank].double()
            T = (T + T.mT) / 2
            E = Y[i] - ((probes @ Q.mT) @ T.to(Q)) @ Q
            error = float(lengths(E.flatten())) / sqrt(_quantile(BLOCK))
            self.left[int(self.points[i])] = Compressed(Q.clone(), T, error, count)

    def _keep(self, stay: Int[Tensor, " chosen"]) -> None:
        """Within the memory there is."""
        for to, source in enumerate(stay.cpu().tolist()):
            if to != source:
                self.Q[to, : self.rank], self.T[to] = self.Q[source, : self.rank], self.T[source]
        self.Q, self.T, self.points = self.Q[: len(stay)], self.T[: len(stay)], self.points[stay.cpu().numpy()]
        self.H = self.H.select(stay)


def _polished(rows: Float[Tensor, "point row param"]) -> Float[Tensor, "point row param"]:
    """Orthonormal rows near rows that nearly are: G^(-1/2) times them, G their Gram matrix; twice, for rounding."""
    for _ in range(2):
        d, U = eigh((rows @ rows.mT).double())
        rows = ((U / d[:, None].sqrt()) @ U.mT).to(rows) @ rows
    return rows


def _quantile(degrees: int) -> float:
    """Of chi square, at RISK."""
    return 2 * float(gammaincinv(degrees / 2, RISK))
