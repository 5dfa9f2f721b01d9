"""Curvature along the inner gradient: |Hg|/|g|, rho, alpha rho, and rho where filters have unit norm."""

import torch

from analysis.quantities.points import Points
from analysis.quantities.quantity import Quantity, Values
from hessian_tools.curvature import curvature_along, product_asymmetry, rho_normalised, rounding_error


def measure(points: Points) -> Values:
    """Errors are those of float32, measured by the asymmetry of the products: z'(Hg) and g'(Hz) should be equal."""
    products, g = points.products, points.gradients
    along = curvature_along(g, products.hg)
    z = torch.cat(
        [products.scale[..., None] ** 2 * g[..., None], points.probes.unsqueeze(1).expand_as(products.hz)], -1
    )
    hz = torch.cat([products.hd2g[..., None], products.hz], -1)
    error = rounding_error(along.hg_ratio, product_asymmetry(products.hg, g, hz, z))
    return {
        "rho": along.rho,
        "rho_error": error,
        "alpha_rho": points.step_size * along.rho,
        "alpha_rho_error": points.step_size * error,
        "hg_ratio": along.hg_ratio,
        "hg_ratio_error": error,
        "rho_normalised": rho_normalised(products.scale, g, products.hd2g),
    }


GRADIENT = Quantity(
    "gradient",
    ("rho", "rho_error", "alpha_rho", "alpha_rho_error", "hg_ratio", "hg_ratio_error", "rho_normalised"),
    "Lee, Yoo, Kwak 2023, equation 3",
    measure,
)
