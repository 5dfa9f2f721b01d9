"""Curvature of a loss at one point or at many: operators, eigenvalues, traces, and quantities along directions."""

from typing import TYPE_CHECKING

from hessian_tools.curvature.checks.audit import Audit, audit
from hessian_tools.curvature.checks.check import Check, check_operator
from hessian_tools.curvature.checks.findings import Finding
from hessian_tools.curvature.directions.adaptation import AdaptationJacobian, adaptation_jacobian
from hessian_tools.curvature.directions.gradient_curvature import (
    DESCENT_THRESHOLD,
    GradientCurvature,
    curvature_along,
    filter_scale,
    gradient_curvature,
    product_asymmetry,
    random_rotations,
    rho_normalised,
    rounding_error,
    small_step_difference,
    tensor_parts,
)
from hessian_tools.curvature.directions.loss_along import LossAlong, filter_normalised, loss_along, loss_surface
from hessian_tools.curvature.directions.path import (
    Null,
    alignment,
    cos_displacement,
    cosine_null,
    drop_ratio,
    linearisation_error,
    path_ratio,
)
from hessian_tools.curvature.directions.singular_values import SingularValues, singular_values
from hessian_tools.curvature.directions.subspace import (
    GaussNewtonShare,
    gauss_newton_share,
    gradient_share,
    overlap_null,
    principal_angles,
    step_overlaps,
    subspace_error,
    subspace_overlap,
    vector_error,
)
from hessian_tools.curvature.directions.third_derivative import Expansion, third_derivative
from hessian_tools.curvature.eigen.pairs import EigenPairs, Extremes, extremal_eigenpairs, top_eigenpairs
from hessian_tools.curvature.eigen.spectrum import Spectrum, gauss_newton_spectrum, spectrum
from hessian_tools.curvature.estimates.by_module import ByModule, by_module
from hessian_tools.curvature.estimates.density import Density, quadrature, spectral_density
from hessian_tools.curvature.estimates.jackknife import Jackknife, jackknife
from hessian_tools.curvature.estimates.moments import Diagonal, Moments, diagonal, frobenius_squared, moments
from hessian_tools.curvature.estimates.plan import MemoryPlan, plan
from hessian_tools.curvature.estimates.trace import Estimate, estimate_of, rademacher, trace
from hessian_tools.curvature.objective.validation import Ragged, ragged
from hessian_tools.curvature.operators.gauss_newton import GaussNewton, gauss_newton
from hessian_tools.curvature.operators.hessian import Hessian, gradient, hessian, hessian_of
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.preconditioned import preconditioned
from hessian_tools.deprecation import old_names

# The operators, the gradient, and the check that an operator is the matrix that it claims to be.
__all__ = ["hessian", "hessian_of", "gauss_newton", "gradient", "ragged", "preconditioned", "check_operator"]
__all__ += ["Operator", "Hessian", "GaussNewton", "Ragged", "Check", "Finding"]
# A check of Hessian-vector products that other code computes.
__all__ += ["audit", "Audit"]
# Eigenvalues.
__all__ += ["top_eigenpairs", "extremal_eigenpairs", "spectrum", "gauss_newton_spectrum"]
__all__ += ["EigenPairs", "Extremes", "Spectrum"]
# Traces, norms, diagonals and densities, from random probes.
__all__ += ["trace", "moments", "frobenius_squared", "diagonal", "spectral_density", "quadrature"]
__all__ += ["by_module", "ByModule", "jackknife", "Jackknife"]
__all__ += ["plan", "MemoryPlan"]
__all__ += ["Estimate", "Moments", "Diagonal", "Density", "rademacher", "estimate_of"]
# Quantities along the gradient.
__all__ += ["loss_along", "LossAlong"]
__all__ += ["gradient_curvature", "GradientCurvature", "DESCENT_THRESHOLD", "third_derivative", "Expansion"]
__all__ += ["curvature_along", "product_asymmetry", "rounding_error", "filter_scale", "rho_normalised"]
__all__ += ["tensor_parts", "random_rotations"]
# The loss on a plane through a point.
__all__ += ["loss_surface", "filter_normalised"]
# Comparisons of eigenspaces, and the share of the Hessian that is its Gauss-Newton part.
__all__ += ["gradient_share", "subspace_overlap", "step_overlaps", "principal_angles", "overlap_null"]
__all__ += ["subspace_error", "vector_error", "gauss_newton_share", "GaussNewtonShare"]
# Quantities of a whole inner loop.
__all__ += ["adaptation_jacobian", "AdaptationJacobian", "singular_values", "SingularValues"]
__all__ += ["alignment", "cos_displacement", "cosine_null", "Null", "small_step_difference"]
__all__ += ["path_ratio", "drop_ratio", "linearisation_error"]

# Former names, which still work and give a warning. A type checker does not see this __getattr__, because with it the
# checker would accept any attribute name.
if not TYPE_CHECKING:
    _OPERATORS, _DIRECTIONS = (f"{__name__}.{package}" for package in ("operators.composite", "directions"))
    __getattr__ = old_names(
        __name__,
        {
            "AdaptationGram": f"{_DIRECTIONS}.adaptation.AdaptationGram",
            "AlongGradient": f"{__name__}.GradientCurvature",
            "Block": f"{_OPERATORS}.Block",
            "Combination": f"{_OPERATORS}.Combination",
            "Explained": f"{__name__}.GaussNewtonShare",
            "GramSpectrum": f"{__name__}.Spectrum",
            "Restriction": f"{_OPERATORS}.Restriction",
            "along": f"{__name__}.curvature_along",
            "cubic_term": f"{__name__}.third_derivative",
            "explained_by_gauss_newton": f"{__name__}.gauss_newton_share",
            "is_multiaffine": f"{__name__}.estimates.multiaffine.is_multiaffine",
        },
    )
