"""Composed operators taken apart: the terms of a sum, the matrices of a loss at their leaves."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.operators.composite import Combination, Projected
from hessian_tools.curvature.operators.lengths import lengths
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.curvature.operators.operator import Operator


def terms(H: Operator) -> list[tuple[float, Operator]]:
    """(c_i, A_i) with H = sum_i c_i A_i and no sum inside any A_i: blocks and restrictions of a sum are taken apart."""
    if isinstance(H, Combination):
        return [(weight * inner, term) for weight, whole in H.terms for inner, term in terms(whole)]
    if isinstance(H, Projected):
        return [(weight, replace(H, whole=term)) for weight, term in terms(H.whole)]
    return [(1.0, H)]


def leaves(H: Operator) -> list[Operator]:
    """The operators that H is made of, not made of others themselves."""
    if isinstance(H, Combination):
        return [leaf for _, term in H.terms for leaf in leaves(term)]
    return leaves(H.whole) if isinstance(H, Projected) else [H]


def rebuilt(H: Operator, change: Callable[[LossOperator], LossOperator]) -> Operator:
    """H with its leaves, all matrices of a loss, exchanged; what lies around them follows their dtype."""
    if isinstance(H, Combination):
        return Combination(tuple((weight, rebuilt(term, change)) for weight, term in H.terms))
    if isinstance(H, Projected):
        whole = rebuilt(H.whole, change)
        own = {name: value.to(whole.dtype) for name, value in vars(H).items() if _floating(value)}
        return replace(H, whole=whole, **own)
    assert isinstance(H, LossOperator)
    return change(H)


def magnitude(H: Operator, V: Float[Tensor, "param probe"]) -> Float[Tensor, "*point probe"]:
    """sum_i |c_i| |A_i v|, in float64: the size of what a product is added up from, to measure its rounding by."""
    return torch.stack([abs(weight) * lengths((term @ V).mT) for weight, term in terms(H)]).sum(0)


def _floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
