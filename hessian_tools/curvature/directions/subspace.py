"""Compares eigenspaces with a gradient and with each other, and bounds the error of computed eigenspaces.

The Hessian's top eigenpairs are compared with its Gauss-Newton part in values, curvature and directions.

All functions take eigenvectors that were already computed, and none forms a param x param matrix.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from hessian_tools.curvature.directions.gradient_curvature import in_units
from hessian_tools.curvature.directions.path import Null
from hessian_tools.curvature.eigen.pairs import EigenPairs
from hessian_tools.curvature.eigen.selection import Which
from hessian_tools.curvature.eigen.spectrum import Spectrum
from hessian_tools.result import Result


def gradient_share(
    vectors: Float[Tensor, "*point param k"], g: Float[Tensor, "*point param"]
) -> Float[Tensor, "*point k"]:
    """|V_j'g|^2 / |g|^2 for j = 1..k: the share of the gradient in the span of the first j columns (Gur-Ari 2018).

    vectors: orthonormal columns, as from ``top_eigenpairs(vectors=True)``. A random gradient has the share j / param
    (``overlap_null(param, j, 1)``). The share in the exact eigenspace differs by no more than :func:`subspace_error`
    at the same j. NaN where g = 0. Raises ValueError for columns that are not orthonormal.

    >>> gradient_share(torch.eye(3)[:, :2], torch.tensor([1.0, 2.0, 2.0])) * 9
    tensor([1., 5.])
    """
    _check_orthonormal(vectors)
    g, _ = in_units(g)
    parts = (vectors.mT @ g[..., None])[..., 0] ** 2
    return parts.cumsum(-1) / (g**2).sum(-1, keepdim=True)


def subspace_overlap(
    U: Float[Tensor, "*#point param k"], V: Float[Tensor, "*#point param l"]
) -> Float[Tensor, "*point"]:
    """|U'V|_F^2 / min(k, l): 1 if the smaller span lies in the larger one, 0 if the two are orthogonal.

    It is the mean squared cosine of the principal angles. Unrelated spans have max(k, l) / param on average, with the
    standard deviation of :func:`overlap_null`. For spans that approximate eigenspaces the overlap is off by no more
    than the sum of their :func:`subspace_error`. Raises ValueError for columns that are not orthonormal.

    >>> e = torch.eye(4)
    >>> float(subspace_overlap(e[:, :2], e[:, 1:3])), float(subspace_overlap(e[:, :2], e[:, 1:2]))
    (0.5, 1.0)
    """
    _check_orthonormal(U, V)
    return ((U.mT @ V) ** 2).sum((-2, -1)) / min(U.shape[-1], V.shape[-1])


def principal_angles(
    U: Float[Tensor, "*#point param k"], V: Float[Tensor, "*#point param l"]
) -> Float[Tensor, "*point _"]:
    """The min(k, l) principal angles between two spans, in radians and rising order (Bjorck, Golub 1973).

    An angle is computed from its cosine or its sine, whichever is smaller, so that small angles keep their digits.
    Angles are NaN at a point whose vectors are NaN. Raises ValueError for columns that are not orthonormal.

    >>> u, v = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [1e-5]])
    >>> round(float(principal_angles(u, v / v.norm())) * 1e5, 4)
    1.0
    """
    _check_orthonormal(U, V)
    U, V = (V, U) if U.shape[-1] < V.shape[-1] else (U, V)
    inner = U.mT @ V
    orthogonal_part, nonfinite = V - U @ inner, ~inner.isfinite().all(-1).all(-1)[..., None]
    # svdvals raises if any matrix of the batch is not finite, so zeros take the place of such matrices.
    # Cosines fall as the angles rise. Sines, of which svdvals gives the largest first, are put into rising order.
    cosines = torch.linalg.svdvals(inner.masked_fill(nonfinite[..., None], 0)).clamp(max=1)
    sines = torch.linalg.svdvals(orthogonal_part.masked_fill(nonfinite[..., None], 0)).flip(-1).clamp(max=1)
    return torch.where(cosines**2 < 0.5, cosines.acos(), sines.asin()).masked_fill(nonfinite, torch.nan)


def step_overlaps(vectors: Float[Tensor, "*task step param k"]) -> Float[Tensor, "*task step_i step_j"]:
    """The overlap of the eigenspaces at every two steps of a trajectory; it is 1 on the diagonal.

    See :func:`subspace_overlap` for its null hypothesis and its error. Raises ValueError for columns that are not
    orthonormal.

    >>> e = torch.eye(4)
    >>> step_overlaps(torch.stack([e[:, :2], e[:, 1:3]]))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]])
    """
    _check_orthonormal(vectors)
    *tasks, steps, num_params, k = vectors.shape
    # One product of all columns with all columns, [step k, step k], instead of one for every pair of steps.
    W = vectors.movedim(-3, -2).reshape(*tasks, num_params, steps * k)
    # The squared cosines as [step_i, k, step_j, k], summed over the two axes of columns.
    return ((W.mT @ W) ** 2).unflatten(-1, (steps, k)).unflatten(-3, (steps, k)).sum((-3, -1)) / k


def overlap_null(num_params: int, k: int, l: int | None = None) -> Null:  # noqa: E741
    """The null hypothesis of an overlap: random k- and l-dimensional subspaces of a space of num_params dimensions.

    l: None means l = k.
    |U'V|_F^2 = tr PQ of the two projectors has mean k l / n and variance 2 k l (n - k)(n - l) / (n^2 (n - 1)(n + 2));
    the overlap is |U'V|_F^2 / min(k, l). With l = 1 this is the null of :func:`gradient_share` at k.
    Raises ValueError for dimensions outside 1..num_params.

    >>> overlap_null(100, 5).mean
    0.05
    """
    n, l_dims = num_params, k if l is None else l
    if not (1 <= k <= n and 1 <= l_dims <= n and n > 1):
        raise ValueError(
            f"subspaces of {k} and {l_dims} dimensions in a space of {n}; give 1 to {n} in a space of 2 or more"
        )
    smaller, variance = min(k, l_dims), 2 * k * l_dims * (n - k) * (n - l_dims) / (n**2 * (n - 1) * (n + 2))
    # Two subspaces whose dimensions add up to more than n share at least the excess.
    return Null(max(0, k + l_dims - n) / smaller, 1.0, max(k, l_dims) / n, math.sqrt(variance) / smaller)


def subspace_error(pairs: EigenPairs, *, which: Which = "LM") -> Float[Tensor, "*point k"]:
    """How far the span of the first j pairs may be from the eigenspace: a bound on the sine of the largest angle.

    The bound is sqrt(sum of the first j squared residuals) / gap (Davis, Kahan 1970). The gap is the distance from the
    j-th value to value j + 1, minus the residual of pair j + 1; so request one pair more than you use. The bound is at
    most 1. It is 1 where nothing is known, which is so for the last pair and where values lie too close. It holds if no
    eigenvalue was missed (``pairs.complete`` says where this was checked), and does not include rounding.
    which: the order in which the pairs were requested, "LM", "LA" or "SA".
    Raises ValueError for "BE", because those pairs have no order in which a first j could be cut off.

    >>> values, residuals = torch.tensor([5.0, 3.0, 1.0]), torch.tensor([0.3, 0.4, 0.0])
    >>> yes, count = torch.ones(3, dtype=torch.bool), torch.tensor(9)
    >>> subspace_error(EigenPairs(values, residuals, yes, None, count, yes[0]))  # 0.3 / 1.6, 0.5 / 2
    tensor([0.1875, 0.2500, 1.0000])
    """
    return cut_error(_order(pairs, which), pairs.residuals)


def vector_error(pairs: EigenPairs, *, which: Which = "LM") -> Float[Tensor, "*point k"]:
    """A bound on the sine of each vector's angle to its eigenvector: residual / distance to the nearest other value.

    It holds under the conditions of :func:`subspace_error`.

    >>> values, residuals = torch.tensor([5.0, 3.0, -1.0]), torch.tensor([0.3, 0.3, 0.0])
    >>> yes, count = torch.ones(3, dtype=torch.bool), torch.tensor(9)
    >>> vector_error(EigenPairs(values, residuals, yes, None, count, yes[0]))  # 0.3 / 1.7, 0.3 / 1.7
    tensor([0.1765, 0.1765, 1.0000])
    """
    order, residuals, k = _order(pairs, which), pairs.residuals, pairs.values.shape[-1]
    distances = (pairs.values[..., :, None] - pairs.values[..., None, :]).abs() - residuals[..., None, :]
    same_pair = torch.eye(k, dtype=torch.bool, device=distances.device)
    # All values that were not computed come after the last computed one in the requested order.
    to_uncomputed = order - order[..., -1:] - residuals[..., -1:]
    return _bound(residuals, torch.minimum(distances.masked_fill(same_pair, torch.inf).amin(-1), to_uncomputed))


def cut_error(order: Float[Tensor, "*point k"], residuals: Float[Tensor, "*point k"]) -> Float[Tensor, "*point k"]:
    """:func:`subspace_error` from numbers in falling order, whose gaps separate the spectrum, and their residuals."""
    gap = order[..., :-1] - order[..., 1:] - residuals[..., 1:]
    no_gap = torch.where(order[..., -1:].isnan(), torch.nan, 0.0).to(gap)  # what follows the last is not known
    return _bound((residuals**2).cumsum(-1).sqrt(), torch.cat([gap, no_gap], dim=-1))


def _bound(residual: Float[Tensor, "*point k"], gap: Float[Tensor, "*point k"]) -> Float[Tensor, "*point k"]:
    """residual / gap as a bound on a sine: at most 1, and 1 where there is no gap; NaN where a point is not finite."""
    return torch.where(gap <= 0, 1.0, residual / gap).clamp(max=1)


def _order(pairs: EigenPairs, which: Which) -> Float[Tensor, "*point k"]:
    """The numbers by which the pairs are ordered, which fall from pair to pair."""
    if which not in ("LM", "LA", "SA"):
        raise ValueError(
            f"which={which!r} does not define the first j pairs; request the pairs in the order LM, LA or SA"
        )
    return {"LM": pairs.values.abs(), "LA": pairs.values, "SA": -pairs.values}[which]


def _check_orthonormal(*bases: Tensor) -> None:
    """Raises ValueError unless the columns of each tensor are orthonormal."""
    for V in bases:
        error = (V.mT @ V - torch.eye(V.shape[-1], dtype=V.dtype, device=V.device)).abs()
        if (error > torch.finfo(V.dtype).eps ** 0.5).any():  # False for NaN, so a point with NaN is no error
            raise ValueError("the columns are not orthonormal; give eigenvectors, or torch.linalg.qr(V).Q")


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
