"""Compares the Hessian's top eigenpairs with its Gauss-Newton part, in values, curvature and directions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from hessian_tools.curvature.directions.subspace import cut_error, subspace_error, vector_error
from hessian_tools.curvature.eigen.pairs import EigenPairs
from hessian_tools.curvature.eigen.selection import Which
from hessian_tools.curvature.eigen.spectrum import Spectrum
from hessian_tools.result import Result


@dataclass(frozen=True, repr=False)
class GaussNewtonShare(Result):
    """The top k eigenpairs of a Hessian H, with vectors v_j, beside those of its Gauss-Newton part G, with vectors u_j.

    hessian, hessian_error: eigenvalues of H and their residuals, in the order in which they were requested.
    gauss_newton, gauss_newton_error: the k largest eigenvalues of G, and a bound on the rounding error that holds for
    each of them. The j-th eigenvalue of H and the j-th of G need not belong to one direction; ``share`` and ``overlap``
    compare directions.
    share: v_j'Gv_j / v_j'Hv_j, the part of the curvature along v_j that is Gauss-Newton. It is 1 where G accounts for
    all of the curvature, above 1 where H - G is negative along v_j, and not positive where the eigenvalue of H is
    negative.
    overlap: |U_j'V_j|_F^2 / j for j = 1..k, where U_j and V_j hold the first j vectors of G and of H. For random
    subspaces it is j / param on average (``overlap_null``). It is NaN where G has fewer than j eigenvalues that can
    differ from zero.
    share_error, overlap_error: bounds on the errors of share and overlap that follow from the residuals of the pairs
    and the gaps between their values (Davis, Kahan 1970). They are large where eigenvalues lie close together, because
    single directions then mean little. They say nothing for the last pair, because the gap to the next eigenvalue is
    not known; so request one pair more than you use.
    """

    hessian: Float[Tensor, "*point k"]
    hessian_error: Float[Tensor, "*point k"]
    gauss_newton: Float[Tensor, "*point k"]
    gauss_newton_error: Float[Tensor, "*point"]
    share: Float[Tensor, "*point k"]
    share_error: Float[Tensor, "*point k"]
    overlap: Float[Tensor, "*point k"]
    overlap_error: Float[Tensor, "*point k"]


def gauss_newton_share(pairs: EigenPairs, spectrum: Spectrum, *, which: Which = "LM") -> GaussNewtonShare:
    """Compares the Hessian's top eigenpairs with the Gauss-Newton spectrum at the same points, without any product.

    pairs: ``top_eigenpairs(hessian(...), k=..., which=which, vectors=True)`` where which is "LM", "LA" or "SA". Choose
    "LA" to compare positive eigenvalues only, because G has no negative ones. spectrum: ``gauss_newton_spectrum(...,
    vectors=True)``.
    Raises ValueError if one of the two has no vectors, or if they belong to different points.

    >>> yes, count, e = torch.ones(2, dtype=torch.bool), torch.tensor(9), torch.eye(3)
    >>> H = EigenPairs(torch.tensor([4.0, 2.0]), torch.zeros(2), yes, e[:, :2], count, yes[0])
    >>> G = Spectrum(torch.tensor([3.0, 2.0]), torch.tensor(0.0), e[:, [0, 2]])  # H diag(4, 2, 1), G diag(3, 0, 2)
    >>> result = gauss_newton_share(H, G)
    >>> result.share.tolist(), result.overlap.tolist()
    ([0.75, 0.0], [1.0, 0.5])
    """
    if pairs.vectors is None or spectrum.vectors is None:
        raise ValueError("eigenvectors are needed for the comparison; compute both arguments with vectors=True")
    V, U, k = pairs.vectors, spectrum.vectors, pairs.values.shape[-1]
    if V.shape[:-1] != U.shape[:-1]:
        raise ValueError(
            f"eigenvectors have shapes {list(V.shape)} and {list(U.shape)}; compute both at the same points"
        )
    squares = (V.mT @ U) ** 2  # v'Gv is the sum over the eigenvectors u of G of (v'u)^2 times the eigenvalue
    share = (squares @ spectrum.values[..., : U.shape[-1], None])[..., 0] / pairs.values
    largest = spectrum.values[..., :1]
    # |v'Gv - u'Gu| <= |G| sin(v, u) for G >= 0, and the eigenvalue of H is known to within its residual.
    error = largest * vector_error(pairs, which=which) + spectrum.error[..., None] + share.abs() * pairs.residuals
    sums = squares.cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1)  # |U_j'V_j|_F^2 for every j at once
    overlaps = sums / torch.arange(1, sums.shape[-1] + 1, device="cpu").to(sums)
    with_zero = pad(spectrum.values, (0, 1))  # all eigenvalues of G that are not listed are zero
    subspace_errors = cut_error(with_zero, spectrum.error[..., None].expand_as(with_zero))[..., :-1]
    return GaussNewtonShare(
        pairs.values,
        pairs.residuals,
        _first(spectrum.values, k, fill=0.0),
        spectrum.error,
        share,
        error / pairs.values.abs(),
        _first(overlaps, k, fill=torch.nan),
        (subspace_error(pairs, which=which) + _first(subspace_errors, k, fill=torch.nan)).clamp(max=1),
    )


def _first(values: Float[Tensor, "*point n"], k: int, *, fill: float) -> Float[Tensor, "*point k"]:
    """The first k values; if there are fewer, ``fill`` takes the place of the missing ones."""
    return pad(values, (0, max(0, k - values.shape[-1])), value=fill)[..., :k]
