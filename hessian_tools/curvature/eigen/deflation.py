"""Searches for missed eigenvalues by Lanczos in the space orthogonal to the known pairs, from a fresh random vector.

From one start vector, Lanczos finds only one copy of a multiple eigenvalue. In the space orthogonal to this copy, the
second copy is an eigenvalue like any other, which Lanczos from a new start vector finds. A bound says how soon: for a
start that is uniform on the sphere, the largest of n eigenvalues exceeds the largest Ritz value after m steps by more
than eps (largest - smallest) with a probability of at most

    1.648 sqrt(n) exp(-sqrt(eps) (2 m - 1))        (Kuczyński, Woźniakowski 1992).

A search that has found nothing stops once this probability is below ``RISK``.
"""

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hessian_tools.curvature.eigen.batched_lanczos import BatchedLanczos, Limits, RitzState, StoppingRule
from hessian_tools.curvature.eigen.krylov import KrylovBasis
from hessian_tools.curvature.eigen.lanczos import TOLERANCE_MARGIN, random_vector
from hessian_tools.curvature.eigen.selection import RitzPairs, Selection, in_order, rounding
from hessian_tools.curvature.operators.lengths import inner_products, vector_norm
from hessian_tools.curvature.operators.operator import Operator

# The probability, at each end of the spectrum, that a search misses a wanted eigenvalue.
RISK = 1e-3


def with_missed_copies(
    H: Operator,
    selections: tuple[Selection, ...],
    pairs: RitzPairs,
    limits: Limits,
    *,
    done: Callable[[int], None] = lambda count: None,
) -> RitzPairs:
    """The pairs of a Lanczos run, together with the pairs that it missed.

    Searches are repeated until one finds nothing. Only points whose pairs have converged are searched, and they are
    complete after a search that found nothing. A point stays incomplete if the first run and the searches together
    reach ``limits.max_steps`` products. done: called, whenever points have finished, with their number.
    """
    total, search = len(pairs.count), 0
    to_search = _can_search(pairs, limits).nonzero()[:, 0]
    done(total - len(to_search))
    while len(to_search):
        search += 1
        part = H if len(to_search) == total else H.select(to_search)
        known = pairs.select(to_search)
        found = _search(part, selections, known, limits, search)
        merged = _merged(known, found)
        again = (found.count > 0) & ~found.complete & _can_search(merged, limits)
        # The points that were not searched this time.
        rest = torch.ones(total, dtype=torch.bool, device="cpu").index_fill_(0, to_search, False).nonzero()[:, 0]
        pairs = in_order([(to_search, merged), (rest, pairs.select(rest))]) if len(rest) else merged
        done(len(again) - int(again.sum()))
        to_search = to_search[again]
    return pairs


def _can_search(pairs: RitzPairs, limits: Limits) -> Bool[Tensor, " point"]:
    """True at points whose pairs have converged, that are not complete and have products left."""
    return pairs.converged & pairs.finite & ~pairs.complete & (pairs.num_matvecs < limits.max_steps)


def _search(H: Operator, selections: tuple[Selection, ...], known: RitzPairs, limits: Limits, search: int) -> RitzPairs:
    """One run at each point in the space orthogonal to the known pairs; its results are the pairs that were missed."""

    def fresh(step: int) -> Float[Tensor, " param"]:
        return random_vector(H, limits.seed, "copies", search, step)

    locked, first = known.vectors, fresh(0).expand(len(known.count), -1)
    for _ in range(2):  # twice, because the first time leaves a rounding error of eps times the part removed
        first = first - (inner_products(first[:, None], locked) @ locked)[:, 0]
    first = first / vector_norm(first, keepdim=True).clamp(min=torch.finfo(first.dtype).tiny)
    basis = KrylovBasis(first, locked, max_size=limits.max_basis, fresh=lambda step: fresh(step + 1))
    # Products have rounding at the scale of |H|, even if H is much smaller on the space orthogonal to the known pairs.
    basis.scale[:] = known.norm
    rule = _NothingMissed(H, selections, known)
    budget = (limits.max_steps - known.num_matvecs).numpy()
    return BatchedLanczos(H, basis, rule, selections, budget).run()


class _NothingMissed(StoppingRule):
    """The rule of a search, which finishes once all Ritz values that would be wanted have converged.

    If there are none, it finishes once the probability that a wanted one exists is small.
    """

    def __init__(self, H: Operator, selections: tuple[Selection, ...], known: RitzPairs) -> None:
        # A further eigenvalue would be wanted above ``high`` or below ``low``.
        ends = [selection.thresholds(known.values, known.count) for selection in selections]
        self.high = torch.stack([high for high, _ in ends]).amin(0)
        self.low = torch.stack([low for _, low in ends]).amax(0)
        self.rtol = max(selection.rtol for selection in selections)
        self.norm, self.rounding, self.num_params = known.norm, rounding(H.dtype), H.num_params
        floor = self.rounding * known.norm
        # A value within the tolerance of a threshold counts as equal to it, and is not wanted.
        self.wanted_above = self.high + self._tolerance(self.high, floor)
        self.wanted_below = self.low - self._tolerance(self.low, floor)

    def excess(self, state: RitzState) -> Float[Tensor, " chosen"]:
        """The largest ratio of a wanted value's residual to its tolerance; if no value is wanted, the ``_risk``."""
        floor = self.rounding * torch.maximum(state.norm, self.norm[state.points])
        ratios = state.residuals / (TOLERANCE_MARGIN * self._tolerance(state.values, floor[:, None]))
        wanted = self.results(state)
        wanted_ratio = ratios.masked_fill(~wanted, 0.0).amax(-1)
        high, low = self.high[state.points], self.low[state.points]
        top, bottom = state.values[:, -1], state.values[:, 0]
        spread = top + state.residuals[:, -1] - bottom + state.residuals[:, 0]
        # If an eigenvalue lay at a threshold, the spectrum would be wider by the gap between the threshold and the
        # outermost Ritz value. An end of the spectrum needs no more steps if its threshold is infinite, if its
        # outermost Ritz value has converged without being wanted, or if the risk is small.
        above = torch.minimum(ratios[:, -1], self._risk(high - top, spread + high - top, state.degree))
        below = torch.minimum(ratios[:, 0], self._risk(bottom - low, spread + bottom - low, state.degree))
        missed = torch.maximum(above.masked_fill(high.isinf(), 0.0), below.masked_fill(low.isinf(), 0.0))
        return torch.where(wanted.any(-1), wanted_ratio, missed).masked_fill(state.exhausted, 0.0)

    def results(self, state: RitzState) -> Bool[Tensor, "chosen value"]:
        """True for the values beyond a threshold, which the earlier runs missed."""
        beyond_high = state.values > self.wanted_above[state.points, None]
        return beyond_high | (state.values < self.wanted_below[state.points, None])

    def complete(self, state: RitzState) -> Bool[Tensor, " chosen"]:
        """True where the search found nothing. Where it found something, another search must follow."""
        return ~self.results(state).any(-1)

    def _tolerance(self, values: Tensor, floor: Tensor) -> Tensor:
        """The difference that counts as zero at each value; for an infinite threshold it is the floor."""
        relative = torch.where(values.isinf(), 0.0, self.rtol * values.abs())
        return torch.maximum(relative, floor)

    def _risk(self, gap: Tensor, spread: Tensor, degree: int) -> Float[Tensor, " chosen"]:
        """The bound of this module's docstring on the probability of a missed eigenvalue, divided by RISK.

        gap: by how much that eigenvalue would exceed the outermost Ritz value. spread: the width of the spectrum then.
        """
        share = (gap / spread).nan_to_num(0.0).clamp(min=0.0, max=1.0)
        return 1.648 * sqrt(self.num_params) * torch.exp(-share.sqrt() * (2 * degree - 1)) / RISK


def _merged(known: RitzPairs, found: RitzPairs) -> RitzPairs:
    """The known pairs together with those that a search found.

    Where the search found nothing or met NaN, only num_matvecs and complete change.
    """
    new = found.finite & (found.count > 0)
    width = found.values.shape[1]
    real = torch.cat([known.real, found.real & new[:, None]], dim=1)
    both = replace(
        known,
        values=torch.cat([known.values, found.values], dim=1),
        vectors=torch.cat([known.vectors, found.vectors], dim=1),
        norm=torch.where(new, torch.maximum(known.norm, found.norm), known.norm),
        num_matvecs=known.num_matvecs + found.num_matvecs,
        converged=torch.where(new, found.converged, known.converged),
        complete=found.complete,
    )
    return both.keep(real) if width else both  # without new columns there is nothing to leave out
