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
from hessian_tools.curvature.check import Check, Finding, check_operator
from hessian_tools.curvature.density import Density, quadrature, spectral_density
from hessian_tools.curvature.eigen import EigenPairs, Extremes, extremal_eigenpairs, top_eigenpairs
from hessian_tools.curvature.gauss_newton import GaussNewton, gauss_newton
from hessian_tools.curvature.gram import GramSpectrum, gauss_newton_spectrum
from hessian_tools.curvature.interface import Operator
from hessian_tools.curvature.moments import Diagonal, Moments, diagonal, frobenius_squared, moments
from hessian_tools.curvature.operators import Hessian, gradient, hessian
from hessian_tools.curvature.spectrum import Spectrum, spectrum
from hessian_tools.curvature.trace import Estimate, estimate_of, rademacher, trace

__all__ = [
    "DESCENT_THRESHOLD",
    "AlongGradient",
    "Block",
    "Check",
    "Combination",
    "Density",
    "Diagonal",
    "EigenPairs",
    "Estimate",
    "Extremes",
    "Finding",
    "GaussNewton",
    "GramSpectrum",
    "Hessian",
    "Moments",
    "Operator",
    "Restriction",
    "Spectrum",
    "alignment",
    "along",
    "check_operator",
    "cos_displacement",
    "cosine_null",
    "diagonal",
    "estimate_of",
    "extremal_eigenpairs",
    "filter_scale",
    "frobenius_squared",
    "gauss_newton",
    "gauss_newton_spectrum",
    "gradient",
    "hessian",
    "moments",
    "product_asymmetry",
    "quadrature",
    "rademacher",
    "rho_normalised",
    "rounding_error",
    "small_step_difference",
    "spectral_density",
    "spectrum",
    "top_eigenpairs",
    "trace",
]
