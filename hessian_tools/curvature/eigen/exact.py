"""All eigenpairs at every point, from the whole matrix or, where its rank is small, from a range finder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from hessian_tools.curvature.eigen.range_finder import BLOCK, Compressed, compress
from hessian_tools.curvature.eigen.selection import RitzPairs, Selection, in_order, rounding
from hessian_tools.curvature.eigen.small_eigh import eigh, eigvalsh, finite, set_nan
from hessian_tools.curvature.engines.memory import memory_budget
from hessian_tools.curvature.operators.operator import Operator, row_products
from hessian_tools.rng import stream

# Up to this many parameters, the whole matrix costs less than the range finder.
DENSE_PARAMS = 128
# Up to a rank of num_params / RANK_DIVISOR, the range finder costs less than the whole matrix.
RANK_DIVISOR = 4
# A whole matrix in float64 may have at most this many bytes.
MAX_MATRIX_BYTES = 2**33
# One call to LAPACK solves several matrices, up to about this many multiplications, so that an interrupt takes effect
# within a second.
SOLVED_TOGETHER = 2**30


@dataclass(frozen=True)
class SolvedPoints:
    """The eigenpairs of points that were solved together, by falling magnitude; eigenvalues not listed are zero.

    points: the indices of these points among all points. values: float64. vectors: rows in the dtype of the operator.
    error: float64; no eigenvalue is further than this from its value in the list. dense: True if the whole matrix was
    computed. A point that is not finite, or has too large a rank for the range finder, has NaN in values, vectors and
    error, and may have a single value.
    """

    points: Int[Tensor, " point"]
    values: Float[Tensor, "point value"]
    vectors: Float[Tensor, "point value param"] | None
    error: Float[Tensor, " point"]
    dense: bool
    num_matvecs: int


def solve(
    H: Operator,
    method: Literal["auto", "dense", "range finder"] = "auto",
    rtol: float | None = None,
    max_rank: int | None = None,
    *,
    vectors: bool,
    seed: int,
    done: Callable[[int], None],
) -> Iterator[SolvedPoints]:
    """Yields every point once, several at a time; arguments as for ``spectrum``.

    done: called, whenever points have been solved, with their number.
    """
    n, start = H.num_params, 0
    rtol = rounding(H.dtype) if rtol is None else rtol
    max_rank = max(1, n // RANK_DIVISOR) if max_rank is None else min(max_rank, n)
    dense = method == "dense" or (method == "auto" and n <= DENSE_PARAMS)
    H.announce(n if dense else max_rank)
    for part in parts_in_memory(H, n if dense else max_rank):
        if dense:
            solved = _dense(part, vectors=vectors, done=done)
        else:
            compressed = compress(part, rtol=rtol, max_rank=max_rank, seed=seed)
            solved = _by_range(part, compressed, vectors=vectors, done=done, dense_fallback=method == "auto")
        for batch in solved:
            yield replace(batch, points=batch.points + start)
        start += part.num_points or 1


def exact_pairs(H: Operator, selections: tuple[Selection, ...], *, seed: int, done: Callable[[int], None]) -> RitzPairs:
    """The wanted pairs at every point, from its whole spectrum.

    The vectors of wanted eigenvalues of zero that a range finder does not list are random ones of the null space.
    """
    wanted = sum(selection.k for selection in selections)
    batches = []
    for solved in solve(H, vectors=True, seed=seed, done=done):
        vectors = solved.vectors
        assert vectors is not None
        num_points, rank = solved.values.shape
        known = ~solved.error.isnan().cpu()  # a range finder yields points with and without a result separately
        # How many eigenvalues of zero, which a range finder does not list, are added because they may be wanted.
        zeros = 0 if solved.dense or not known.all() else min(wanted, H.num_params - rank)
        if zeros:
            vectors = torch.cat([vectors, _orthonormal_to(vectors, zeros, seed)], dim=1)
        values = pad(solved.values.cpu(), (0, zeros))
        count = torch.full((num_points,), rank + zeros, device="cpu")
        num_matvecs, norm = torch.full_like(count, solved.num_matvecs), values.abs().amax(-1)
        pairs = RitzPairs(values, vectors, count, norm, num_matvecs, converged=known, complete=known, finite=known)
        batches.append((solved.points, pairs.wanted(selections)))
    return in_order(batches)


def is_small(num_params: int, num_pairs: int) -> bool:
    """True if a matrix is so small that its whole spectrum costs less than num_pairs pairs by Lanczos."""
    return num_params <= max(DENSE_PARAMS, RANK_DIVISOR * num_pairs)


def max_products(num_params: int) -> int:
    """The most products that ``exact_pairs`` takes at a point.

    It takes the most where a range finder fails and the whole matrix is computed after it.
    """
    if num_params <= DENSE_PARAMS:
        return num_params
    # The products of the range finder, counted as in ``compress``, come on top of those for the whole matrix.
    return num_params + (2 * (num_params // RANK_DIVISOR // BLOCK) + 1) * BLOCK


def parts_in_memory(H: Operator, rows: int) -> Iterator[Operator]:
    """H in parts, each at as many points as fit into the memory budget with ``rows`` vectors of length param each."""
    at_once = max(1, vectors_in_memory(H) // rows)
    # The parts are made one after the other, because a list of them would hold the data that the products of each keep.
    for part in H.parts():
        if part.num_points is None or part.num_points <= at_once:
            yield part
        else:
            yield from (part.select(points) for points in torch.arange(part.num_points, device="cpu").split(at_once))


def vectors_in_memory(H: Operator) -> int:
    """How many vectors of length param fit into the memory budget."""
    return memory_budget(H.device) // (H.num_params * H.dtype.itemsize)


def _dense(H: Operator, *, vectors: bool, done: Callable[[int], None]) -> Iterator[SolvedPoints]:
    """Eigenpairs from the whole matrices, of as many points at a time as fit in memory."""
    n, start = H.num_params, 0
    matrix_bytes = 8 * n**2  # in float64
    if matrix_bytes > MAX_MATRIX_BYTES:
        raise ValueError(
            f"the whole matrix of {n} parameters needs {matrix_bytes / 2**30:.0f} GiB; "
            "use top_eigenpairs or spectral_density, or method='range finder' if its rank is small"
        )
    unit = torch.eye(n, dtype=H.dtype, device=H.device)
    for part in parts_in_memory(H, n):
        for block in row_products(part, unit[None]).split(max(1, SOLVED_TOGETHER // n**3)):
            A, bad = finite(block.double())
            values, S = _by_magnitude((A + A.mT) / 2, vectors=vectors)
            # Rounding makes the matrix of products asymmetric. Half of A - A' measures its error.
            error = (A - A.mT).flatten(1).norm(dim=-1) / 2 + largest_rounding(values, H.dtype)
            points = torch.arange(start, start + len(A), device="cpu")
            rows = None if S is None else set_nan(S.mT.to(H.dtype), bad)
            yield SolvedPoints(points, set_nan(values, bad), rows, set_nan(error, bad), dense=True, num_matvecs=n)
            done(len(A))
            start += len(A)


def _by_range(
    H: Operator, compressed: Iterator[Compressed], *, vectors: bool, done: Callable[[int], None], dense_fallback: bool
) -> Iterator[SolvedPoints]:
    """Eigenpairs from the range finder's results.

    dense_fallback: what to do at points whose rank is too large for the range finder: True computes the whole matrix,
    False gives NaN.
    """
    for compact in compressed:
        if compact.Q is not None and compact.T is not None:
            values, S = _by_magnitude(compact.T, vectors=vectors)
            rows = None if S is None else S.mT.to(compact.Q) @ compact.Q
            error = compact.error + largest_rounding(values, H.dtype)
            yield SolvedPoints(compact.points, values, rows, error, dense=False, num_matvecs=compact.num_matvecs)
        elif compact.finite and dense_fallback:
            rest = H if H.num_points in (None, len(compact.points)) else H.select(compact.points)
            for solved in _dense(rest, vectors=vectors, done=done):
                num_matvecs = solved.num_matvecs + compact.num_matvecs
                yield replace(solved, points=compact.points[solved.points], num_matvecs=num_matvecs)
            continue  # ``_dense`` has reported its points itself
        else:
            nan = torch.full((len(compact.points), 1), torch.nan, dtype=torch.float64, device=H.device)
            rows = nan[..., None].to(H.dtype).expand(-1, -1, H.num_params) if vectors else None
            yield SolvedPoints(compact.points, nan, rows, nan[:, 0], dense=False, num_matvecs=compact.num_matvecs)
        done(len(compact.points))


def _by_magnitude(
    A: Float[Tensor, "point row row"], *, vectors: bool
) -> tuple[Float[Tensor, "point value"], Float[Tensor, "point row value"] | None]:
    """Eigenvalues by falling magnitude, and the eigenvectors as columns, or None if vectors is False."""
    # A is float64, because LAPACK's float32 solvers fail on graded matrices (torch 2.13).
    values, S = eigh(A) if vectors else (eigvalsh(A), None)
    order = values.abs().argsort(dim=-1, descending=True, stable=True)
    return values.gather(-1, order), None if S is None else S.gather(-1, order[:, None].expand_as(S))


def largest_rounding(values: Float[Tensor, "point value"], dtype: torch.dtype) -> Float[Tensor, " point"]:
    """The size of rounding errors at each point, in proportion to its largest value."""
    return rounding(dtype) * (values.abs().amax(-1) if values.shape[-1] else values.new_zeros(len(values)))


def _orthonormal_to(
    rows: Float[Tensor, "point row param"], count: int, seed: int
) -> Float[Tensor, "point count param"]:
    """Random orthonormal rows, orthogonal to those given."""
    drawn = torch.randn(count, rows.shape[-1], generator=stream(seed, "null"), dtype=torch.float64, device="cpu")
    new = drawn.to(rows).expand(len(rows), -1, -1)
    for _ in range(2):  # the second time removes what rounding has left the first time
        new = torch.linalg.qr((new - (new @ rows.mT) @ rows).mT).Q.mT
    return new
