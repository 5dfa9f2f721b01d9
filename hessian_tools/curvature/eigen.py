"""Eigenpairs of a curvature operator at every point, each with the residual that bounds its error."""

from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.html import eigenvalues_html
from hessian_tools.curvature.interface import Operator
from hessian_tools.curvature.lanczos import Ritz, Wanted, Which, lanczos


@dataclass(frozen=True)
class EigenPairs:
    """Some eigenvalues at each point, in the order of ``which``, with their quality.

    residuals: |H v - value v| of the unit vectors v, from true products: an eigenvalue of H lies that near.
    It does not say that none was missed: one start vector may overlook a second copy of a multiple one.
    converged: residual <= max(rtol * |value|, 64 eps |H|), |H| the largest magnitude seen. Where False
    the pair is still as good as its residual says; raise max_matvecs, or rtol. NaN and False at a point
    whose Hessian is not finite. num_matvecs: products used there, those of the check included.
    """

    values: Float[Tensor, "*point k"]
    residuals: Float[Tensor, "*point k"]
    converged: Bool[Tensor, "*point k"]
    vectors: Float[Tensor, "*point param k"] | None
    num_matvecs: Int[Tensor, "*point"]

    def _repr_html_(self) -> str:
        return eigenvalues_html(self.values, self.residuals, self.converged)


@dataclass(frozen=True)
class Extremes:
    """The largest in magnitude and both algebraic ends, from one run; num_matvecs counts that run, in each."""

    magnitude: EigenPairs
    largest: EigenPairs
    smallest: EigenPairs


def top_eigenpairs(
    H: Operator,
    *,
    k: int = 5,
    which: Which = "LM",
    rtol: float = 1e-3,
    vectors: bool = False,
    seed: int = 0,
    max_matvecs: int | None = None,
) -> EigenPairs:
    """k eigenpairs of H at every point, by Lanczos stopped on residuals and checked by true products.

    which: "LM" largest magnitude first; "LA" largest first; "SA" smallest first; "BE" both ends,
    largest first: k // 2 from the low end, the rest from the high one. These are different questions
    where H is indefinite. max_matvecs: products a point; None: the larger of 100 and 20 k. Values are
    Rayleigh quotients of the vectors. The sign of a vector means nothing. Deterministic in seed.
    Raises ValueError for k outside 1..param. (Lanczos 1950.)

    >>> from hessian_tools.curvature import hessian
    >>> spectrum = torch.tensor([4.0, -3.0, 1.0, 0.5], dtype=torch.float64)
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(4, dtype=torch.float64), spectrum)
    >>> [round(value, 9) for value in top_eigenpairs(H, k=2).values.tolist()]
    [4.0, -3.0]
    """
    return _run(H, (_wish(which, k, rtol, H.num_params),), vectors=vectors, seed=seed, max_matvecs=max_matvecs)[0]


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
) -> Extremes:
    """The ``magnitude`` largest in magnitude and ``ends`` of each algebraic end, from one Lanczos run a point.

    ends=0 leaves the ends out (empty). ends_rtol: their tolerance, rtol if None. max_matvecs:
    None: the larger of 100 and 20 (magnitude + 2 ends). Otherwise as :func:`top_eigenpairs`.

    >>> from hessian_tools.curvature import hessian
    >>> spectrum = torch.tensor([4.0, -3.0, 1.0, 0.5], dtype=torch.float64)
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(4, dtype=torch.float64), spectrum)
    >>> round(float(extremal_eigenpairs(H, magnitude=1).smallest.values), 9)
    -3.0
    """
    ends_rtol = rtol if ends_rtol is None else ends_rtol
    wishes = [_wish("LM", magnitude, rtol, H.num_params)]
    wishes += [_wish(end, ends, ends_rtol, H.num_params, least=0) for end in ("LA", "SA")]
    return Extremes(*_run(H, tuple(wishes), vectors=vectors, seed=seed, max_matvecs=max_matvecs))


def _wish(which: Which, k: int, rtol: float, num_params: int, least: int = 1) -> Wanted:
    if which not in get_args(Which):
        raise ValueError(f"which={which!r} is not known; give one of {', '.join(get_args(Which))}")
    if not least <= k <= num_params:
        raise ValueError(f"{k} eigenvalues ({which}) of a matrix with {num_params} rows; give {least} to {num_params}")
    if not rtol >= 0:
        raise ValueError(f"rtol={rtol}: give 0 or more, such as 1e-3")
    return Wanted(which, k, rtol)


def _run(
    H: Operator, wishes: tuple[Wanted, ...], *, vectors: bool, seed: int, max_matvecs: int | None
) -> list[EigenPairs]:
    pairs = sum(wish.k for wish in wishes)
    budget = max(100, 20 * pairs) if max_matvecs is None else max_matvecs
    if budget < 2 * pairs:
        raise ValueError(f"max_matvecs={budget} cannot find and check {pairs} eigenpairs; give {2 * pairs} or more")
    parts = H.parts()
    if len(parts) > 1:
        found = [_run(p, wishes, vectors=vectors, seed=seed, max_matvecs=max_matvecs) for p in parts]
        return [_joined(columns) for columns in zip(*found, strict=True)]
    ritz = lanczos(H, wishes, seed=seed, max_steps=budget - pairs)
    checked = _check(H, ritz)
    results = [_pairs(checked, wish, rows, H.dtype) for wish, rows in zip(wishes, ritz.rows, strict=True)]
    results = results if vectors else [replace(r, vectors=None) for r in results]
    return [_single(r) for r in results] if H.num_points is None else results


def _joined(parts: tuple[EigenPairs, ...]) -> EigenPairs:
    """The pairs of all points from those of some at a time."""
    columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(EigenPairs)}
    joined: dict[str, Any] = {name: None if rows[0] is None else torch.cat(rows) for name, rows in columns.items()}
    return EigenPairs(**joined)


@dataclass(frozen=True)
class _Checked:
    values: Float[Tensor, "point pair"]
    residuals: Float[Tensor, "point pair"]
    vectors: Float[Tensor, "point param pair"]
    norm: Float[Tensor, " point"]
    num_matvecs: Int[Tensor, " point"]


def _check(H: Operator, ritz: Ritz) -> _Checked:
    """Rayleigh quotients and true residuals of all Ritz vectors, by one block product."""
    X = (ritz.vectors / ritz.vectors.norm(dim=-1, keepdim=True)).mT
    HX = H.products(X)
    values = (X * HX).sum(1)
    residuals = (HX - values[:, None] * X).norm(dim=1)
    num_matvecs = (ritz.num_matvecs + X.shape[-1]).to(H.device)
    return _Checked(values, residuals, X, ritz.norm.to(H.device, H.dtype), num_matvecs)


def _pairs(checked: _Checked, wish: Wanted, rows: Int[Tensor, "point k"], dtype: torch.dtype) -> EigenPairs:
    """The pairs of one wish; put in order again, as Rayleigh quotients may differ from Ritz values by rounding."""
    rows = rows.to(checked.values.device)
    rows = rows.gather(-1, wish.pick(checked.values.gather(-1, rows)))
    values, residuals = checked.values.gather(-1, rows), checked.residuals.gather(-1, rows)
    converged = residuals <= wish.tolerance(values, checked.norm, dtype)
    vectors = checked.vectors.gather(-1, rows[:, None].expand(-1, checked.vectors.shape[1], -1))
    return EigenPairs(values, residuals, converged, vectors, checked.num_matvecs)


def _single(pairs: EigenPairs) -> EigenPairs:
    vectors = None if pairs.vectors is None else pairs.vectors[0]
    return EigenPairs(pairs.values[0], pairs.residuals[0], pairs.converged[0], vectors, pairs.num_matvecs[0])
