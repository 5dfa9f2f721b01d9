"""Eigenpairs of a curvature operator at every point, each with the residual that bounds its error."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.deflation import with_copies
from hessian_tools.curvature.eigen.lanczos import lanczos
from hessian_tools.curvature.eigen.rayleigh_ritz import Verified, verified
from hessian_tools.curvature.eigen.selection import Selection, Which
from hessian_tools.curvature.eigen.spectrum import DENSE_BELOW, LOW_RANK, exact_ritz, most_products
from hessian_tools.curvature.engines.memory import memory_budget
from hessian_tools.curvature.html import eigenvalues_html
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.validation import check_whole

Method = Literal["auto", "lanczos", "exact"]

# Copies are searched for unasked up to so many parameters.
COPIES_BELOW = 1024
# Products that a Lanczos run is expected to take for each pair, announced so that an engine can be chosen.
PRODUCTS_PER_PAIR = 6


@dataclass(frozen=True)
class EigenPairs:
    """Some eigenvalues at each point, in the order of ``which``, with their quality.

    residuals: |H v - value v| of the unit vectors v, from true products: an eigenvalue of H lies that near, give or
    take the rounding of those products, some eps times the size of what they are added up from (of H - G: of H, of G).
    converged: residual <= max(rtol * |value|, 64 eps |H|), |H| the largest magnitude seen. Where False
    the pair is still as good as its residual says; raise max_matvecs, or rtol. NaN and False at a point
    whose Hessian is not finite. num_matvecs: products used there, those of the check included.

    Residuals do not say that no eigenvalue was missed; ``complete`` does: that these are the wanted ones of the
    whole spectrum, each as often as it is there, give or take one that is equal to the last of them within its
    tolerance. True where the whole spectrum was computed, or where a search orthogonal to the pairs found nothing
    more (wrong with a chance of about 1e-3). False where nobody looked (copies=False) or the products ran out: one
    start vector cannot see the second copy of a multiple eigenvalue, and may not have shown one yet that lies
    close to the last of the wanted in magnitude (none in 196 points of Conv4 and MLP tasks, at most 3 of 64 on
    spectra made for it).
    """

    values: Float[Tensor, "*point k"]
    residuals: Float[Tensor, "*point k"]
    converged: Bool[Tensor, "*point k"]
    vectors: Float[Tensor, "*point param k"] | None
    num_matvecs: Int[Tensor, "*point"]
    complete: Bool[Tensor, "*point"]

    def _repr_html_(self) -> str:
        return eigenvalues_html(self.values, self.residuals, self.converged)


@dataclass(frozen=True)
class Extremes:
    """The largest in magnitude and both algebraic ends, from one run; num_matvecs counts that run, in each."""

    magnitude: EigenPairs
    largest: EigenPairs
    smallest: EigenPairs


@full_precision
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
    progress: Progress | None = None,
) -> EigenPairs:
    """k eigenpairs of H at every point, by Lanczos stopped on residuals and checked by true products.

    which: "LM" largest magnitude first; "LA" largest first; "SA" smallest first; "BE" both ends,
    largest first: k // 2 from the low end, the rest from the high one. These are different questions
    where H is indefinite. max_matvecs: products a point; None: the larger of 100 and 20 k, twice that with copies.
    Values are Rayleigh quotients of the vectors. The sign of a vector means nothing. Deterministic in seed.

    max_basis: vectors of length param held for each point (with copies, k more); when there are so many, Lanczos
    restarts from the best pairs, at the cost of more products. None: as many as fit in 512 MiB (CUDA: 4 GiB or less),
    never under 2 k + 8 or 20; points go in parts where together they would take more.
    copies: search for eigenvalues missed, see ``EigenPairs.complete``; 50 to 80 % more products, again as many
    for each search that found some. None: up to 1024 parameters, but not above.
    method: "exact" computes the whole spectrum (``spectrum``: dense, or a range finder), "auto" does so up
    to 128 parameters, or 4 k if that is more, unless max_matvecs forbids. progress: called with the number of
    points done and of all points.

    Raises ValueError for k outside 1..param. (Lanczos 1950; Wu, Simon 2000.)

    >>> from hessian_tools.curvature import hessian
    >>> spectrum = torch.tensor([4.0, -3.0, 1.0, 0.5], dtype=torch.float64)
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(4, dtype=torch.float64), spectrum)
    >>> [round(value, 9) for value in top_eigenpairs(H, k=2).values.tolist()]
    [4.0, -3.0]
    """
    wishes = (_wish(which, k, rtol, H.num_params),)
    plan = _plan(H, wishes, seed, max_matvecs, max_basis, copies, method)
    return _run(H, wishes, plan, vectors=vectors, progress=progress)[0]


@full_precision
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
    progress: Progress | None = None,
) -> Extremes:
    """The ``magnitude`` largest in magnitude and ``ends`` of each algebraic end, from one Lanczos run a point.

    ends=0 leaves the ends out (empty). ends_rtol: their tolerance, rtol if None. max_matvecs:
    None: the larger of 100 and 20 (magnitude + 2 ends). Otherwise as :func:`top_eigenpairs`, with
    magnitude + 2 ends for k.

    >>> from hessian_tools.curvature import hessian
    >>> spectrum = torch.tensor([4.0, -3.0, 1.0, 0.5], dtype=torch.float64)
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(4, dtype=torch.float64), spectrum)
    >>> round(float(extremal_eigenpairs(H, magnitude=1).smallest.values), 9)
    -3.0
    """
    ends_rtol = rtol if ends_rtol is None else ends_rtol
    wishes = [_wish("LM", magnitude, rtol, H.num_params)]
    wishes += [_wish(end, ends, ends_rtol, H.num_params, least=0) for end in ("LA", "SA")]
    plan = _plan(H, tuple(wishes), seed, max_matvecs, max_basis, copies, method)
    return Extremes(*_run(H, tuple(wishes), plan, vectors=vectors, progress=progress))


def _wish(which: Which, k: int, rtol: float, num_params: int, least: int = 1) -> Selection:
    if which not in get_args(Which):
        raise ValueError(f"which={which!r} is not known; give one of {', '.join(get_args(Which))}")
    check_whole(k=k)
    if not least <= k <= num_params:
        raise ValueError(f"{k} eigenvalues ({which}) of a matrix with {num_params} rows; give {least} to {num_params}")
    if not rtol >= 0:
        raise ValueError(f"rtol={rtol}: give 0 or more, such as 1e-3")
    return Selection(which, k, rtol)


@dataclass(frozen=True)
class _Plan:
    """How to go about it, the same at all points. max_matvecs: those of the final check apart."""

    seed: int
    exact: bool
    copies: bool
    max_matvecs: int
    max_basis: int


def _plan(
    H: Operator,
    wishes: tuple[Selection, ...],
    seed: int,
    max_matvecs: int | None,
    max_basis: int | None,
    copies: bool | None,
    method: Method,
) -> _Plan:
    """By counts, not by the clock: the same call goes the same way everywhere."""
    pairs, n = sum(wish.k for wish in wishes), H.num_params
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is not known; give one of {', '.join(get_args(Method))}")
    check_whole(max_matvecs=max_matvecs, max_basis=max_basis)
    copies = n <= COPIES_BELOW if copies is None else copies
    budget = (2 if copies else 1) * max(100, 20 * pairs) if max_matvecs is None else max_matvecs
    if budget < 2 * pairs:
        raise ValueError(f"max_matvecs={budget} cannot find and check {pairs} eigenpairs; give {2 * pairs} or more")
    if max_basis is not None and max_basis < min(n, 2 * pairs + 2):
        raise ValueError(f"max_basis={max_basis} cannot restart {pairs} eigenpairs; give {2 * pairs + 2} or more")
    small = n <= max(DENSE_BELOW, LOW_RANK * pairs) and (max_matvecs is None or max_matvecs >= most_products(n) + pairs)
    exact = method == "exact" or (method == "auto" and small)
    rows = _basis_rows(H, pairs, budget) if max_basis is None else max_basis
    return _Plan(seed, exact, copies, budget - pairs, rows)


def _basis_rows(H: Operator, pairs: int, budget: int) -> int:
    """As many as products if they fit in memory for 16 points, or as for 4 pairs + 40 if those fit for one."""
    fit = _memory(H) // _row_bytes(H)
    rows = max(2 * pairs + 8, 20, min(fit, max(4 * pairs + 40, fit // 16)))
    return min(rows, budget + 1, H.num_params)


def _memory(H: Operator) -> int:
    return memory_budget(H.device)


def _row_bytes(H: Operator) -> int:
    return H.num_params * torch.finfo(H.dtype).bits // 8


def _parts(H: Operator, plan: _Plan) -> Iterator[Operator]:
    """The operator at as many points at a time as their bases fit in memory; a list would hold all they keep."""
    at_once = max(1, _memory(H) // (plan.max_basis * _row_bytes(H)))
    for part in H.parts():
        if part.num_points is None or part.num_points <= at_once:
            yield part
        else:
            yield from (part.select(rows) for rows in torch.arange(part.num_points, device="cpu").split(at_once))


def _run(
    H: Operator, wishes: tuple[Selection, ...], plan: _Plan, *, vectors: bool, progress: Progress | None
) -> list[EigenPairs]:
    H.announce(H.num_params if plan.exact else PRODUCTS_PER_PAIR * sum(wish.k for wish in wishes))
    counter = ProgressCounter(H.num_points or 1, progress)
    found = [_part(part, wishes, plan, vectors=vectors, done=counter.add) for part in _parts(H, plan)]
    results = [_joined(columns) for columns in zip(*found, strict=True)]
    return [_single(r) for r in results] if H.num_points is None else results


def _part(
    H: Operator, wishes: tuple[Selection, ...], plan: _Plan, *, vectors: bool, done: Callable[[int], None]
) -> list[EigenPairs]:
    if plan.exact:
        ritz = exact_ritz(H, pairs=sum(wish.k for wish in wishes), seed=plan.seed, done=done)
    else:
        limits = {"seed": plan.seed, "max_steps": plan.max_matvecs, "max_basis": plan.max_basis}
        ritz = lanczos(H, wishes, **limits, done=(lambda count: None) if plan.copies else done)
        if plan.copies:
            ritz = with_copies(H, wishes, ritz, **limits, done=done)
    checked = verified(H, ritz, wishes)
    results = [_pairs(checked, wish, rows, H.dtype) for wish, rows in zip(wishes, checked.rows, strict=True)]
    return results if vectors else [replace(r, vectors=None) for r in results]


def _joined(parts: tuple[EigenPairs, ...]) -> EigenPairs:
    """The pairs of all points from those of some at a time."""
    if len(parts) == 1:
        return parts[0]
    columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(EigenPairs)}
    joined: dict[str, Any] = {name: None if rows[0] is None else torch.cat(rows) for name, rows in columns.items()}
    return EigenPairs(**joined)


def _pairs(checked: Verified, wish: Selection, rows: Int[Tensor, "point k"], dtype: torch.dtype) -> EigenPairs:
    """The pairs of one wish; put in order again, as Rayleigh quotients may differ from Ritz values by rounding."""
    rows = rows.to(checked.values.device)
    rows = rows.gather(-1, wish.pick(checked.values.gather(-1, rows)))
    values, residuals = checked.values.gather(-1, rows), checked.residuals.gather(-1, rows)
    converged = residuals <= wish.tolerance(values, checked.norm, dtype)
    vectors = checked.vectors.gather(-1, rows[:, None].expand(-1, checked.vectors.shape[1], -1))
    return EigenPairs(values, residuals, converged, vectors, checked.num_matvecs, checked.complete)


def _single(pairs: EigenPairs) -> EigenPairs:
    columns = {f.name: getattr(pairs, f.name) for f in fields(EigenPairs)}
    first: dict[str, Any] = {name: None if rows is None else rows[0] for name, rows in columns.items()}
    return EigenPairs(**first)
