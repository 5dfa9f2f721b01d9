"""Lanczos runs at many points in lockstep, used for the first run and for the searches for missed eigenvalues."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.krylov import KrylovBasis
from hessian_tools.curvature.eigen.selection import RitzPairs, Selection, in_order, true_columns
from hessian_tools.curvature.operators.operator import Operator

# A restart keeps the wanted Ritz pairs and this fraction of the others. Lanczos would find the others again, but
# keeping some of them speeds up the convergence of the wanted ones.
KEPT_SHARE = 0.4
# Ritz pairs are computed again after this fraction of the predicted number of steps until convergence. Residuals fall
# faster and faster, so the predicted number is too large.
PREDICTION_SHARE = 0.7
# Up to FEW_PARAMS parameters, computing the Ritz pairs costs as much as several products. It is then done only at steps
# that are multiples of STRIDE, for all points together.
FEW_PARAMS, STRIDE = 2**13, 4


@dataclass(frozen=True)
class Limits:
    """Limits of an eigenvalue run.

    seed: of the random vectors. max_steps: the most products at each point. max_basis: the most basis vectors.
    """

    seed: int
    max_steps: int
    max_basis: int


@dataclass(frozen=True)
class RitzState:
    """The Ritz pairs of some points after some steps, with values in ascending order; float64 on the CPU.

    points: the indices of these points among all points of the run. norm: |H|, the largest magnitude of a Ritz value.
    s: the coefficients of the Ritz vectors in the basis. breakdown: True at points whose Krylov space was exhausted at
    the last step (beta = 0). had_breakdown: True where that has happened at any step. exhausted: True where the basis
    spans the whole space.
    degree: the basis contains p(H) times the start vector for all polynomials p up to this degree. It is the number of
    products whose vectors were kept, but no more than the number before the first restart.
    """

    points: Int[Tensor, " chosen"]
    values: Float[Tensor, "chosen value"]
    residuals: Float[Tensor, "chosen value"]
    norm: Float[Tensor, " chosen"]
    s: Float[Tensor, "chosen row value"]
    breakdown: Bool[Tensor, " chosen"]
    had_breakdown: Bool[Tensor, " chosen"]
    exhausted: Bool[Tensor, " chosen"]
    degree: int


class StoppingRule(ABC):
    """An interface: decides when a point has finished, and which pairs are its result.

    memory: what the rule knows from earlier steps, which is saved with the run; empty for most rules.
    """

    memory = torch.empty(0, device="cpu")

    @abstractmethod
    def excess(self, state: RitzState) -> Float[Tensor, " chosen"]:
        """The factor by which each point misses what the rule demands; at 1 or less the point has finished."""

    @abstractmethod
    def results(self, state: RitzState) -> Bool[Tensor, "chosen value"]:
        """True for the pairs that are the result of a point if it finishes now."""

    @abstractmethod
    def complete(self, state: RitzState) -> Bool[Tensor, " chosen"]:
        """True where no wanted eigenvalue can be missing; used only at points whose excess is 1 or less."""


class BatchedLanczos:
    """One Lanczos run at every point, each stopped by the rule or by the point's own limit of products.

    A finished point keeps its place in the basis until half of the points have finished; then the unfinished points are
    moved together. The operator is restricted to the unfinished points immediately, so that no product is wasted.

    Arguments:
    H: the operator at all points. max_steps: the limit of products at each point. done: called, whenever points have
    finished, with their number. restarted: called with the run after each restart.

    Attributes:
    points: the indices, among all points of the run, of the points that have a place in the basis. running: which of
    them are unfinished. ``H`` is the operator at the unfinished points.
    steps: the number of products at an unfinished point. discarded: how many of these products gave vectors that were
    not kept (see ``KrylovBasis.settle``).
    next_check: the step at which the Ritz pairs of each point are computed next. last_check, last_excess: the step at
    which they were last computed, and what the rule's ``excess`` was then.
    """

    def __init__(
        self,
        H: Operator,
        basis: KrylovBasis,
        rule: StoppingRule,
        selections: tuple[Selection, ...],
        max_steps: Int[np.ndarray, " point"],
        done: Callable[[int], None] = lambda count: None,
        restarted: "Callable[[BatchedLanczos], None]" = lambda run: None,
    ) -> None:
        self.H, self.basis, self.rule, self.selections, self.max_steps = H, basis, rule, selections, max_steps
        self.done, self.restarted = done, restarted
        num_points = len(max_steps)
        self.points = np.arange(num_points)
        self.running = np.ones(num_points, dtype=bool)
        # A smaller basis has fewer Ritz pairs than a selection wants. The first check comes after twice as many steps.
        self.min_size = max(selection.k for selection in selections)
        self.stride = STRIDE if basis.num_params <= FEW_PARAMS else basis.steps_per_wait
        self.next_check = _next_multiple(np.full(num_points, 2 * self.min_size), self.stride)
        self.last_check, self.last_excess = np.zeros(num_points, dtype=int), np.full(num_points, np.inf)
        self.had_breakdown = np.zeros(num_points, dtype=bool)
        self.steps = self.discarded = 0
        # The positions of the unfinished points in the basis, on the device; None stands for all.
        self._running_rows: Tensor | None = None
        self.finished: list[tuple[Tensor, RitzPairs]] = []  # points that finished together, and their results

    def run(self) -> RitzPairs:
        """The result of every point."""
        while self.running.any():
            self.step()
        return in_order(self.finished)

    def step(self) -> None:
        """Computes a product at every unfinished point; on a GPU a block of products, after which the host waits.

        At least one point must be running.
        """
        basis, count = self.basis, 1
        # A breakdown discards the later steps of a block, and after one another may follow at each step. From then on
        # single steps are taken.
        if basis.steps_per_wait > 1 and not self.had_breakdown[self.running].any():
            count = min(basis.block, int(self.max_steps[self.running].min()) - self.steps)
        finite, discarded = basis.take_steps(self._products, count, self.steps)
        self.steps, self.discarded = self.steps + count, self.discarded + discarded
        if (self.running & ~finite).any():
            self._finish_nonfinite(np.flatnonzero(self.running & ~finite))
        self.had_breakdown |= basis.breakdown
        due = basis.breakdown | (self.next_check <= self.steps) | (self.steps == self.max_steps)
        if (self.running & due).any():
            self._check(np.flatnonzero(self.running & due))
        if not self.running.any():
            return
        if 2 * self.running.sum() <= len(self.running):
            self._drop_finished()
        if basis.size == basis.restart_size:
            self._restart()

    def _products(self) -> Float[Tensor, "point param"]:
        """H times the next vector of every point; zeros at finished points."""
        following = self.basis.next
        where = self._running_rows
        if where is None:
            return self.H.products(following[..., None])[..., 0]
        products = self.H.products(following[where, :, None])[..., 0]
        return torch.zeros_like(following).index_copy_(0, where, products)

    def _check(self, rows: Int[np.ndarray, " chosen"]) -> None:
        """Computes the Ritz pairs at some points, and finishes those that satisfy the rule or have no products left."""
        at_limit = self.steps >= self.max_steps[rows]
        if self.basis.size < self.min_size and not at_limit.any():
            return
        values, residuals, s = self.basis.pairs(rows)
        state = RitzState(
            points=torch.from_numpy(self.points[rows]),
            values=values,
            residuals=residuals,
            norm=values.abs().amax(-1),
            s=s,
            breakdown=torch.from_numpy(self.basis.breakdown[rows]),
            had_breakdown=torch.from_numpy(self.had_breakdown[rows]),
            exhausted=torch.from_numpy(self.basis.exhausted[rows]),
            degree=min(self.steps - self.discarded, self.basis.max_size - 1),
        )
        excess = self.rule.excess(state).nan_to_num(nan=torch.inf)
        self._schedule(rows, excess.numpy())
        finishing = (excess <= 1) | torch.from_numpy(at_limit)
        if finishing.any():
            self._finish(rows, state, excess <= 1, finishing)

    def _schedule(self, rows: Int[np.ndarray, " chosen"], excess: Float[np.ndarray, " chosen"]) -> None:
        """Sets the step of the next check: shortly before the excess is predicted to reach 1."""
        with np.errstate(all="ignore"):
            # The residuals fall by about the same factor at every step, so their logarithm falls along a line.
            rate = np.log(self.last_excess[rows] / excess) / (self.steps - self.last_check[rows])
            # Without a usable rate the next check comes after an eighth of the steps so far.
            wait = np.where((rate > 0) & np.isfinite(rate), PREDICTION_SHARE * np.log(excess) / rate, self.steps / 8)
        # A prediction from two checks is rough, so the wait is at most a quarter of the steps so far.
        steps = self.steps + np.clip(wait, 1, 1 + self.steps // 4).astype(int)
        self.next_check[rows] = _next_multiple(steps, self.stride)
        self.last_check[rows], self.last_excess[rows] = self.steps, excess

    def _finish(self, rows: Int[np.ndarray, " chosen"], state: RitzState, satisfied: Tensor, finishing: Tensor) -> None:
        """Stores the results of the points of ``state`` that finish. satisfied: True where the rule is satisfied."""
        columns, count = true_columns(self.rule.results(state)[finishing])
        padding = torch.arange(columns.shape[1], device="cpu") >= count[:, None]
        s = state.s[finishing].gather(-1, columns[:, None].expand(-1, state.s.shape[1], -1))
        rows = rows[finishing.numpy()]
        pairs = RitzPairs(
            values=state.values[finishing].gather(-1, columns).masked_fill(padding, 0.0),
            vectors=self.basis.vectors(rows, s.masked_fill(padding[:, None], 0.0)),
            count=count,
            norm=state.norm[finishing],
            num_matvecs=torch.full_like(count, self.steps),
            converged=satisfied[finishing],
            complete=(satisfied & self.rule.complete(state))[finishing],
            finite=torch.ones_like(satisfied[finishing]),
        )
        self._stop(rows, pairs)

    def _finish_nonfinite(self, rows: Int[np.ndarray, " chosen"]) -> None:
        """Stores NaN as the result of points where a product was not finite."""
        nan = torch.full((len(rows), 1), torch.nan, dtype=torch.float64, device="cpu")
        vectors = self.basis.rows.new_full((len(rows), 1, self.H.num_params), torch.nan)
        count = torch.ones(len(rows), dtype=torch.long, device="cpu")
        num_matvecs, false = torch.full_like(count, self.steps), torch.zeros_like(count, dtype=torch.bool)
        self._stop(rows, RitzPairs(nan, vectors, count, nan[:, 0], num_matvecs, false, false, false))

    def _stop(self, rows: Int[np.ndarray, " chosen"], pairs: RitzPairs) -> None:
        """Stores the results of some points and makes no further products at them."""
        self.finished.append((torch.from_numpy(self.points[rows]), pairs))
        points_of_H = np.flatnonzero(self.running)
        self.running[rows] = False
        self.basis.retire(rows)
        self._move_running_rows()
        stay = torch.from_numpy(np.flatnonzero(self.running[points_of_H]))
        if 0 < len(stay) < len(points_of_H):
            self.H = self.H.select(stay)
        self.done(len(rows))

    def _drop_finished(self) -> None:
        """Moves the unfinished points to the front of all arrays and drops the others."""
        rows = np.flatnonzero(self.running)
        self.basis.keep(rows)
        for name in ("points", "running", "next_check", "last_check", "last_excess", "had_breakdown", "max_steps"):
            setattr(self, name, getattr(self, name)[rows])
        self._move_running_rows()

    def _move_running_rows(self) -> None:
        """Moves the positions of the unfinished points to the device once, so that no product has to wait for them."""
        rows = torch.from_numpy(np.flatnonzero(self.running))
        self._running_rows = None if self.running.all() else rows.to(self.basis.rows.device, non_blocking=True)

    def _restart(self) -> None:
        """Restarts from the wanted Ritz pairs and the next ones in the order of preference, see KEPT_SHARE."""
        values, _, s = self.basis.pairs(np.arange(len(self.points)))
        # The rank of each value in the selection that wants it most.
        preference = torch.stack([selection.preference(values) for selection in self.selections if selection.k]).amin(0)
        wanted = sum(selection.k for selection in self.selections)
        kept = wanted + int(KEPT_SHARE * (self.basis.size - wanted))
        if self.basis.size - kept > self.basis.steps_per_wait:
            kept += (self.basis.size - kept) % self.basis.steps_per_wait  # so that whole blocks fill the basis again
        columns = preference.sort(dim=-1, stable=True).indices[:, :kept]
        self.basis.restart(values.gather(-1, columns), s.gather(-1, columns[:, None].expand(-1, s.shape[1], -1)))
        self.restarted(self)


def _next_multiple(steps: Int[np.ndarray, " point"], stride: int) -> Int[np.ndarray, " point"]:
    """The smallest multiple of the stride that is not below steps."""
    return -(-steps // stride) * stride
