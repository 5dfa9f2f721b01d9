"""Was an eigenvalue missed? A search in what is orthogonal to the pairs found, from a fresh random vector.

One start vector sees one copy of a multiple eigenvalue. Orthogonal to the first copy the second is an
eigenvalue like any other, which Lanczos from a new start would show. How soon, is known: for a start uniform on the
sphere, the largest of n eigenvalues is above the largest Ritz value of m steps by the share eps of
(largest - smallest) with a probability of at most 1.648 sqrt(n) exp(-sqrt(eps) (2 m - 1))
(Kuczyński, Woźniakowski 1992). So a search that has found nothing may stop when that is below RISK.
"""

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from hessian_tools.curvature.eigen.batched_lanczos import BatchedLanczos, Ritz, RitzState, StoppingRule
from hessian_tools.curvature.eigen.krylov import KrylovBasis
from hessian_tools.curvature.eigen.lanczos import STEER, random_vector, rounding
from hessian_tools.curvature.eigen.selection import Selection
from hessian_tools.curvature.operators.operator import Operator

# The chance, at either end, that a search overlooks an eigenvalue that belongs among the wanted.
RISK = 1e-3


def with_copies(
    H: Operator,
    wishes: tuple[Selection, ...],
    found: list[Ritz],
    *,
    seed: int,
    max_steps: int,
    max_basis: int,
    done: Callable[[int], None] = lambda count: None,
) -> list[Ritz]:
    """The pairs found, with those that were missed: searched for again and again until a search finds none.

    A point that met its wishes is complete then; one whose products (``max_steps``, the first run's included)
    ran out is not, nor one that is not finite. done: as in ``lanczos``.
    """
    found, search = list(found), 0
    open_points = [i for i, ritz in enumerate(found) if _worth_searching(ritz, max_steps)]
    done(len(found) - len(open_points))
    while open_points:
        search += 1
        here = H if len(open_points) == len(found) else H.select(torch.tensor(open_points, device="cpu"))
        known = [found[i] for i in open_points]
        more = _search(here, wishes, known, seed, search, max_steps, max_basis)
        for i, old, new in zip(open_points, known, more, strict=True):
            found[i] = _merged(old, new)
        still = [i for i, new in zip(open_points, more, strict=True) if len(new.values) and not new.complete]
        still = [i for i in still if _worth_searching(found[i], max_steps)]
        done(len(open_points) - len(still))
        open_points = still
    return found


def _worth_searching(ritz: Ritz, max_steps: int) -> bool:
    return not (ritz.complete or ritz.broken or ritz.num_matvecs >= max_steps) and ritz.met


def _search(
    H: Operator,
    wishes: tuple[Selection, ...],
    known: list[Ritz],
    seed: int,
    search: int,
    max_steps: int,
    max_basis: int,
) -> list[Ritz]:
    """One run at each point in the complement of what is known there."""
    most = max(len(ritz.values) for ritz in known)
    locked = torch.stack([pad(ritz.vectors, (0, 0, 0, most - len(ritz.vectors))) for ritz in known])

    def fresh(step: int) -> Float[Tensor, " param"]:
        return random_vector(H, seed, "copies", search, step)

    first = _complement(fresh(0).expand(len(known), -1), locked)
    basis = KrylovBasis(first, locked, room=max_basis, fresh=lambda step: fresh(step + 1))
    basis.scale[:] = [ritz.norm for ritz in known]  # what is rounding beside the eigenvalues taken out
    budget = np.array([max_steps - ritz.num_matvecs for ritz in known])
    aim = _Copies(wishes, known, H)
    return BatchedLanczos(H, basis, aim, wishes, budget).to_the_end(lambda count: None)


def _complement(
    w: Float[Tensor, "point param"], locked: Float[Tensor, "point locked param"]
) -> Float[Tensor, "point param"]:
    for _ in range(2):
        w = w - ((w[:, None] @ locked.mT) @ locked)[:, 0]
    return w / w.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)


class _Copies(StoppingRule):
    """Done when all that beats the wanted is known to their tolerance; or, if nothing does, when nothing can."""

    def __init__(self, wishes: tuple[Selection, ...], known: list[Ritz], H: Operator) -> None:
        bars = torch.tensor([_bars(wishes, ritz, H.dtype) for ritz in known], dtype=torch.float64, device="cpu")
        self.high, self.low, self.slack_high, self.slack_low = bars.unbind(-1)
        self.norm = torch.tensor([ritz.norm for ritz in known], dtype=torch.float64, device="cpu")
        self.rtol, self.num_params, self.dtype = max(w.rtol for w in wishes), H.num_params, H.dtype

    def missed(self, look: RitzState) -> Float[Tensor, " chosen"]:
        ratios = look.residuals / self._allowed(look)
        beating = self._beating(look)
        found = ratios.masked_fill(~beating, 0.0).amax(-1)
        high, low = self.high[look.points], self.low[look.points]
        top, bottom = look.values[:, -1], look.values[:, 0]
        # Above an end that cannot be beaten, or whose best value is known well enough, there is nothing to search.
        spread = top + look.residuals[:, -1] - bottom + look.residuals[:, 0]
        above = torch.minimum(ratios[:, -1], self._risk(high - top, spread + high - top, look.degree))
        below = torch.minimum(ratios[:, 0], self._risk(bottom - low, spread + bottom - low, look.degree))
        none = torch.maximum(above.masked_fill(high.isinf(), 0.0), below.masked_fill(low.isinf(), 0.0))
        return torch.where(beating.any(-1), found, none).masked_fill(look.whole, 0.0)

    def taken(self, look: RitzState, row: int) -> Int[Tensor, " pair"]:
        return self._beating(look)[row].nonzero()[:, 0]

    def complete(self, look: RitzState, row: int) -> bool:
        return not bool(self._beating(look)[row].any())

    def _beating(self, look: RitzState) -> Tensor:
        above = look.values > (self.high + self.slack_high)[look.points, None]
        return above | (look.values < (self.low - self.slack_low)[look.points, None])

    def _allowed(self, look: RitzState) -> Float[Tensor, "chosen value"]:
        floor = rounding(self.dtype) * torch.maximum(look.norm, self.norm[look.points])
        return STEER * torch.maximum(self.rtol * look.values.abs(), floor[:, None])

    def _risk(self, gap: Tensor, spread: Tensor, degree: int) -> Float[Tensor, " chosen"]:
        """The chance to have overlooked an eigenvalue beyond the bar, over RISK."""
        share = (gap / spread).nan_to_num(0.0).clamp(min=0.0, max=1.0)
        return 1.648 * sqrt(self.num_params) * torch.exp(-share.sqrt() * (2 * degree - 1)) / RISK


def _bars(wishes: tuple[Selection, ...], ritz: Ritz, dtype: torch.dtype) -> tuple[float, float, float, float]:
    """Above the first or below the second something belongs among the wanted; and what counts as equal to them."""
    bars = [wish.bars(ritz.values) for wish in wishes]
    high, low = min(bar for bar, _ in bars), max(bar for _, bar in bars)
    rtol, floor = max(wish.rtol for wish in wishes), rounding(dtype) * ritz.norm
    slack = [max(rtol * abs(bar), floor) if abs(bar) < torch.inf else floor for bar in (high, low)]
    return high, low, slack[0], slack[1]


def _merged(old: Ritz, new: Ritz) -> Ritz:
    count = old.num_matvecs + new.num_matvecs
    if new.broken or len(new.values) == 0:
        return replace(old, num_matvecs=count, complete=new.complete)
    values, vectors = torch.cat([old.values, new.values]), torch.cat([old.vectors, new.vectors])
    return Ritz(values, vectors, max(old.norm, new.norm), count, new.met, new.complete)
