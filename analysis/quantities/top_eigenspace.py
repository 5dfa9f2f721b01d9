"""The share of the gradient in the top eigenspace, and how far that eigenspace turns in an inner step."""

import torch

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable
from hessian_tools.curvature import gradient_share, subspace_error, subspace_overlap


def measure(points: Points) -> Values:
    """|P_j g|^2 / |g|^2, and the overlap |U_j'V_j|_F^2 / j of the eigenspaces at theta_k and theta_{k+1}, for each j.

    g is the inner gradient, and theta_k are the parameters after k of the K inner steps. j runs from 1 to the number of
    eigenvalues for which the settings of the measurement ask (``points.level``). P_j projects onto the span of the
    first j eigenvectors, by falling magnitude of the eigenvalue. U_j and V_j hold the first j eigenvectors at theta_k
    and at theta_{k+1}. Both numbers are j / n by chance, where n is the number of parameters
    (``hessian_tools.curvature.overlap_null``). The errors bound what follows from the residuals and from the gap to the
    next eigenvalue; an error of 1 says that the gap is too small for the subspace to be known. There is no overlap at
    theta_K, after which no step follows.
    """
    pairs, count = points.extremes.magnitude, points.level.eigenvalues
    assert pairs.vectors is not None
    vectors = points.unflatten(pairs.vectors[..., :count])
    error = points.unflatten(subspace_error(pairs)[..., :count])
    before, after = vectors[:, :-1], vectors[:, 1:]
    overlap = torch.stack([subspace_overlap(before[..., :j], after[..., :j]) for j in range(1, count + 1)], -1)
    overlap_error = (error[:, :-1] + error[:, 1:]).clamp(max=1)
    undefined = torch.full_like(error[:, :1], float("nan"))
    return {
        "gradient_share": gradient_share(vectors, points.gradients),
        "gradient_share_error": error,
        "subspace_overlap": torch.cat([overlap, undefined], 1),
        "subspace_overlap_error": torch.cat([overlap_error, undefined], 1),
    }


QUANTITY = Quantity(
    name="top_eigenspace",
    title="gradient in the top eigenspace, and overlap of top eigenspaces",
    formula="|P_j g|^2 / |g|^2; |U_j'V_j|_F^2 / j between theta_k and theta_{k+1}; both are j / n by chance",
    variables=(
        point_variable(
            "gradient_share",
            "share of |g|^2 in the span of the first j eigenvectors, by magnitude; j / n by chance",
            "eigen_index",
            error="gradient_share_error",
        ),
        point_variable(
            "gradient_share_error", "bound on the error of that share, from residuals and eigenvalue gap", "eigen_index"
        ),
        point_variable(
            "subspace_overlap",
            "overlap of the spans of the first j eigenvectors at theta_k and theta_{k+1}; j / n by chance; not defined"
            " at theta_K",
            "eigen_index",
            error="subspace_overlap_error",
        ),
        point_variable(
            "subspace_overlap_error",
            "bound on the error of that overlap, from residuals and eigenvalue gaps",
            "eigen_index",
        ),
    ),
    measure=measure,
    library="hessian_tools.curvature.gradient_share, hessian_tools.subspace_overlap, "
    "hessian_tools.curvature.subspace_error",
    cost="the products with the Hessian for one eigenpair more than measure.full asks for",
    reference="Gur-Ari 2018; Davis, Kahan 1970",
    level="full",
    eigenvectors=True,
)
