"""Every eigenvalue at every point, for networks small enough."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from hessian_tools.curvature.eigen.batched_lanczos import Ritz
from hessian_tools.curvature.eigen.range_finder import BLOCK, Compressed, compressed
from hessian_tools.curvature.eigen.selection import ROUNDING
from hessian_tools.curvature.eigen.small_eigh import eigh, eigvalsh
from hessian_tools.curvature.engines.memory import memory_budget
from hessian_tools.curvature.operators.lengths import lengths
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.parts import row_products
from hessian_tools.curvature.operators.terms import magnitude, terms
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.rng import stream
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.validation import check_whole

Method = Literal["auto", "dense", "range finder"]

# Up to so many parameters the whole matrix costs less than looking for a small range.
DENSE_BELOW = 128
# A range of up to this share of the parameters is cheaper than the whole matrix.
LOW_RANK = 4
# Bytes of one whole matrix that are not refused.
LARGEST_MATRIX = 2**33
# Random vectors by which the terms of a sum are measured.
TERM_PROBES = 4


@dataclass(frozen=True)
class Spectrum:
    """All eigenvalues at each point, by falling magnitude, with a bound on their error.

    error: no eigenvalue is further from the one stated than this, those stated as zero included: what the range
    finder left out (which holds but for a chance of 1e-6 a point), and rounding, 64 eps |H|, of a sum that of its
    terms. rank: eigenvalues larger than that in magnitude. vectors: unit columns of the first ones, where asked for;
    a column of zeros where the eigenvalue is one of the zeros that no vector was computed for. dense: made of the
    whole matrix; else by the range finder. NaN, and rank 0, at a point whose Hessian is not finite.
    """

    values: Float[Tensor, "*point param"]
    error: Float[Tensor, "*point"]
    rank: Int[Tensor, "*point"]
    dense: Bool[Tensor, "*point"]
    vectors: Float[Tensor, "*point param k"] | None
    num_matvecs: Int[Tensor, "*point"]

    @property
    def trace(self) -> Float[Tensor, "*point"]:
        """The sum of the eigenvalues."""
        return self.values.sum(-1)

    @property
    def frobenius(self) -> Float[Tensor, "*point"]:
        """Frobenius norm: the root of the sum of squares."""
        return lengths(self.values).to(self.values)


@full_precision
def spectrum(
    H: Operator,
    *,
    method: Method = "auto",
    rtol: float | None = None,
    max_rank: int | None = None,
    vectors: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Spectrum:
    """All eigenvalues of H at every point: from the whole matrix, or by a range finder where the rank is small.

    "auto": the whole matrix up to 128 parameters; above that the range finder up to max_rank (None: a quarter of
    the parameters), and the whole matrix at points where that does not suffice. "range finder": NaN there instead.
    rtol: what the range finder may leave out, as a share of the Frobenius norm; None: rounding. The whole matrix
    costs param products and param^3 work a point, the range finder 2 (rank + 32) products and param rank^2. Small
    eigenvalue problems are solved in float64. progress: called with the points done and all points. Raises
    ValueError where the whole matrix would need more than 8 GiB a point.

    >>> from hessian_tools.curvature import hessian
    >>> a = torch.tensor([4.0, -3.0, 1.0, 0.0])
    >>> found = spectrum(hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(4), a))
    >>> found.values.tolist(), int(found.rank), float(found.trace)
    ([4.0, -3.0, 1.0, 0.0], 3, 2.0)
    """
    _check_options(method, rtol, max_rank)
    rtol = ROUNDING * torch.finfo(H.dtype).eps if rtol is None else rtol
    rank = max(1, H.num_params // LOW_RANK) if max_rank is None else min(max_rank, H.num_params)
    done = ProgressCounter(H.num_points or 1, progress).add
    points = exact_points(H, method=method, rtol=rtol, max_rank=rank, vectors=vectors, seed=seed, done=done)
    return _together(H, points if len(terms(H)) == 1 else _with_rounding_of_terms(H, points, seed), vectors=vectors)


@dataclass(frozen=True)
class ExactPoint:
    """All eigenvalues of one point that are not zero to within error, by falling magnitude; vectors as rows."""

    values: Float[Tensor, " value"]
    vectors: Float[Tensor, "value param"] | None
    error: float
    dense: bool
    num_matvecs: int


def exact_points(
    H: Operator,
    *,
    method: Method = "auto",
    rtol: float,
    max_rank: int,
    vectors: bool,
    seed: int,
    done: Callable[[int], None],
) -> list[ExactPoint]:
    """What ``spectrum`` finds, point by point; done: told each time how many points are."""
    found: list[ExactPoint] = []
    whole = method == "dense" or (method == "auto" and H.num_params <= DENSE_BELOW)
    H.announce(H.num_params if whole else max_rank)
    for part in _parts(H, H.num_params if whole else max_rank):
        if whole:
            found += _dense(part, vectors=vectors, done=done)
        else:
            found += _by_range(part, rtol, max_rank, vectors, seed, done, fall_back=method == "auto")
    return found


def _check_options(method: Method, rtol: float | None, max_rank: int | None) -> None:
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is not known; give one of {', '.join(get_args(Method))}")
    if rtol is not None and not rtol >= 0:
        raise ValueError(f"rtol={rtol}: give 0 or more, or None for rounding")
    check_whole(max_rank=max_rank)
    if max_rank is not None and max_rank < 1:
        raise ValueError(f"max_rank={max_rank}: give 1 or more, or None for a quarter of the parameters")


def _parts(H: Operator, rows: int) -> Iterator[Operator]:
    """As many points at a time as fit with so many rows each; in a list each would hold what its products keep."""
    budget = memory_budget(H.device)
    size = torch.finfo(H.dtype).bits // 8
    at_once = max(1, budget // (rows * H.num_params * size))
    for part in H.parts():
        if part.num_points is None or part.num_points <= at_once:
            yield part
        else:
            yield from (part.select(rows) for rows in torch.arange(part.num_points, device="cpu").split(at_once))


def _by_range(
    H: Operator,
    rtol: float,
    max_rank: int,
    vectors: bool,
    seed: int,
    done: Callable[[int], None],
    *,
    fall_back: bool,
) -> list[ExactPoint]:
    short = compressed(H, rtol=rtol, max_rank=max_rank, seed=seed)
    points = [_from_compressed(c, H, vectors=vectors) for c in short]
    failed = [i for i, c in enumerate(short) if c.Q is None and c.finite] if fall_back else []
    done(len(points) - len(failed))
    if failed:
        rest = H if len(failed) == len(points) else H.select(torch.tensor(failed, device="cpu"))
        for i, point in zip(failed, _dense(rest, vectors=vectors, done=done), strict=True):
            count = point.num_matvecs + short[i].num_matvecs
            points[i] = ExactPoint(point.values, point.vectors, point.error, True, count)
    return points


def _from_compressed(short: Compressed, H: Operator, *, vectors: bool) -> ExactPoint:
    if short.Q is None or short.T is None:
        return _unknown(H, short.num_matvecs, dense=False)
    values, S = _eigen(short.T, vectors=vectors)
    rows = None if S is None else S.mT.to(short.Q) @ short.Q
    return ExactPoint(values, rows, short.error + _rounding(values, H.dtype), False, short.num_matvecs)


def _dense(H: Operator, *, vectors: bool, done: Callable[[int], None]) -> list[ExactPoint]:
    """From the whole matrices, as many at once as fit; solved one by one, so that an interrupt is heard."""
    n, found = H.num_params, []
    if 8 * n**2 > LARGEST_MATRIX:
        raise ValueError(
            f"{n} parameters: one whole matrix needs {8 * n**2 / 2**30:.0f} GiB; "
            "use top_eigenpairs or spectral_density, or method='range finder' if its rank is small"
        )
    for part in _parts(H, n):
        unit = torch.eye(n, dtype=H.dtype, device=H.device)
        for matrix in row_products(part, unit[None]):
            found.append(_from_matrix(matrix, H, vectors=vectors))
            done(1)
    return found


def _from_matrix(matrix: Float[Tensor, "param param"], H: Operator, *, vectors: bool) -> ExactPoint:
    if not matrix.isfinite().all():
        return _unknown(H, H.num_params, dense=True)
    A = matrix.double()
    values, S = _eigen((A + A.mT) / 2, vectors=vectors)
    skew = float((A - A.mT).norm()) / 2
    rows = None if S is None else S.mT.to(H.dtype)
    return ExactPoint(values, rows, skew + _rounding(values, H.dtype), True, H.num_params)


def _eigen(
    A: Float[Tensor, "row row"], *, vectors: bool
) -> tuple[Float[Tensor, " value"], Float[Tensor, "row value"] | None]:
    """By falling magnitude. In float64: LAPACK's float32 solvers fail on graded matrices (torch 2.13)."""
    values, S = eigh(A) if vectors else (eigvalsh(A), None)
    order = values.abs().argsort(descending=True, stable=True)
    return values[order], None if S is None else S[:, order]


def _rounding(values: Float[Tensor, " value"], dtype: torch.dtype) -> float:
    largest = float(values.abs().amax()) if len(values) else 0.0
    return ROUNDING * torch.finfo(dtype).eps * largest


def _unknown(H: Operator, num_matvecs: int, *, dense: bool) -> ExactPoint:
    nan = torch.full((H.num_params,), torch.nan, dtype=torch.float64, device=H.device)
    return ExactPoint(nan, None, torch.nan, dense, num_matvecs)


def _with_rounding_of_terms(H: Operator, points: list[ExactPoint], seed: int) -> list[ExactPoint]:
    """Where terms cancel, what is left has the rounding of the terms, which its own size does not show."""
    probes = torch.randn(H.num_params, TERM_PROBES, generator=stream(seed, "terms"), dtype=torch.float64, device="cpu")
    sizes = magnitude(H, probes.to(H.device, H.dtype)).mean(-1).reshape(-1).tolist()
    share = ROUNDING * torch.finfo(H.dtype).eps
    return [
        replace(point, error=point.error + share * size, num_matvecs=point.num_matvecs + TERM_PROBES)
        for point, size in zip(points, sizes, strict=True)
    ]


def _together(H: Operator, points: list[ExactPoint], *, vectors: bool) -> Spectrum:
    n, count = H.num_params, len(points)
    values = torch.zeros(count, n, dtype=H.dtype, device=H.device)
    most = max(len(p.values) for p in points)
    columns = values.new_zeros(count, most, n) if vectors else None
    for i, point in enumerate(points):
        values[i, : len(point.values)] = point.values.to(H.dtype)
        if columns is not None:
            columns[i, : len(point.values)] = torch.nan if point.vectors is None else point.vectors
    error = torch.tensor([p.error for p in points], dtype=H.dtype, device="cpu").to(H.device)
    rank = (values.abs() > error[:, None]).sum(-1)
    dense = torch.tensor([p.dense for p in points], device="cpu").to(H.device)
    num_matvecs = torch.tensor([p.num_matvecs for p in points], device="cpu").to(H.device)
    Q = None if columns is None else columns.mT
    if H.num_points is None:
        return Spectrum(values[0], error[0], rank[0], dense[0], None if Q is None else Q[0], num_matvecs[0])
    return Spectrum(values, error, rank, dense, Q, num_matvecs)


def most_products(num_params: int) -> int:
    """The most products that ``exact_ritz`` takes at a point: the whole matrix after a range finder that failed."""
    if num_params <= DENSE_BELOW:
        return num_params
    return num_params + (2 * (num_params // LOW_RANK // BLOCK) + 1) * BLOCK


def exact_ritz(H: Operator, *, pairs: int, seed: int, done: Callable[[int], None]) -> list[Ritz]:
    """All pairs of every point, dense or by range finder, and ``pairs`` vectors of eigenvalues zero if any are."""
    rtol, rank = ROUNDING * torch.finfo(H.dtype).eps, max(1, H.num_params // LOW_RANK)
    points = exact_points(H, rtol=rtol, max_rank=rank, vectors=True, seed=seed, done=done)
    return [_as_ritz(H, point, pairs, seed) for point in points]


def _as_ritz(H: Operator, point: ExactPoint, pairs: int, seed: int) -> Ritz:
    if point.vectors is None:
        nan = torch.full((1, H.num_params), torch.nan, dtype=H.dtype, device=H.device)
        return Ritz(point.values[:1], nan, torch.nan, point.num_matvecs, False, False)
    values, vectors = point.values.cpu(), point.vectors
    if not point.dense:
        null = _orthogonal_rows(vectors, min(pairs, H.num_params - len(vectors)), seed)
        values, vectors = pad(values, (0, len(null))), torch.cat([vectors, null])
    return Ritz(values, vectors, float(values.abs().amax()), point.num_matvecs, True, True)


def _orthogonal_rows(rows: Float[Tensor, "row param"], count: int, seed: int) -> Float[Tensor, "count param"]:
    """Random orthonormal rows orthogonal to those given."""
    drawn = torch.randn(count, rows.shape[-1], generator=stream(seed, "null"), dtype=torch.float64, device="cpu").to(
        rows
    )
    for _ in range(2):
        drawn = torch.linalg.qr((drawn - (drawn @ rows.mT) @ rows).mT).Q.mT
    return drawn
