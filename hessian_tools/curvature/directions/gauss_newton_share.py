"""How far the top of the Hessian's spectrum is that of its Gauss-Newton part: values, directions, curvature."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from hessian_tools.curvature.directions.subspace import cut_error, subspace_error, vector_error
from hessian_tools.curvature.eigen.pairs import EigenPairs
from hessian_tools.curvature.eigen.selection import Which
from hessian_tools.curvature.eigen.spectrum import Spectrum
from hessian_tools.torch_fixes.precision import full_precision


@dataclass(frozen=True)
class Explained:
    """The k top eigenpairs (v_j, value) of H beside those (u_j) of its Gauss-Newton part G; each number with its error.

    hessian, hessian_error: eigenvalues of H and their residuals, in the order they were asked for.
    gauss_newton, gauss_newton_error: the k largest eigenvalues of G. Compared rank by rank they need not
    belong to one direction; what does is in the next two.
    share: v_j'Gv_j / v_j'Hv_j: how much of the curvature along v_j is Gauss-Newton. 1 is all; more than 1
    where the rest is negative there; not positive where the eigenvalue of H is negative.
    overlap: |U_j'V_j|_F^2 / j of the first j directions of each, for j = 1..k; j / param by chance (``overlap_null``);
    NaN where G has fewer than j eigenvalues that can differ from zero.
    share_error and overlap_error bound what the pairs' residuals and gaps leave open (Davis, Kahan 1970):
    large where eigenvalues lie close, for then single directions mean little. For the last pair nothing bounds them:
    ask for one more than is used.
    """

    hessian: Float[Tensor, "*point k"]
    hessian_error: Float[Tensor, "*point k"]
    gauss_newton: Float[Tensor, "*point k"]
    gauss_newton_error: Float[Tensor, "*point"]
    share: Float[Tensor, "*point k"]
    share_error: Float[Tensor, "*point k"]
    overlap: Float[Tensor, "*point k"]
    overlap_error: Float[Tensor, "*point k"]


@full_precision
def explained_by_gauss_newton(pairs: EigenPairs, spectrum: Spectrum, *, which: Which = "LM") -> Explained:
    """The Hessian's eigenpairs against the Gauss-Newton spectrum at the same points; no further product.

    pairs: ``top_eigenpairs(hessian(...), k=..., which=which, vectors=True)``, which "LM", "LA" or "SA"; "LA" ranks
    like with like, as G has no negative eigenvalue. spectrum: ``gauss_newton_spectrum(..., vectors=True)``.
    Raises ValueError where either has no vectors, or they are not of the same points.

    >>> yes, count, e = torch.ones(2, dtype=torch.bool), torch.tensor(9), torch.eye(3)
    >>> H = EigenPairs(torch.tensor([4.0, 2.0]), torch.zeros(2), yes, e[:, :2], count, yes[0])
    >>> G = Spectrum(torch.tensor([3.0, 2.0]), torch.tensor(0.0), e[:, [0, 2]])  # H diag(4, 2, 1), G diag(3, 0, 2)
    >>> found = explained_by_gauss_newton(H, G)
    >>> found.share.tolist(), found.overlap.tolist()
    ([0.75, 0.0], [1.0, 0.5])
    """
    if pairs.vectors is None or spectrum.vectors is None:
        raise ValueError("directions are compared by their vectors: ask for both with vectors=True")
    V, U, k = pairs.vectors, spectrum.vectors, pairs.values.shape[-1]
    if V.shape[:-1] != U.shape[:-1]:
        raise ValueError(f"eigenvectors {list(V.shape)} and {list(U.shape)}; take both at the same points")
    squares = (V.mT @ U) ** 2
    share = (squares @ spectrum.values[..., : U.shape[-1], None])[..., 0] / pairs.values
    largest = spectrum.values[..., :1]
    # |v'Gv - u'Gu| <= |G| sin(v, u) for G >= 0; the value itself is known to its residual.
    off = largest * vector_error(pairs, which=which) + spectrum.error[..., None] + share.abs() * pairs.residuals
    return Explained(
        pairs.values,
        pairs.residuals,
        _k_of(spectrum.values, k, 0.0),
        spectrum.error,
        share,
        off / pairs.values.abs(),
        _overlaps(squares, k),
        (subspace_error(pairs, which=which) + _k_of(_gauss_newton_error(spectrum), k, torch.nan)).clamp(max=1),
    )


def _overlaps(squares: Float[Tensor, "*point k rank"], k: int) -> Float[Tensor, "*point k"]:
    sums = squares.cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1)
    return _k_of(sums / torch.arange(1, sums.shape[-1] + 1, device="cpu").to(sums), k, torch.nan)


def _gauss_newton_error(spectrum: Spectrum) -> Float[Tensor, "*point rank"]:
    """Of its eigenspaces; behind the values listed the spectrum is zero."""
    order = pad(spectrum.values, (0, 1))
    return cut_error(order, spectrum.error[..., None].expand_as(order))[..., :-1]


def _k_of(values: Float[Tensor, "*point n"], k: int, otherwise: float) -> Float[Tensor, "*point k"]:
    return pad(values, (0, max(0, k - values.shape[-1])), value=otherwise)[..., :k]
