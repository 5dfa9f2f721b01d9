"""Curvature of a loss at one point or at many: operators, eigenpairs, traces, and quantities along directions."""

from hessian_tools.curvature.along import (
    DESCENT_THRESHOLD,
    AlongGradient,
    alignment,
    along,
    cos_displacement,
    cosine_null,
    filter_scale,
    product_asymmetry,
    rho_normalised,
    rounding_error,
    small_step_difference,
)
from hessian_tools.curvature.eigen import EigenPairs, Extremes, extremal_eigenpairs, top_eigenpairs
from hessian_tools.curvature.interface import Operator
from hessian_tools.curvature.operators import Hessian, gradient, hessian
from hessian_tools.curvature.trace import Estimate, rademacher, trace

__all__ = [
    "DESCENT_THRESHOLD",
    "AlongGradient",
    "EigenPairs",
    "Estimate",
    "Extremes",
    "Hessian",
    "Operator",
    "alignment",
    "along",
    "cos_displacement",
    "cosine_null",
    "extremal_eigenpairs",
    "filter_scale",
    "gradient",
    "hessian",
    "product_asymmetry",
    "rademacher",
    "rho_normalised",
    "rounding_error",
    "small_step_difference",
    "top_eigenpairs",
    "trace",
]
