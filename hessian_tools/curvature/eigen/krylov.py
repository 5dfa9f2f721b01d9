"""Orthonormal Krylov bases that grow by products with H, at all points in lockstep, and the matrix T of H in them.

    H q_m = beta_{m-1} q_{m-1} + alpha_m q_m + beta_m q_{m+1}

T has the alphas and betas as entries and is tridiagonal. It is H restricted to the span of the q. Each of its pairs
T s = ritz s gives a Ritz pair (ritz, Q s) of H. The residual |H Q s - ritz Q s| = beta_m |s_m| is known without a
further product (Paige 1972).

Thick restart (Wu, Simon 2000): a shorter basis is made of some of the Ritz vectors Q s and of q_{m+1}. In this basis T
is diag(ritz) with one more row and column, the beta_m s_m, so that it has the shape of an arrow. The rows that follow
are tridiagonal again.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.selection import rounding
from hessian_tools.curvature.operators.lengths import Shards, inner_products, lengths

# Rows are overwritten by combinations of them in pieces of this many bytes, so that no second basis is needed.
PIECE_BYTES = 2**23
# A vector is orthogonalised a second time if the first time left less than this fraction of its length, because the
# rounding of the removed part is then no longer small compared with the remainder ("twice is enough", Kahan and
# Parlett).
CANCELLATION = 0.5
# On a GPU the host waits for the device only once in so many steps, because the device is idle during the wait. The
# host then decides for all of these steps and all points together.
STEPS_PER_WAIT = {"cuda": 4}


class KrylovBasis:
    """The Krylov bases of all points, and the matrix T of each.

    Arguments:
    first: unit vectors orthogonal to the locked ones, one for each point or one for all. locked: known orthonormal
    rows to which all basis vectors are kept orthogonal, padded with zero rows. max_size: how many vectors fit besides
    the locked ones. fresh: draws the random vector of a given step, the same for all points, with which a point goes on
    after a breakdown, that is, after its Krylov space was exhausted. shards: where processes hold parts of each vector,
    the way to their inner products; None where this process holds whole vectors.

    Attributes:
    rows [point, num_locked + max_size, param]: first the locked vectors, then the ``size`` vectors that T belongs to,
    then ``next``, the vector to multiply next.
    diagonal, coupling: the entries of T, in float64 on the CPU. ``coupling[:, i]`` connects row i to row i + 1 or, for
    the first ``num_restarted`` rows, to row ``num_restarted``. It is 0 where the Krylov space was exhausted.
    breakdown: the points whose Krylov space was exhausted at the last step. num_params: the length of whole vectors.
    dimension: the dimension of the space orthogonal to the locked vectors. scale: the largest entry of T so far, by
    which rounding is recognised.
    steps_per_wait: the most steps after which the host waits for the device and takes decisions; 1 on a CPU.
    restart_size: the size at which only one more vector fits, so that a restart is due; None if a basis of the whole
    space fits.
    """

    def __init__(
        self,
        first: Float[Tensor, "#point param"],
        locked: Float[Tensor, "point locked param"],
        *,
        max_size: int,
        fresh: Callable[[int], Float[Tensor, " param"]],
        shards: Shards | None = None,
    ) -> None:
        num_points, self.num_locked, length = locked.shape
        self.shards, self.num_params = shards, length if shards is None else shards.total
        self.max_size, self.fresh = min(max_size, self.num_params), fresh
        self.dimension = self.num_params - (locked != 0).any(-1).sum(-1).cpu().numpy()
        self.rows = locked.new_empty(num_points, self.num_locked + self.max_size, length)
        self.rows[:, : self.num_locked] = locked
        self.rows[:, self.num_locked] = first
        self.next = self.rows[:, self.num_locked]
        self.size = self.num_restarted = 0
        self.restart_size = self.max_size - 1 if self.max_size < self.num_params else None
        self.diagonal = np.zeros((num_points, self.max_size))
        self.coupling = np.zeros((num_points, self.max_size))
        self.scale = np.zeros(num_points)
        self.breakdown = np.zeros(num_points, dtype=bool)
        self._last_coupling = self.rows.new_zeros(num_points, 1)
        self.steps_per_wait = STEPS_PER_WAIT.get(locked.device.type, 1) if shards is None else 1
        self._pending: list[Tensor] = []  # alpha and beta [2, point] of each step since the last ``settle``
        self._rounding = rounding(locked.dtype)
        self._lengths = lengths if shards is None else shards.lengths
        self._inner_products = inner_products if shards is None else shards.inner_products

    @property
    def exhausted(self) -> Bool[np.ndarray, " point"]:
        """True where the basis spans the whole space, so that its Ritz pairs are eigenpairs."""
        return self.size >= self.dimension

    def advance(self, w: Float[Tensor, "point param"], step: int) -> Bool[np.ndarray, " point"]:
        """Extends every basis by the products w of ``next``; returns False where a number was not finite.

        step: the number of this step, with which ``fresh`` draws the random vector for points with a breakdown.
        """
        m, rows = self.size, self.rows[:, : self.num_locked + self.size + 1]
        alpha = (w * self.next).sum(-1)
        if self.shards is not None:
            alpha = self.shards.inner(alpha)
        if m > self.num_restarted:
            # The two terms of the recurrence are removed first, so that one full orthogonalisation is enough unless
            # much cancels.
            w = torch.addcmul(w, alpha[:, None], self.next, value=-1)
            w.addcmul_(self._last_coupling, rows[:, -2], value=-1)
        # Written as a row vector times a matrix, because torch's batched matrix times column is ten times slower.
        components = self._inner_products(w[:, None], rows)
        w = torch.baddbmm(w[:, None], components, rows, alpha=-1)[:, 0]
        removed = torch.linalg.vector_norm(components[:, 0], dim=-1, dtype=torch.float64)
        alphas, removed, betas = torch.stack([alpha.double(), removed, self._lengths(w)]).cpu().numpy()
        again = np.arange(len(betas))  # the points at which w is orthogonalised a second time
        if m > self.num_restarted:  # the two terms were removed beforehand
            length_before = np.hypot(betas, removed)
            again = np.flatnonzero(betas < CANCELLATION * length_before)
        if len(again):
            points = torch.from_numpy(again).to(w.device)
            w[points] = self._orthogonal(w[points], rows if len(again) == len(w) else rows[points])
            betas = self._lengths(w).cpu().numpy()
        finite = np.isfinite(alphas + betas)
        go_on = self._set_entries(m, alphas, betas, finite)
        # The numbers are rounded to the dtype before they move to the device. The move can be non-blocking although
        # ``columns`` is freed soon: the call returns only after it has copied the numbers out of ordinary memory.
        columns = torch.from_numpy(np.stack([self.coupling[:, m], betas])).to(w.dtype)[..., None]
        self._last_coupling, norms = columns.to(w.device, non_blocking=True)
        self.size += 1
        if self.size < self.max_size:
            self.next = self.rows[:, self.num_locked + self.size]
            torch.div(w, norms.clamp(min=torch.finfo(w.dtype).tiny), out=self.next)
            if go_on.any():  # in an exhausted Krylov space w is only rounding, so a random vector takes its place
                self._draw_next(np.flatnonzero(go_on), step)
        return finite

    @property
    def block(self) -> int:
        """The number of steps, at least 1, until the host must look at their numbers.

        It is ``steps_per_wait``, or fewer if before that a basis becomes complete, or all become full and must be
        restarted.
        """
        unfinished = self.dimension[self.dimension > 0]
        full = self.max_size if self.restart_size is None else self.restart_size
        return max(1, min([self.steps_per_wait, *(int(size) - self.size for size in (full, *unfinished))]))

    def take_steps(
        self, products: Callable[[], Float[Tensor, "point param"]], count: int, step: int
    ) -> tuple[Bool[np.ndarray, " point"], int]:
        """Takes ``count`` steps, at most ``block``, and waits for the device after the last one.

        products: returns the products of ``next``. step: the number of the first step, as for ``advance``. Returns
        False where a number was not finite, and how many of the steps were discarded (see ``settle``).
        """
        if self.steps_per_wait == 1:
            return self.advance(products(), step), 0
        for _ in range(count):
            self.extend(products())
        return self.settle(step)

    def extend(self, w: Float[Tensor, "point param"]) -> None:
        """Extends every basis by the products w of ``next`` without waiting for the device; ``settle`` must follow.

        No more than ``block`` steps may be taken before that.
        """
        rows = self.rows[:, : self.num_locked + self.size + 1]
        alpha = (w * self.next).sum(-1)  # steps_per_wait is 1 where there are shards, so that w is a whole vector
        # Orthogonalised twice at every point, because the host does not know yet whether much has cancelled. The terms
        # of the recurrence need not be removed beforehand then.
        w = self._orthogonal(self._orthogonal(w, rows), rows)
        beta = self._lengths(w)
        self._pending.append(torch.stack([alpha.double(), beta]))
        self.size += 1
        if self.size < self.max_size:
            self.next = self.rows[:, self.num_locked + self.size]
            torch.div(w, beta.to(w.dtype).clamp(min=torch.finfo(w.dtype).tiny)[:, None], out=self.next)

    def settle(self, step: int) -> tuple[Bool[np.ndarray, " point"], int]:
        """Reads the entries of T of all steps since the last call, which waits for the device once.

        step: the number of the first of these steps, as for ``advance``. Returns False where a number was not finite,
        and how many steps were discarded: those after a step in which the Krylov space of some point was exhausted,
        because their vectors at that point come from rounding.
        """
        numbers = torch.stack(self._pending).cpu().numpy()
        self._pending = []
        end, first, finite = self.size, self.size - len(numbers), np.ones(len(self.scale), dtype=bool)
        for m, (alphas, betas) in enumerate(numbers, first):
            finite &= np.isfinite(alphas + betas)
            go_on = self._set_entries(m, alphas, betas, finite)
            # Finished points, whose dimension is 0 (see ``retire``), discard no step of the others.
            if (self.breakdown & (self.dimension > 0)).any():
                self.size = m + 1
                if self.size < self.max_size:
                    self.next = self.rows[:, self.num_locked + self.size]
                    self._draw_next(np.flatnonzero(go_on), step + m - first)
                break
        return finite, end - self.size

    def _set_entries(
        self,
        m: int,
        alphas: Float[np.ndarray, " point"],
        betas: Float[np.ndarray, " point"],
        finite: Bool[np.ndarray, " point"],
    ) -> Bool[np.ndarray, " point"]:
        """Enters alpha_m and beta_m in T and recognises breakdowns.

        Returns True where a breakdown leaves a part of the space to explore, from a random vector.
        """
        self.scale = np.maximum(self.scale, np.maximum(abs(alphas), betas))
        complete_basis = m + 1 >= self.dimension
        self.breakdown = finite & (complete_basis | (betas <= self._rounding * self.scale))
        self.diagonal[:, m], self.coupling[:, m] = alphas, np.where(self.breakdown, 0.0, betas)
        return self.breakdown & ~complete_basis

    def _draw_next(self, points: Int[np.ndarray, " chosen"], step: int) -> None:
        """Puts the random vector of a step, made orthogonal to the basis, in the place of ``next`` at some points."""
        if not len(points):
            return
        chosen = torch.from_numpy(points).to(self.rows.device, non_blocking=True)
        rows = self.rows[chosen, : self.num_locked + self.size]
        w = self._orthogonal(self._orthogonal(self.fresh(step).expand(len(points), -1), rows), rows)
        self.next[chosen] = w / self._lengths(w).to(w.dtype).clamp(min=torch.finfo(w.dtype).tiny)[:, None]

    def pairs(
        self, points: Int[np.ndarray, " chosen"]
    ) -> tuple[Float[Tensor, "chosen value"], Float[Tensor, "chosen value"], Float[Tensor, "chosen row value"]]:
        """Rising Ritz values, their residuals, and eigenvectors s of T at some points; NaN where T is not finite."""
        m = self.size
        T = np.zeros((len(points), m, m))
        row = np.arange(m - 1)
        T[:, np.arange(m), np.arange(m)] = self.diagonal[points, :m]
        # Only the lower triangle is filled, because eigh does not read the upper one.
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
        coefficients = s.mT.to(basis, non_blocking=True)
        out = basis.new_empty(*coefficients.shape[:2], basis.shape[-1])
        for i, point in enumerate(points):  # indexing with all points at once would copy their bases
            torch.matmul(coefficients[i], basis[point], out=out[i])
        return out

    def restart(self, values: Float[Tensor, "point kept"], s: Float[Tensor, "point row kept"]) -> None:
        """Shortens every basis, in place, to some of its Ritz vectors and the vector to multiply next.

        values, s: the Ritz values to keep and their eigenvectors of T.
        """
        first, m, kept = self.num_locked, self.size, values.shape[-1]
        combine_rows(
            self.rows[:, first : first + m],
            s.mT.to(self.rows, non_blocking=True),
            out=self.rows[:, first : first + kept],
        )
        self.rows[:, first + kept] = self.next
        self.next = self.rows[:, first + kept]
        self.diagonal[:, :kept] = values.numpy()
        self.coupling[:, :kept] = self.coupling[:, m - 1, None] * s[:, -1].numpy()
        self.size = self.num_restarted = kept

    def keep(self, points: Int[np.ndarray, " chosen"]) -> None:
        """Keeps only some of the points, given in rising order, by moving them within the memory of the bases."""
        used = self.num_locked + self.size + 1
        move_to_front(self.rows[:, :used], points)
        self.rows = self.rows[: len(points)]
        self.next = self.rows[:, used - 1]
        self._last_coupling = self._last_coupling[torch.from_numpy(points).to(self.rows.device, non_blocking=True)]
        for name in ("diagonal", "coupling", "scale", "dimension", "breakdown"):
            setattr(self, name, getattr(self, name)[points])

    def retire(self, points: Int[np.ndarray, " chosen"]) -> None:
        """Marks points whose results are no longer read, so that no random vectors are drawn for them."""
        self.dimension[points] = 0  # so that their bases count as complete

    def _orthogonal(
        self, w: Float[Tensor, "point param"], rows: Float[Tensor, "point row param"]
    ) -> Float[Tensor, "point param"]:
        """w without its part in the span of the orthonormal rows."""
        row = w[:, None]
        return torch.baddbmm(row, self._inner_products(row, rows), rows, alpha=-1)[:, 0]


def combine_rows(
    rows: Float[Tensor, "point row param"],
    coefficients: Float[Tensor, "point new row"],
    *,
    out: Float[Tensor, "point new param"],
) -> None:
    """Writes coefficients @ rows to out, which may be a part of rows, without a second tensor of that size."""
    width = max(1, PIECE_BYTES // max(1, rows.element_size() * out.shape[0] * out.shape[1]))
    for start in range(0, rows.shape[-1], width):
        columns = slice(start, start + width)
        out[..., columns] = coefficients @ rows[..., columns]


def move_to_front(A: Float[Tensor, "point ..."], points: Sequence[int] | Int[np.ndarray, " chosen"]) -> None:
    """Moves the given rows of A, in rising order, to its front, in place: a copy could exceed the memory budget."""
    for to, source in enumerate(points):
        if to != source:
            A[to] = A[source]
