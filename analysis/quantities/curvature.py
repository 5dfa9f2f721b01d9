"""Quantities that are measured by products with the Hessian H of the support loss."""

import torch

from analysis.quantities.points import Points, Values
from hessian_tools.curvature import (
    curvature_along,
    estimate_of,
    extremal_eigenpairs,
    product_asymmetry,
    rho_normalised,
    rounding_error,
)


def along_gradient(points: Points) -> Values:
    """The curvature along the inner gradient g, with float32 errors (Lee, Yoo, Kwak 2023, equation 3).

    The values are |Hg| / |g|, rho = g'Hg / g'g, rho times the inner step size alpha, and rho in coordinates in which
    filters have unit norm. H is symmetric, so z'(Hg) and g'(Hz) would be equal in exact arithmetic for any vector z,
    and their difference estimates the rounding error. Here z is each probe, and D^2 g, whose product is computed
    anyway. D is the diagonal matrix of filter norms, ``products.scale``.
    """
    products, g = points.products, points.gradients
    curvature = curvature_along(g, products.hg)
    d2g = products.scale**2 * g  # D^2 g; its product with H is products.hd2g
    z = torch.cat([d2g[..., None], points.probes.unsqueeze(1).expand_as(products.hz)], -1)
    hz = torch.cat([products.hd2g[..., None], products.hz], -1)
    error = rounding_error(curvature.hg_ratio, product_asymmetry(products.hg, g, hz, z))
    return {
        "rho": curvature.rho,
        "rho_error": error,
        "alpha_rho": points.step_size * curvature.rho,
        "alpha_rho_error": points.step_size * error,
        "hg_ratio": curvature.hg_ratio,
        "hg_ratio_error": error,
        "rho_normalised": rho_normalised(products.scale, g, products.hd2g),
    }


def eigenvalues(points: Points) -> Values:
    """The eigenvalues of largest magnitude, and the largest and the smallest algebraic one (Lanczos 1950).

    Each has its residual |Hv - lambda v|, within which at least one exact eigenvalue lies (Paige 1972). All come from a
    single Lanczos run at each parameter vector.
    """
    level = points.level
    extremes = extremal_eigenpairs(
        points.hessian,
        magnitude=level.eigenvalues,
        ends=1,
        rtol=level.tolerance,
        seed=points.seed,
        max_matvecs=level.max_matvecs,
    )
    values = {
        "eigenvalue": extremes.magnitude.values,
        "eigenvalue_residual": extremes.magnitude.residuals,
        "eigenvalue_max": extremes.largest.values[..., 0],
        "eigenvalue_max_residual": extremes.largest.residuals[..., 0],
        "eigenvalue_min": extremes.smallest.values[..., 0],
        "eigenvalue_min_residual": extremes.smallest.residuals[..., 0],
    }
    return {name: points.unflatten(value) for name, value in values.items()}


def random_directions(points: Points) -> Values:
    """The trace, and the curvature along random directions, from the same probes z of random signs.

    z'Hz of each probe estimates the trace (Girard 1989; Hutchinson 1990). Divided by |z|^2, which is the number of
    parameters, it is the curvature along z.
    """
    samples = (points.probes.unsqueeze(1) * points.products.hz).sum(-2)
    trace, num_params = estimate_of(samples), points.thetas.shape[-1]
    return {
        "trace": trace.value,
        "trace_stderr": trace.stderr,
        "trace_sample": samples,
        "rho_random": trace.value / num_params,
        "rho_random_stderr": trace.stderr / num_params,
    }
