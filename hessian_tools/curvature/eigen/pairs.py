"""Eigenpairs of a curvature operator at every point, each with the residual that bounds its error."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from hessian_tools.curvature.eigen.batched_lanczos import Limits
from hessian_tools.curvature.eigen.deflation import with_missed_copies
from hessian_tools.curvature.eigen.exact import exact_pairs, is_small, max_products, parts_in_memory, vectors_in_memory
from hessian_tools.curvature.eigen.lanczos import lanczos, random_vector
from hessian_tools.curvature.eigen.rayleigh_ritz import EigenPairs, checked_pairs
from hessian_tools.curvature.eigen.saved_runs import SavedRun
from hessian_tools.curvature.eigen.selection import RitzPairs, Selection, Which
from hessian_tools.curvature.html import eigenvalues_html
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.result import Result
from hessian_tools.validation import check_whole

Method = Literal["auto", "lanczos", "exact"]

# Up to this many parameters, eigenvalues that Lanczos missed are searched for by default.
SEARCHED_PARAMS = 1024
# Where memory is short, an eigenvalue run for 5 pairs holds MOST_VECTORS vectors of length param in all: the basis, the
# pairs, and HELD_BESIDE further vectors, which are theta and its gradient.
MOST_VECTORS, HELD_BESIDE = 25, 2
# The number of products that Lanczos is expected to take for each pair. It is announced, so that an engine is chosen
# for it.
PRODUCTS_PER_PAIR = 6


@dataclass(frozen=True, repr=False)
class Extremes(Result):
    """The pairs of largest magnitude, of largest value and of smallest value, from one run.

    ``num_matvecs`` of each of the three counts all products of this run.
    """

    magnitude: EigenPairs
    largest: EigenPairs
    smallest: EigenPairs

    def _repr_html_(self) -> str:
        parts = {"largest magnitude": self.magnitude, "largest": self.largest, "smallest": self.smallest}
        return "".join(
            eigenvalues_html(pairs.values, pairs.residuals, pairs.converged, f"Extremes, {name} (± residual)")
            for name, pairs in parts.items()
        )


def top_eigenpairs(
    H: Operator,
    *,
    k: int = 5,
    which: Which = "LM",
    rtol: float = 1e-3,
    vectors: bool = False,
    seed: int = 0,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
    copies: bool | None = None,
    method: Method = "auto",
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> EigenPairs:
    """k eigenpairs of H at every point, by Lanczos stopped on residuals and checked by true products.

    which: "LM" for the largest in magnitude, in falling order; "LA" for the largest, in falling order; "SA" for the
    smallest, in rising order; "BE" for both ends, in falling order: k // 2 from the low end, the others from the high
    end. The choices differ where H is indefinite.
    rtol: the residual that a pair may have, as a share of its value. vectors: True if the result shall hold the
    eigenvectors. seed: of the random start vectors; nothing else is random.
    max_matvecs: products allowed at each point. None allows the larger of 100 and 20 k, and twice that with copies.

    max_basis: how many vectors of length param are held for each point (k more with copies). When the basis is full,
    Lanczos restarts from the best pairs, at the cost of more products. None takes no more than fit in 512 MiB (CUDA: 4
    GiB or less), but at least 2 k + 8. Where no more fit, a run for k = 5 holds 25 vectors in all, theta among them;
    see :func:`plan`. The points are computed in parts if the bases of all do not fit together.
    copies: True searches for eigenvalues that Lanczos missed, such as further copies of multiple ones (see
    ``EigenPairs``). The search costs 50 to 80 % more products. Each search that found something is followed by another
    one, which costs as many again. False does not search. None searches up to 1024 parameters.
    method: "lanczos"; or "exact", which computes the whole spectrum from the whole matrix or by a range finder (see
    ``spectrum``). "auto" is "exact" up to 128 parameters, or 4 k if that is more, unless max_matvecs is too small for
    it; otherwise it is "lanczos".
    folder: where the Lanczos run of a single point is saved at each restart. The same call goes on from there after the
    process was ended, and gives the same result; once it has returned, the files are removed. It costs one further
    product, by which a folder that holds the run of another matrix is refused. For a run that takes hours, give a
    ``max_basis`` that restarts in between.
    progress: called with (done, total) points.

    Raises ValueError for k outside 1..param and for options that do not fit. (Lanczos 1950; Wu, Simon 2000.)

    >>> from hessian_tools.curvature import hessian
    >>> spectrum = torch.tensor([4.0, -3.0, 1.0, 0.5], dtype=torch.float64)
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(4, dtype=torch.float64), spectrum)
    >>> [round(value, 9) for value in top_eigenpairs(H, k=2).values.tolist()]
    [4.0, -3.0]
    """
    selections = (checked_selection(which, k, rtol, H.num_params),)
    plan = solver_plan(H, selections, seed, max_matvecs, max_basis, copies, method)
    return _run(H, selections, plan, vectors=vectors, folder=folder, progress=progress)[0]


def extremal_eigenpairs(
    H: Operator,
    *,
    magnitude: int = 5,
    ends: int = 1,
    rtol: float = 1e-3,
    ends_rtol: float | None = None,
    vectors: bool = False,
    seed: int = 0,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
    copies: bool | None = None,
    method: Method = "auto",
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Extremes:
    """Eigenpairs of largest magnitude, of largest and of smallest value, from one Lanczos run at each point.

    magnitude: how many pairs of largest magnitude. ends: how many pairs of largest value, and how many of smallest; may
    be 0. ends_rtol: the tolerance of the latter two; None for rtol. The other arguments are those of
    :func:`top_eigenpairs`, with k = magnitude + 2 ends.

    >>> from hessian_tools.curvature import hessian
    >>> spectrum = torch.tensor([4.0, -3.0, 1.0, 0.5], dtype=torch.float64)
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(4, dtype=torch.float64), spectrum)
    >>> round(float(extremal_eigenpairs(H, magnitude=1).smallest.values), 9)
    -3.0
    """
    ends_rtol = rtol if ends_rtol is None else ends_rtol
    selections = (
        checked_selection("LM", magnitude, rtol, H.num_params),
        checked_selection("LA", ends, ends_rtol, H.num_params, min_k=0),
        checked_selection("SA", ends, ends_rtol, H.num_params, min_k=0),
    )
    plan = solver_plan(H, selections, seed, max_matvecs, max_basis, copies, method)
    return Extremes(*_run(H, selections, plan, vectors=vectors, folder=folder, progress=progress))


def checked_selection(which: Which, k: int, rtol: float, num_params: int, min_k: int = 1) -> Selection:
    """The selection of these options; raises ValueError where they do not fit a matrix of num_params rows."""
    if which not in get_args(Which):
        raise ValueError(f"which={which!r} is not known; give one of {', '.join(get_args(Which))}")
    check_whole(k=k)
    if not min_k <= k <= num_params:
        raise ValueError(
            f"{k} eigenvalues ({which}) were requested of a matrix with {num_params} rows; give {min_k} to {num_params}"
        )
    if not rtol >= 0:
        raise ValueError(f"rtol={rtol}: give 0 or more, such as 1e-3")
    return Selection(which, k, rtol)


@dataclass(frozen=True)
class SolverPlan:
    """How the pairs are computed, at all points in the same way.

    exact: True computes the whole spectrum, False runs Lanczos. copies: True searches for missed eigenvalues. limits:
    of the Lanczos run, without the products of the final check. num_products: how many products are announced to H.
    """

    exact: bool
    copies: bool
    limits: Limits
    num_products: int


def solver_plan(
    H: Operator,
    selections: tuple[Selection, ...],
    seed: int = 0,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
    copies: bool | None = None,
    method: Method = "auto",
) -> SolverPlan:
    """Makes the plan, from counts and not from timings, so that repeated calls do the same.

    Raises ValueError for limits that are too small for the pairs.
    """
    pairs, n = sum(selection.k for selection in selections), H.num_params
    copies = n <= SEARCHED_PARAMS if copies is None else copies
    limits = lanczos_limits(pairs, n, vectors_in_memory(H), seed, max_matvecs, max_basis, copies=copies)
    affordable = max_matvecs is None or max_matvecs >= max_products(n) + pairs
    exact = method == "exact" or (method == "auto" and is_small(n, pairs) and affordable)
    return SolverPlan(exact, copies, limits, num_products=n if exact else PRODUCTS_PER_PAIR * pairs)


def lanczos_limits(
    pairs: int,
    num_params: int,
    fit: int,
    seed: int,
    max_matvecs: int | None,
    max_basis: int | None,
    *,
    copies: bool,
) -> Limits:
    """The limits of a Lanczos run for this number of pairs, without the products of the final check.

    num_params: the number of rows of the matrix. fit: how many vectors fit in memory. Raises ValueError if max_matvecs
    or max_basis is too small for the pairs.
    """
    budget = (2 if copies else 1) * max(100, 20 * pairs) if max_matvecs is None else max_matvecs
    if budget < 2 * pairs:
        raise ValueError(f"max_matvecs={budget} cannot find and check {pairs} eigenpairs; give {2 * pairs} or more")
    if max_basis is not None and max_basis < min(num_params, 2 * pairs + 2):
        raise ValueError(f"max_basis={max_basis} cannot restart {pairs} eigenpairs; give {2 * pairs + 2} or more")
    if max_basis is None:
        max_basis = min(basis_size(fit, pairs), budget + 1, num_params)
    return Limits(seed, budget - pairs, max_basis)


def basis_size(fit: int, pairs: int) -> int:
    """How many basis vectors are held for each point. fit: how many vectors fit in memory."""
    # What restarts need at least. For few pairs it is about 20, as long as MOST_VECTORS are not exceeded.
    smallest = max(2 * pairs + 8, min(20, MOST_VECTORS - pairs - HELD_BESIDE))
    # As many as fit for 16 points at once, which may be more than there are products, or 4 pairs + 40 if that is more.
    enough = max(4 * pairs + 40, fit // 16)
    return max(smallest, min(fit - pairs - HELD_BESIDE, enough))


def _run(
    H: Operator,
    selections: tuple[Selection, ...],
    plan: SolverPlan,
    *,
    vectors: bool,
    folder: str | Path | None,
    progress: Progress | None,
) -> list[EigenPairs]:
    """The pairs of each selection, computed for as many points at a time as their bases fit in memory."""
    H.announce(plan.num_products)
    count = ProgressCounter(H.num_points or 1, progress)
    saved = None
    if folder is not None and not plan.exact:
        saved = SavedRun(Path(folder), H, selections, plan.limits, random_vector(H, 0, "saved run"))
    parts = []
    for part in parts_in_memory(H, plan.limits.max_basis):
        pairs = checked_pairs(part, _ritz_pairs(part, selections, plan, count, saved), selections)
        parts.append(pairs if vectors else [replace(each, vectors=None) for each in pairs])
    if saved is not None:
        saved.remove()
    return [joined(pieces, single=H.num_points is None) for pieces in zip(*parts, strict=True)]


def _ritz_pairs(
    H: Operator, selections: tuple[Selection, ...], plan: SolverPlan, count: ProgressCounter, saved: SavedRun | None
) -> RitzPairs:
    """The wanted pairs at every point by the method of the plan, before their check by true products."""
    if plan.exact:
        return exact_pairs(H, selections, seed=plan.limits.seed, done=count.add)
    if not plan.copies:
        return lanczos(H, selections, plan.limits, done=count.add, saved=saved)
    found = lanczos(H, selections, plan.limits, saved=saved)
    return with_missed_copies(H, selections, found, plan.limits, done=count.add)


def joined(parts: Sequence[EigenPairs], *, single: bool) -> EigenPairs:
    """The pairs of all points, from the pairs of parts of the points. single: True drops the axis of the only point."""
    # ``vars`` gives the fields alone, and in order, as long as no value is cached on an instance.
    columns = zip(*[vars(part).values() for part in parts], strict=True)
    together: list[Any] = [None if pieces[0] is None else torch.cat(pieces) for pieces in columns]
    return EigenPairs(*[column[0] if single and column is not None else column for column in together])
