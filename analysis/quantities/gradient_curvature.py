"""The curvature along the inner gradient: as it is, times the step size, and with filters scaled to unit norm."""

import torch

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable
from hessian_tools.curvature import curvature_along, product_asymmetry, rho_normalised, rounding_error


def measure(points: Points) -> Values:
    """The curvature along the gradient g: |Hg| / |g| and rho = g'Hg / g'g with the Hessian H, and their errors.

    Both are also given times the inner step size alpha, and in the coordinates theta / D, in which filters have unit
    norm. D is the diagonal matrix of filter norms, ``products.scale``. In these coordinates the gradient is D g and the
    Hessian is D H D.

    The errors are those of rounding in float32. H is symmetric, so z'(Hg) and g'(Hz) would be equal in exact arithmetic
    for any vector z. Their difference estimates the rounding error. The vectors z are the probes and D^2 g, whose
    products with H are computed anyway.
    """
    products, g = points.products, points.gradients
    curvature = curvature_along(g, products.hg)
    d2g = products.scale**2 * g  # D^2 g; its product with H is products.hd2g
    z = torch.cat([d2g[..., None], points.probes.unsqueeze(1).expand_as(products.hz)], -1)
    hz = torch.cat([products.hd2g[..., None], products.hz], -1)
    error = rounding_error(curvature.hg_ratio, product_asymmetry(products.hg, g, hz, z))
    alpha = points.step_size
    normalised = curvature_along(products.scale * g, products.scale * products.hd2g)
    return {
        "hg_ratio": curvature.hg_ratio,
        "hg_ratio_error": error,
        "alpha_hg_ratio": alpha * curvature.hg_ratio,
        "alpha_hg_ratio_error": alpha * error,
        "hg_ratio_normalised": normalised.hg_ratio,
        "rho": curvature.rho,
        "rho_error": error,
        "alpha_rho": alpha * curvature.rho,
        "alpha_rho_error": alpha * error,
        # This equals normalised.rho up to rounding. The function is still called, so that the numbers agree to the last
        # bit with those of earlier studies.
        "rho_normalised": rho_normalised(products.scale, g, products.hd2g),
    }


QUANTITY = Quantity(
    name="gradient_curvature",
    title="curvature along the gradient",
    formula="|Hg| / |g|; rho = g'Hg / g'g; both times alpha; both with D H D and D g in place of H and g, where D holds"
    " the filters' norms where a normalisation follows, else 1",
    variables=(
        point_variable("hg_ratio", "|Hg| / |g|", error="hg_ratio_error"),
        point_variable("hg_ratio_error", "float32 error of |Hg| / |g|, estimated as the error of rho is"),
        point_variable("alpha_hg_ratio", "alpha |Hg| / |g|", error="alpha_hg_ratio_error"),
        point_variable("alpha_hg_ratio_error", "float32 error of alpha |Hg| / |g|"),
        point_variable(
            "hg_ratio_normalised",
            "|Hg| / |g| in coordinates in which filters before a normalisation layer have unit norm",
        ),
        point_variable("rho", "curvature along the gradient, rho = g'Hg / g'g", error="rho_error"),
        # The directions z are the random probes and one more; see ``measure``.
        point_variable(
            "rho_error",
            "float32 error of rho: the largest |z'Hg - g'Hz| / (|z| |g|) over several directions z,"
            " plus 8 eps |Hg| / |g|",
        ),
        point_variable(
            "alpha_rho",
            "alpha g'Hg / g'g; a gradient step lowers the quadratic model of the loss if and only if this is below 2",
            error="alpha_rho_error",
        ),
        point_variable("alpha_rho_error", "float32 error of alpha rho"),
        point_variable(
            "rho_normalised", "rho in coordinates in which filters before a normalisation layer have unit norm"
        ),
    ),
    measure=measure,
    library="hessian_tools.curvature.curvature_along, .rho_normalised",
    cost="two products with the Hessian, with g and D^2 g; the error uses those with the probes as well",
    reference="Lee, Yoo, Kwak 2023, equation 3",
)
