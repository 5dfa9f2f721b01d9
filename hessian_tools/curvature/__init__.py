"""Curvature of a loss at one point or at many: operators, eigenpairs, traces, and quantities along directions."""

from hessian_tools.curvature.checks.check import Check, Finding, check_operator
from hessian_tools.curvature.directions.adaptation import AdaptationGram, AdaptationJacobian, adaptation_jacobian
from hessian_tools.curvature.directions.gauss_newton_share import Explained, explained_by_gauss_newton
from hessian_tools.curvature.directions.gradient_curvature import (
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
from hessian_tools.curvature.directions.singular_values import SingularValues, singular_values
from hessian_tools.curvature.directions.subspace import (
    gradient_share,
    overlap_null,
    principal_angles,
    step_overlaps,
    subspace_error,
    subspace_overlap,
    vector_error,
)
from hessian_tools.curvature.directions.third_derivative import Expansion, cubic_term
from hessian_tools.curvature.eigen.pairs import EigenPairs, Extremes, extremal_eigenpairs, top_eigenpairs
from hessian_tools.curvature.eigen.spectrum import GramSpectrum, Spectrum, gauss_newton_spectrum, spectrum
from hessian_tools.curvature.estimates.density import Density, spectral_density
from hessian_tools.curvature.estimates.gauss_rules import quadrature
from hessian_tools.curvature.estimates.moments import Diagonal, Moments, diagonal, frobenius_squared, moments
from hessian_tools.curvature.estimates.multiaffine import is_multiaffine
from hessian_tools.curvature.estimates.trace import Estimate, estimate_of, rademacher, trace
from hessian_tools.curvature.objective.groups import Ragged, ragged
from hessian_tools.curvature.operators.composite import Block, Combination, Restriction
from hessian_tools.curvature.operators.gauss_newton import GaussNewton, gauss_newton
from hessian_tools.curvature.operators.hessian import Hessian, gradient, hessian
from hessian_tools.curvature.operators.operator import Operator

__all__ = [
    "DESCENT_THRESHOLD",
    "AdaptationGram",
    "AdaptationJacobian",
    "AlongGradient",
    "Block",
    "Check",
    "Combination",
    "Density",
    "Diagonal",
    "EigenPairs",
    "Estimate",
    "Expansion",
    "Explained",
    "Extremes",
    "Finding",
    "GaussNewton",
    "GramSpectrum",
    "Hessian",
    "Moments",
    "Operator",
    "Ragged",
    "Restriction",
    "SingularValues",
    "Spectrum",
    "adaptation_jacobian",
    "alignment",
    "along",
    "check_operator",
    "cos_displacement",
    "cosine_null",
    "cubic_term",
    "diagonal",
    "estimate_of",
    "explained_by_gauss_newton",
    "extremal_eigenpairs",
    "filter_scale",
    "frobenius_squared",
    "gauss_newton",
    "gauss_newton_spectrum",
    "gradient",
    "gradient_share",
    "hessian",
    "is_multiaffine",
    "moments",
    "overlap_null",
    "principal_angles",
    "product_asymmetry",
    "quadrature",
    "rademacher",
    "ragged",
    "rho_normalised",
    "rounding_error",
    "singular_values",
    "small_step_difference",
    "spectral_density",
    "spectrum",
    "step_overlaps",
    "subspace_error",
    "subspace_overlap",
    "top_eigenpairs",
    "trace",
    "vector_error",
]
