"""An orthonormal Krylov basis that grows by products, at all points in lockstep, and the small matrix T of H in it.

    H q_m = beta_{m-1} q_{m-1} + alpha_m q_m + beta_m q_{m+1}

T has the alphas and betas as entries and is tridiagonal. It is H restricted to the span of the q. Each of its pairs
T s = ritz s gives a Ritz pair (ritz, Q s) of H. The residual |H Q s - ritz Q s| = beta_m |s_m| is known without a
further product (Paige 1972).

Thick restart (Wu, Simon 2000): some of the Ritz vectors Q s, and q_{m+1}, make a shorter basis. In it T is diag(ritz)
with one more row, the beta_m s_m, so that it has the shape of an arrow; the rows that follow are tridiagonal again.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.selection import rounding
from hessian_tools.curvature.operators.lengths import lengths

# A restart makes the new basis from the old one this many bytes at a time, so that it needs no second basis.
RESTART_BYTES = 2**23
# A vector is orthogonalised a second time if less than this fraction of its length was left, because the rounding of
# the part removed is then no longer small beside the remainder ("twice is enough", Kahan and Parlett).
CANCELLATION = 0.5


class KrylovBasis:
    """The bases of all points, and T of each.

    rows [point, num_locked + max_size, param]: first the locked vectors, then the ``size`` vectors that T belongs to,
    then the vector to multiply next.

    first: unit vectors orthogonal to the locked ones, one for each point or one for all. locked: orthonormal rows, or
    zero rows as padding, that all vectors stay orthogonal to. max_size: how many vectors fit besides the locked ones.
    fresh: draws the random vector of a given step, the same for all points, with which a point goes on after a
    breakdown.

    T lies on the CPU in float64: ``diagonal``, and ``coupling`` of row i to row i + 1 or, for the first
    ``num_restarted`` rows, to row ``num_restarted``. A coupling is 0 where the Krylov space was exhausted.
    breakdown: the points where that happened at the last step. dimension: the dimension of the space orthogonal to the
    locked vectors. scale: the largest entry of T so far, by which rounding is recognised. restart_size: the size at
    which only one more vector fits, so that a restart is due; None if a basis of the whole space fits.
    """

    def __init__(
        self,
        first: Float[Tensor, "#point param"],
        locked: Float[Tensor, "point locked param"],
        *,
        max_size: int,
        fresh: Callable[[int], Float[Tensor, " param"]],
    ) -> None:
        num_points, self.num_locked, num_params = locked.shape
        self.max_size, self.fresh = min(max_size, num_params), fresh
        self.dimension = num_params - (locked != 0).any(-1).sum(-1).cpu().numpy()
        self.rows = locked.new_empty(num_points, self.num_locked + self.max_size, num_params)
        self.rows[:, : self.num_locked] = locked
        self.rows[:, self.num_locked] = first
        self.next = self.rows[:, self.num_locked]
        self.size = self.num_restarted = 0
        self.restart_size = self.max_size - 1 if self.max_size < num_params else None
        self.diagonal = np.zeros((num_points, self.max_size))
        self.coupling = np.zeros((num_points, self.max_size))
        self.scale = np.zeros(num_points)
        self.breakdown = np.zeros(num_points, dtype=bool)
        self._last_coupling = self.rows.new_zeros(num_points, 1)
        self._rounding = rounding(locked.dtype)

    @property
    def exhausted(self) -> Bool[np.ndarray, " point"]:
        """Where the basis spans the whole space, so that its Ritz pairs are eigenpairs."""
        return self.size >= self.dimension

    def advance(self, w: Float[Tensor, "point param"], step: int) -> Bool[np.ndarray, " point"]:
        """Extend every basis by the products w of ``next``; returns False where a number was not finite.

        step: names the random vector that a point needs after a breakdown.
        """
        m, rows = self.size, self.rows[:, : self.num_locked + self.size + 1]
        alpha = (w * self.next).sum(-1)
        if m > self.num_restarted:
            # The two terms of the recurrence are removed first, so that one full orthogonalisation is enough unless
            # much cancels.
            w = torch.addcmul(w, alpha[:, None], self.next, value=-1)
            w = torch.addcmul(w, self._last_coupling, rows[:, -2], value=-1)
        # A row vector times a matrix: as a matrix times a column, torch's batched product is ten times slower.
        components = w[:, None] @ rows.mT
        w = torch.baddbmm(w[:, None], components, rows, alpha=-1)[:, 0]
        removed = torch.linalg.vector_norm(components[:, 0], dim=-1, dtype=torch.float64)
        alphas, removed, betas = torch.stack([alpha.double(), removed, lengths(w)]).cpu().numpy()
        again = np.arange(len(betas))  # all points, if the recurrence has removed nothing beforehand
        if m > self.num_restarted:
            length_before = np.hypot(betas, removed)
            again = np.flatnonzero(betas < CANCELLATION * length_before)
        if len(again):
            points = torch.from_numpy(again).to(w.device)
            w[points] = _orthogonal(w[points], rows if len(again) == len(w) else rows[points])
            betas = lengths(w).cpu().numpy()
        self.scale = np.maximum(self.scale, np.maximum(abs(alphas), betas))
        finite = np.isfinite(alphas + betas)
        complete_basis = m + 1 >= self.dimension
        self.breakdown = finite & (complete_basis | (betas <= self._rounding * self.scale))
        self.diagonal[:, m], self.coupling[:, m] = alphas, np.where(self.breakdown, 0.0, betas)
        go_on = self.breakdown & ~complete_basis
        if go_on.any():
            # In an exhausted Krylov space the vector that is left is only rounding, so a random vector takes its place.
            points = torch.from_numpy(go_on).to(w.device)
            fresh = self.fresh(step).expand_as(w[points])
            w[points] = _orthogonal(_orthogonal(fresh, rows[points]), rows[points])
            betas[go_on] = lengths(w).cpu().numpy()[go_on]
        # The numbers are rounded to the dtype before they move. The move need not wait for the device, because they lie
        # in pageable memory, which the call has copied when it returns.
        columns = torch.from_numpy(np.stack([self.coupling[:, m], betas])).to(w.dtype)[..., None]
        self._last_coupling, norms = columns.to(w.device, non_blocking=True)
        self.size += 1
        if self.size < self.max_size:
            self.next = self.rows[:, self.num_locked + self.size]
            torch.div(w, norms.clamp(min=torch.finfo(w.dtype).tiny), out=self.next)
        return finite

    def pairs(
        self, points: Int[np.ndarray, " chosen"]
    ) -> tuple[Float[Tensor, "chosen value"], Float[Tensor, "chosen value"], Float[Tensor, "chosen row value"]]:
        """Ritz values, rising, their residuals, and eigenvectors s of T at some points; NaN where T is not finite."""
        m = self.size
        T = np.zeros((len(points), m, m))
        row = np.arange(m - 1)
        T[:, np.arange(m), np.arange(m)] = self.diagonal[points, :m]
        # Only the lower triangle is filled, because eigh reads no other.
        T[:, np.where(row < self.num_restarted, self.num_restarted, row + 1), row] = self.coupling[points, : m - 1]
        bad = torch.from_numpy(~np.isfinite(T).all((1, 2)))
        values, vectors = torch.linalg.eigh(torch.from_numpy(T).masked_fill_(bad[:, None, None], 0.0))
        beta = torch.from_numpy(self.coupling[points, m - 1])
        return values.masked_fill(bad[:, None], torch.nan), beta[:, None] * vectors[:, -1].abs(), vectors

    def vectors(
        self, points: Int[np.ndarray, " chosen"], s: Float[Tensor, "chosen row pair"]
    ) -> Float[Tensor, "chosen pair param"]:
        """The Ritz vectors Q s of some points, as rows."""
        basis = self.rows[:, self.num_locked : self.num_locked + self.size]
        coefficients = s.mT.to(basis)
        out = basis.new_empty(*coefficients.shape[:2], basis.shape[-1])
        for i, point in enumerate(points):  # indexing with all points at once would copy their bases
            torch.matmul(coefficients[i], basis[point], out=out[i])
        return out

    def restart(self, values: Float[Tensor, "point kept"], s: Float[Tensor, "point row kept"]) -> None:
        """Shorten every basis to some of its Ritz vectors and the vector to multiply next, in place."""
        first, m, kept = self.num_locked, self.size, values.shape[-1]
        coefficients = s.mT.to(self.rows)
        width = max(1, RESTART_BYTES // (self.rows.element_size() * kept * len(self.rows)))
        for start in range(0, self.rows.shape[-1], width):
            columns = slice(start, start + width)
            self.rows[:, first : first + kept, columns] = coefficients @ self.rows[:, first : first + m, columns]
        self.rows[:, first + kept] = self.next
        self.next = self.rows[:, first + kept]
        self.diagonal[:, :kept] = values.numpy()
        self.coupling[:, :kept] = self.coupling[:, m - 1, None] * s[:, -1].numpy()
        self.size = self.num_restarted = kept

    def keep(self, points: Int[np.ndarray, " chosen"]) -> None:
        """Go on with some of the points, in rising order, within the memory of the bases."""
        used = self.num_locked + self.size + 1
        move_to_front(self.rows[:, :used], points)
        self.rows = self.rows[: len(points)]
        self.next = self.rows[:, :used][:, -1]
        self._last_coupling = self._last_coupling[torch.from_numpy(points).to(self.rows.device)]
        for name in ("diagonal", "coupling", "scale", "dimension", "breakdown"):
            setattr(self, name, getattr(self, name)[points])

    def retire(self, points: Int[np.ndarray, " chosen"]) -> None:
        """Draw no more random vectors for these points, because their results are no longer read."""
        self.dimension[points] = 0  # so that their bases count as complete


def move_to_front(A: Float[Tensor, "point ..."], points: Sequence[int] | Int[np.ndarray, " chosen"]) -> None:
    """Move some rows of A, in rising order, to its front, in place: a copy could exceed the memory budget."""
    for to, source in enumerate(points):
        if to != source:
            A[to] = A[source]


def _orthogonal(
    w: Float[Tensor, "point param"], rows: Float[Tensor, "point row param"]
) -> Float[Tensor, "point param"]:
    """w without its part in the span of the orthonormal rows."""
    row = w[:, None]
    return torch.baddbmm(row, row @ rows.mT, rows, alpha=-1)[:, 0]
