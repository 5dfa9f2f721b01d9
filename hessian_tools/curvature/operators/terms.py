"""Composed operators taken apart: into the terms of a sum, or into the operators that they are made of."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.operators.composite import Combination, Projected
from hessian_tools.curvature.operators.lengths import lengths
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.curvature.operators.operator import Operator


def terms(H: Operator) -> list[tuple[float, Operator]]:
    """The pairs (c_i, A_i) with H = sum_i c_i A_i, where no A_i contains a sum.

    A block or a restriction of a sum becomes a sum of blocks or restrictions.
    """
    if isinstance(H, Combination):
        return [(weight * inner, term) for weight, whole in H.terms for inner, term in terms(whole)]
    if isinstance(H, Projected):
        return [(weight, replace(H, whole=term)) for weight, term in terms(H.whole)]
    return [(1.0, H)]


def leaves(H: Operator) -> list[Operator]:
    """The operators that H is made of and that are not themselves made of others."""
    if isinstance(H, Combination):
        return [leaf for _, term in H.terms for leaf in leaves(term)]
    return leaves(H.whole) if isinstance(H, Projected) else [H]


def rebuilt(H: Operator, change: Callable[[LossOperator], LossOperator]) -> Operator:
    """The operator H with each of its leaves replaced by ``change(leaf)``; all leaves must be matrices of a loss.

    The tensors of composed operators, such as the Q of a restriction, are cast to the dtype of the new leaves.
    """
    if isinstance(H, Combination):
        return Combination(tuple((weight, rebuilt(term, change)) for weight, term in H.terms))
    if isinstance(H, Projected):
        whole = rebuilt(H.whole, change)
        tensors = {name: value for name, value in vars(H).items() if isinstance(value, Tensor)}
        # The positions of the rows of a block are integers and stay as they are.
        cast = {name: value.to(whole.dtype) for name, value in tensors.items() if value.is_floating_point()}
        return replace(H, whole=whole, **cast)
    assert isinstance(H, LossOperator)
    return change(H)


def weights_of_batches(H: Operator) -> tuple[float, ...]:
    """The weight of each batch in H: the sum of the operators of :func:`by_batch`, each times its weight, is H.

    Raises ValueError unless H is made of matrices of losses over the same number of batches with the same weights.
    """
    parts = [leaf for leaf in leaves(H) if isinstance(leaf, LossOperator)]
    if not parts or len(parts) < len(leaves(H)):
        raise ValueError(f"a {type(H).__name__} is not made of losses, so it has no batches; give the matrix of a loss")
    if any(len(leaf.objective.groups) > 1 for leaf in parts):
        raise ValueError("the points have batches of different sizes; give the operator of points of one size")
    weights = [leaf.objective.all_weights for leaf in parts]
    if any(each != weights[0] for each in weights):
        raise ValueError("the terms of the operator have other batches or weights; give terms on the same batches")
    return weights[0]


def by_batch(H: Operator) -> Iterator[Operator]:
    """The same operator for each batch alone; each must be used before the next one is asked for.

    Raises ValueError where :func:`weights_of_batches` does.
    """
    weights_of_batches(H)
    parts = [leaf for leaf in leaves(H) if isinstance(leaf, LossOperator)]
    for objectives in zip(*(leaf.objective.by_batch_of_all_processes() for leaf in parts), strict=True):
        alone = {
            id(leaf): replace(leaf, prepared=leaf.engine.prepare(objective, leaf.prepared.matrix))
            for leaf, objective in zip(parts, objectives, strict=True)
        }
        yield rebuilt(H, lambda leaf, alone=alone: alone[id(leaf)])  # type: ignore[misc]


def magnitude(H: Operator, V: Float[Tensor, "param probe"]) -> Float[Tensor, "*point probe"]:
    """The sum of |c_i| |A_i v| over the terms of H, in float64, for each column v.

    Each term adds a rounding error in proportion to its size, so the checks divide the error of a product by this sum.
    """
    return torch.stack([abs(weight) * lengths((term @ V).mT) for weight, term in terms(H)]).sum(0)
