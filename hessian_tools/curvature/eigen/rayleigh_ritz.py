"""The final check of the wanted pairs by true products; it is the same however the pairs were computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.krylov import combine_rows
from hessian_tools.curvature.eigen.selection import RitzPairs, Selection, rounding
from hessian_tools.curvature.html import eigenvalues_html
from hessian_tools.curvature.operators.lengths import inner_products, lengths, vector_norm
from hessian_tools.curvature.operators.operator import Operator, row_products
from hessian_tools.result import Result


@dataclass(frozen=True, repr=False)
class EigenPairs(Result):
    """Some eigenvalues at each point, in the order of ``which``, with their quality.

    values: Rayleigh quotients v'Hv of the unit vectors v (loss / parameter^2). vectors: the vectors v as columns, or
    None if they were not requested; their signs are arbitrary.
    residuals: |H v - value v|, from true products. At least one exact eigenvalue of H lies within this distance of the
    value, plus the rounding of the products. The rounding is a few eps times the norms of the terms of the operator
    (for H - G, of H and of G).
    converged: residual <= max(rtol * |value|, 64 eps |H|), where |H| is the largest magnitude of a Ritz value. Where
    this is False, the value is still within its residual of an eigenvalue; raise max_matvecs or rtol for convergence.
    num_matvecs: products used at each point, including those of the check.
    Values are NaN, and ``converged`` and ``complete`` False, at a point whose Hessian is not finite.

    complete: True if no wanted eigenvalue was missed, which residuals cannot show. The values are then the wanted
    eigenvalues of the whole spectrum, each as often as its multiplicity says, except that the last value may stand for
    another one that equals it within the tolerance. ``complete`` is True where the whole spectrum was computed, or
    where a search orthogonal to the pairs found nothing more (which is wrong with a probability of about 1e-3). It is
    False where no search was made (copies=False) or the products ran out. Then further copies of a multiple eigenvalue
    are missing, because one start vector cannot find them. An eigenvalue whose magnitude is close to that of the last
    wanted one may be missing too (this happened at none of 196 points of tasks with a network of four convolutions and
    with an MLP, and at no more than 3 of 64 points with spectra constructed to provoke it).
    """

    values: Float[Tensor, "*point k"]
    residuals: Float[Tensor, "*point k"]
    converged: Bool[Tensor, "*point k"]
    vectors: Float[Tensor, "*point param k"] | None
    num_matvecs: Int[Tensor, "*point"]
    complete: Bool[Tensor, "*point"]

    def _repr_html_(self) -> str:
        return eigenvalues_html(self.values, self.residuals, self.converged)


def checked_pairs(H: Operator, pairs: RitzPairs, selections: Sequence[Selection]) -> list[EigenPairs]:
    """The pairs that each selection wants, in its order, with residuals from one block product for all pairs.

    The vectors are first rotated so that H is diagonal on their span (Rayleigh-Ritz), which costs no product. It is
    needed because a pair that was found in the space orthogonal to an inexact pair carries the error of that pair.
    """
    pairs = pairs.wanted(selections)
    X = pairs.vectors  # new tensors, which may be changed in place
    shards = H.shards  # how processes hold each vector in parts; None where this process holds whole vectors
    norms = vector_norm(X, keepdim=True) if shards is None else shards.lengths(X)[..., None].to(X)
    X /= norms.clamp(min=torch.finfo(X.dtype).tiny)  # rows of padding stay zero
    HX = row_products(H, X)
    inner = inner_products(X, HX)
    T = (inner if shards is None else shards.inner(inner)).double().cpu()
    T = (T + T.mT) / 2
    T.masked_fill_(~T.isfinite().flatten(1).all(-1)[:, None, None], 0.0)  # because LAPACK refuses NaN
    # Padding gets an eigenvalue above all others (Gershgorin 1931), so that the real pairs come first and do not mix
    # with it.
    above = 2 * T.abs().sum(-1).amax(-1, keepdim=True).clamp(min=torch.finfo(T.dtype).tiny)
    T.diagonal(dim1=1, dim2=2).add_(above * ~pairs.real)
    S = torch.linalg.eigh(T)[1].to(X)
    for rows in (X, HX):
        combine_rows(rows, S.mT, out=rows)
    values = (X * HX).sum(-1)
    values = values if shards is None else shards.inner(values)
    remainder = HX.addcmul_(values[..., None], X, value=-1)
    residuals = (lengths(remainder) if shards is None else shards.lengths(remainder)).to(values)
    num_matvecs = (pairs.num_matvecs + X.shape[1]).to(X.device)
    count, complete, floor = pairs.count.to(X.device), pairs.complete.to(X.device), rounding(X.dtype) * pairs.norm.to(X)
    results = []
    for selection in selections:
        pick = selection.pick(values, count)
        wanted, errors = values.gather(-1, pick), residuals.gather(-1, pick)
        converged = errors <= selection.tolerance(wanted, floor)
        vectors = X.mT.gather(-1, pick[:, None].expand(-1, X.shape[-1], -1))
        results.append(EigenPairs(wanted, errors, converged, vectors, num_matvecs, complete))
    return results
