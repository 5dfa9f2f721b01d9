"""Curvature of a loss at one point or at many: operators, eigenpairs, traces, and quantities along directions."""

from hessian_tools.curvature.algebra import Block, Combination, Restriction
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
from hessian_tools.curvature.gauss_newton import GaussNewton, gauss_newton
from hessian_tools.curvature.gram import GramSpectrum, gauss_newton_spectrum
from hessian_tools.curvature.interface import Operator
from hessian_tools.curvature.operators import Hessian, gradient, hessian
from hessian_tools.curvature.trace import Estimate, rademacher, trace

__all__ = [
    "DESCENT_THRESHOLD",
    "AlongGradient",
    "Block",
    "Combination",
    "EigenPairs",
    "Estimate",
    "Extremes",
    "GaussNewton",
    "GramSpectrum",
    "Hessian",
    "Operator",
    "Restriction",
    "alignment",
    "along",
    "cos_displacement",
    "cosine_null",
    "extremal_eigenpairs",
    "filter_scale",
    "gauss_newton",
    "gauss_newton_spectrum",
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
