"""What the checks of an operator share: a finding, and the checks that need no more than products and gradients.

``check_operator`` uses these checks for operators of this library, and ``audit`` for products of other tools.
"""

from dataclasses import dataclass, replace
from math import nan

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.checks.differences import difference_quotients
from hessian_tools.curvature.operators.gauss_newton import GaussNewton
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.terms import leaves, magnitude, terms
from hessian_tools.result import Result
from hessian_tools.rng import stream

# Differences that come from rounding alone stay below ROUNDING * eps, in units of |Hv|.
ROUNDING = 1e4
# The forward and the backward difference quotient must agree to this fraction of |Hv|. Where they do not, the loss is
# not smooth, and difference quotients say nothing about the products.
SMOOTH = 1e-3
# The error of a central difference is at most twice the disagreement of the forward and the backward one, or this
# fraction of |Hv| if that is more.
DIFFERENCES = 1e-5


@dataclass(frozen=True, repr=False)
class Finding(Result):
    """The result of one check.

    passed: True or False, or None where the check could not be made. value: the largest error that was measured.
    allowed: the largest error that passes. sentence: what was found, and what to do about it.
    """

    name: str
    passed: bool | None
    value: float
    allowed: float
    sentence: str


def directions(H: Operator, count: int, seed: int, name: str) -> Float[Tensor, "param probe"]:
    """Random unit columns."""
    columns = torch.randn(H.num_params, count, generator=stream(seed, "check", name), dtype=torch.float64, device="cpu")
    return (columns / columns.norm(dim=0)).to(H.device, H.dtype)


def check_symmetry(H: Operator, U: Tensor, V: Tensor, *, allowed: float | None = None) -> Finding:
    """Whether u'Hv = v'Hu; allowed: the largest error that passes, by default that of rounding alone."""
    # magnitude is |Hv| for each column v, or for a sum of operators the sum of the norms of its terms.
    scale = (magnitude(H, U) + magnitude(H, V)) / 2
    value = worst((U * (H @ V)).sum(-2) - (V * (H @ U)).sum(-2), scale)
    text = f"u'Hv and v'Hu differ by {{}} of {unit_of(H)}"
    return judged("symmetry", value, allowed or rounding_of(H), text, "so this is not a Hessian")


def check_linearity(H: Operator, U: Tensor, V: Tensor, *, allowed: float | None = None) -> Finding:
    """Whether H(2u - 3v) = 2Hu - 3Hv; allowed: the largest error that passes, by default that of rounding alone."""
    difference = (H @ (2 * U - 3 * V) - (2 * (H @ U) - 3 * (H @ V))).double().norm(dim=-2)
    value = worst(difference, 2 * magnitude(H, U) + 3 * magnitude(H, V))
    text = "H(2u - 3v) and 2Hu - 3Hv differ by {} of their size"
    return judged("linearity", value, allowed or rounding_of(H), text, "so this is not a linear operator")


def check_differences(H: Operator, V: Tensor, products: Tensor, norms: Tensor, *, allowed: float = 0.0) -> Finding:
    """Whether products with V, which may be somebody else's, agree with central differences of the gradient.

    H: the operator in float64, of which only the gradients are used. norms: those of the products; for a sum of
    operators, the sum of its terms' norms. allowed: a relative error that always passes, however exact the differences
    are.
    """
    if any(isinstance(leaf, GaussNewton) and not leaf.objective.network.has_criterion for leaf in leaves(H)):
        return not_judged("differences", "not judged, because the network computes its loss itself")
    quotients = difference_quotients(H, V)
    scale = torch.maximum(norms, quotients.central.norm(dim=1)).maximum(quotients.smallest_visible)
    scale = torch.where(scale == 0, 1.0, scale)
    error, disagreement = (products - quotients.central).norm(dim=1) / scale, quotients.disagreement / scale
    limit = (2 * disagreement).clamp(min=max(DIFFERENCES, allowed))
    # What is not finite is judged as well, and fails.
    smooth = (disagreement <= SMOOTH) | ~torch.isfinite(error + disagreement)
    if not smooth.any():
        share = f"{float(disagreement.min()):.1e} of {unit_of(H)}"
        reason = f"the forward and the backward difference quotient of its gradient differ by {share}"
        return not_judged("differences", f"not judged, because the loss is not smooth here: {reason}")
    # The place of the worst error. At -1 an entry that is not judged is never the largest.
    at = torch.where(smooth, (error / limit).nan_to_num(nan=torch.inf), -1.0).argmax()
    text = f"products differ from central differences of the gradient by {{}} of {unit_of(H)}"
    conclusion = "so they are not derivatives of this loss's gradient"
    return judged("differences", float(error.flatten()[at]), float(limit.flatten()[at]), text, conclusion)


def in_dtype(matrix: LossOperator, dtype: torch.dtype) -> LossOperator:
    """The matrix of the same objective with points, batches and products in another dtype."""
    thetas = matrix.objective.thetas.to(dtype)
    groups = tuple(group.cast(thetas) for group in matrix.objective.groups)
    objective = replace(matrix.objective, thetas=thetas, groups=groups)
    return replace(matrix, prepared=matrix.engine.prepare(objective, matrix.prepared.matrix))


def unit_of(H: Operator) -> str:
    """The unit of errors, in words. For sums it is the size of the terms, because the terms may nearly cancel."""
    return "|Hv|" if len(terms(H)) == 1 else "the terms of Hv"


def rounding_of(H: Operator) -> float:
    """The largest relative difference of two products that rounding in the dtype of H explains."""
    return ROUNDING * torch.finfo(H.dtype).eps


def worst(difference: Tensor, scale: Tensor) -> float:
    """The largest |difference| in units of scale; it is 0 where both are 0, and NaN if any is NaN."""
    relative = difference.abs() / torch.where(difference == 0, 1.0, scale)
    return float(relative.max())


def judged(name: str, value: float, allowed: float, text: str, conclusion: str) -> Finding:
    """A finding, which fails if the value is above the allowed one or NaN.

    Its sentence is the text with the value in place of ``{}``, followed by the conclusion if the check failed.
    """
    if value != value:  # NaN
        return Finding(name, False, value, allowed, "products are not finite")
    passed, sentence = value <= allowed, f"{text.format(f'{value:.1e}')} (allowed {allowed:.1e})"
    return Finding(name, passed, value, allowed, sentence if passed else f"{sentence}; {conclusion}")


def not_judged(name: str, sentence: str) -> Finding:
    """The finding of a check that could not be made."""
    return Finding(name, None, nan, nan, sentence)
