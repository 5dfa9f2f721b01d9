"""The final check of the wanted pairs by true products, in one block, however the pairs were computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.ritz import RitzPairs
from hessian_tools.curvature.eigen.selection import Selection
from hessian_tools.curvature.operators.lengths import lengths
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.parts import row_products


@dataclass(frozen=True)
class CheckedPairs:
    """Rayleigh quotients, true residuals and unit vectors (as columns) of the wanted pairs of every point, each once.

    Each point's first ``count`` pairs are real; zeros follow as padding. norm: |H|. num_matvecs: with the products of
    the check.
    """

    values: Float[Tensor, "point pair"]
    residuals: Float[Tensor, "point pair"]
    vectors: Float[Tensor, "point param pair"]
    count: Int[Tensor, " point"]
    norm: Float[Tensor, " point"]
    num_matvecs: Int[Tensor, " point"]
    complete: Bool[Tensor, " point"]


def check_pairs(H: Operator, pairs: RitzPairs, selections: Sequence[Selection]) -> CheckedPairs:
    """The pairs that the selections want, with residuals from one block product.

    The vectors are first rotated so that H is diagonal on their span (Rayleigh-Ritz), which costs no product. It is
    needed because a pair that was found in the space orthogonal to an inexact pair carries the error of that pair.
    """
    pairs = pairs.wanted(selections)
    X = pairs.vectors
    X = X / X.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(X.dtype).tiny)  # rows of padding stay zero
    HX = row_products(H, X)
    T = (X @ HX.mT).double().cpu()
    T = (T + T.mT) / 2
    T.masked_fill_(~T.isfinite().flatten(1).all(-1)[:, None, None], 0.0)  # LAPACK refuses NaN
    # Padding has an eigenvalue above all others (Gershgorin 1931), so that the real pairs come first, unmixed.
    above = 2 * T.abs().sum(-1).amax(-1, keepdim=True).clamp(min=torch.finfo(T.dtype).tiny)
    T.diagonal(dim1=1, dim2=2).add_(above * ~pairs.real)
    S = torch.linalg.eigh(T)[1].to(X)
    X, HX = S.mT @ X, S.mT @ HX
    values = (X * HX).sum(-1)
    residuals = lengths(HX.addcmul_(values[..., None], X, value=-1)).to(values)
    num_matvecs = pairs.num_matvecs + X.shape[1]
    columns = (pairs.count, pairs.norm.to(H.dtype), num_matvecs, pairs.complete)
    return CheckedPairs(values, residuals, X.mT, *(column.to(H.device) for column in columns))
