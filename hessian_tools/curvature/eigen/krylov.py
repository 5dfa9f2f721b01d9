"""An orthonormal basis that grows by products, at all points in step, and the small matrix seen from it.

    H q_m = beta_{m-1} q_{m-1} + alpha_m q_m + beta_m q_{m+1}

T, tridiagonal with the alphas and betas, is H on the span of the q. Its pairs T s = ritz s give (ritz, Q s)
with the residual |H Q s - ritz Q s| = beta_m |s_m|, known without a further product (Paige 1972).

Thick restart (Wu, Simon 2000): l of the Q s and q_{m+1} make a shorter basis, from which T is diag(ritz) with
one more row, the beta_m s_m, an arrow; what follows is tridiagonal again.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.selection import ROUNDING
from hessian_tools.curvature.operators.lengths import lengths

# A new basis is made of the old one this many bytes at a time.
PIECE = 2**23
# Orthogonalised once more where less than this share of a vector was left.
CANCELLED = 0.5


class KrylovBasis:
    """Rows of ``basis``: first the locked ones, then ``size`` that T is made of, then the one to multiply next.

    locked: rows [point, locked, param], orthonormal or zero, that everything stays orthogonal to.
    first: unit vectors orthogonal to them, one a point or one for all. room: rows besides the locked.
    fresh: a random vector for the asking. T lies on the CPU in float64: ``diagonal``, and ``coupling`` of
    row i to the next, or, for the first ``kept`` rows, to row ``kept``; 0 where the space was exhausted.
    """

    def __init__(
        self,
        first: Float[Tensor, "#point param"],
        locked: Float[Tensor, "point locked param"],
        *,
        room: int,
        fresh: Callable[[int], Float[Tensor, " param"]],
    ) -> None:
        num_points, num_locked, num_params = locked.shape
        # Zero rows are not vectors but filled-up space.
        self.space = num_params - (locked != 0).any(-1).sum(-1).cpu().numpy()
        self.room = min(room, num_params)
        self.basis = locked.new_empty(num_points, num_locked + self.room, num_params)
        self.basis[:, :num_locked] = locked
        self.basis[:, num_locked] = first
        self.locked, self.size, self.kept = num_locked, 0, 0
        self.diagonal = np.zeros((num_points, self.room))
        self.coupling = np.zeros((num_points, self.room))
        self.scale = np.zeros(num_points)
        self.fresh = fresh

    @property
    def next(self) -> Float[Tensor, "point param"]:
        """The vectors to multiply next."""
        return self.basis[:, self.locked + self.size]

    @property
    def crowded(self) -> bool:
        """Whether the next vector is the last there is room for, and the whole space has not that room."""
        return self.size == self.room - 1 and self.room < self.basis.shape[-1]

    def advance(self, w: Float[Tensor, "point param"], step: int) -> Bool[np.ndarray, " point"]:
        """Take in the products w of ``next``; False where a number was not finite. step: names the random vectors."""
        m, last, rows = self.size, self.next, self.basis[:, : self.locked + self.size + 1]
        alpha = (w * last).sum(-1)
        before = lengths(w)
        if m > self.kept:  # two terms first, so that once is enough for the rest unless much cancels
            w = torch.addcmul(w, alpha[:, None], last, value=-1)
            w = torch.addcmul(w, _column(self.coupling[:, m - 1], w), rows[:, -2], value=-1)
            before = lengths(w)
        w = _orthogonal(w, rows)
        alphas, befores, betas = torch.stack([alpha.double(), before, lengths(w)]).cpu().numpy()
        again = np.flatnonzero(betas < CANCELLED * befores) if m > self.kept else np.arange(len(betas))
        if len(again):
            who = torch.from_numpy(again).to(w.device)
            w[who] = _orthogonal(w[who], rows if len(again) == len(w) else rows[who])
            betas = lengths(w).cpu().numpy()
        finite = np.isfinite(alphas + betas)
        self.scale = np.maximum(self.scale, np.maximum(abs(alphas), betas))
        # What is left of a direction in an exhausted space is rounding: go on at random.
        ended = m + 1 >= self.space
        spent = finite & (ended | (betas <= ROUNDING * torch.finfo(w.dtype).eps * self.scale))
        self.diagonal[:, m], self.coupling[:, m] = alphas, np.where(spent, 0.0, betas)
        if spent[~ended].any():
            who = torch.from_numpy(spent & ~ended).to(w.device)
            w[who] = _orthogonal(_orthogonal(self.fresh(step).expand_as(w[who]), rows[who]), rows[who])
            betas[spent] = lengths(w).cpu().numpy()[spent]
        self.size += 1
        if self.size < self.room:
            self.basis[:, self.locked + self.size] = w / _column(betas, w).clamp(min=torch.finfo(w.dtype).tiny)
        return finite

    @property
    def spent(self) -> Bool[np.ndarray, " point"]:
        """Where the last step left the space."""
        return self.coupling[:, self.size - 1] == 0

    @property
    def whole(self) -> Bool[np.ndarray, " point"]:
        """Where the basis spans the whole space."""
        return self.size >= self.space

    def matrices(self, who: Int[np.ndarray, " chosen"]) -> Float[Tensor, "chosen row row"]:
        """T of some points; its lower triangle."""
        m, kept = self.size, self.kept
        T = np.zeros((len(who), m, m))
        down = np.arange(m - 1)
        T[:, np.arange(m), np.arange(m)] = self.diagonal[who, :m]
        T[:, np.where(down < kept, kept, down + 1), down] = self.coupling[who, : m - 1]
        return torch.from_numpy(T)

    def pairs(
        self, who: Int[np.ndarray, " chosen"]
    ) -> tuple[Float[Tensor, "chosen value"], Float[Tensor, "chosen value"], Float[Tensor, "chosen row value"]]:
        """Ritz values, rising, their residuals, and the vectors s of some points; NaN where T is not finite."""
        T = self.matrices(who)
        bad = ~T.isfinite().flatten(1).all(-1)
        values, vectors = torch.linalg.eigh(T.masked_fill_(bad[:, None, None], 0.0))
        beta = torch.from_numpy(self.coupling[who, self.size - 1])
        return values.masked_fill(bad[:, None], torch.nan), beta[:, None] * vectors[:, -1].abs(), vectors

    def vectors(self, point: int, s: Float[Tensor, "row pair"]) -> Float[Tensor, "pair param"]:
        """Q s at one point, as rows."""
        rows = self.basis[point, self.locked : self.locked + self.size]
        return s.mT.to(rows) @ rows

    def restart(self, values: Float[Tensor, "point l"], s: Float[Tensor, "point row l"]) -> None:
        """Go on from some Ritz pairs of every point and the vector to multiply next; within the memory it has."""
        first, m, kept = self.locked, self.size, values.shape[-1]
        coefficients = s.mT.to(self.basis)
        width = max(1, PIECE // (self.basis.element_size() * kept * len(self.basis)))
        for columns in torch.arange(self.basis.shape[-1], device="cpu").split(width):
            here = slice(int(columns[0]), int(columns[-1]) + 1)
            self.basis[:, first : first + kept, here] = coefficients @ self.basis[:, first : first + m, here]
        self.basis[:, first + kept] = self.next
        self.diagonal[:, :kept] = values.numpy()
        self.coupling[:, :kept] = self.coupling[:, m - 1, None] * s[:, -1].numpy()
        self.size = self.kept = kept

    def keep(self, who: Int[np.ndarray, " chosen"]) -> None:
        """Go on with some of the points, in their order; moved within the memory they have."""
        for to, source in enumerate(who):
            if to != source:
                self.basis[to, : self.locked + self.size + 1] = self.basis[source, : self.locked + self.size + 1]
        self.basis = self.basis[: len(who)]
        self.diagonal, self.coupling = self.diagonal[who], self.coupling[who]
        self.scale, self.space = self.scale[who], self.space[who]

    def leave(self, who: Int[np.ndarray, " chosen"]) -> None:
        """No more random vectors for these points."""
        self.space[who] = 0


def _column(numbers: Float[np.ndarray, " point"], like: Tensor) -> Float[Tensor, "point 1"]:
    # In the dtype before it moves, and without waiting for the device: it has taken the numbers when the call returns.
    return torch.from_numpy(numbers).to(like.dtype).to(like.device, non_blocking=True)[:, None]


def _orthogonal(
    w: Float[Tensor, "point param"], rows: Float[Tensor, "point row param"]
) -> Float[Tensor, "point param"]:
    """w less its part in the span of the rows.

    Row vector times matrix: as matrix times column torch's batched product is ten times slower.
    """
    row = w[:, None]
    return torch.baddbmm(row, row @ rows.mT, rows, alpha=-1)[:, 0]
