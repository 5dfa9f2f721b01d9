"""Two measures of how far the gradients of an inner loop point the same way, and a null hypothesis for one of them."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.directions.gradient_curvature import in_units
from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.result import Result
from hessian_tools.torch_fixes.precision import full_precision


@dataclass(frozen=True, repr=False)
class Null(Result):
    """The values of a quantity under its null hypothesis, that is, if nothing but chance is at work.

    low, high: the ends of an interval that the quantity then never leaves. mean, std: its mean and standard deviation;
    NaN where the hypothesis does not fix them.
    """

    low: float
    high: float
    mean: float = math.nan
    std: float = math.nan


def cosine_null(steps: int) -> Null:
    """The range of the mean of :func:`cos_displacement` if the K gradients are orthogonal: [1/K, 1/sqrt(K)].

    steps: the number K of inner steps.
    The squared cosines then sum to one. Their mean is 1/sqrt(K) for gradients of equal norms, and 1/K if one gradient
    makes all of the displacement. Otherwise the mean depends on the norms, so mean and std of the null are NaN.
    Raises ValueError for fewer than one step.

    >>> cosine_null(4)
    Null(low=0.25, high=0.5, mean=nan, std=nan)
    """
    return Null(1 / steps, steps**-0.5)


@full_precision
def cos_displacement(
    gradients: Float[Tensor, "*point step param"], displacement: Float[Tensor, "*point param"]
) -> Float[Tensor, "*point step"]:
    """cos(-g_k, theta_K - theta_0) at every inner step k; NaN where either is 0 (Lee, Yoo, Kwak 2023, figure 3).

    Compare its mean over the steps with :func:`cosine_null`, because orthogonal gradients have a positive mean too.

    >>> import torch
    >>> cos_displacement(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([-1.0, -1.0]))
    tensor([0.7071, 0.7071])
    """
    # A cosine does not depend on lengths. In these units the squares neither underflow nor overflow.
    (gradients, _), (displacement, _) = in_units(gradients), in_units(displacement)
    dot = -(gradients * displacement[..., None, :]).sum(-1)
    return dot / (vector_norm(gradients) * vector_norm(displacement)[..., None])


def alignment(gram: Float[Tensor, "*point step step"]) -> Float[Tensor, "*point"]:
    """A = (|sum_k g_k|^2 / sum_k |g_k|^2 - 1) / (K - 1), from the Gram matrix of the K inner gradients.

    A is 0 when the gradients are orthogonal whatever their norms, 1 when they are equal, and negative when they
    oscillate. It is NaN for K < 2 and for zero gradients. Orthogonality is a weak null hypothesis: for any network
    A -> 1 as the step size -> 0.

    >>> import torch
    >>> float(alignment(torch.ones(3, 3))), float(alignment(torch.eye(3)))
    (1.0, 0.0)
    """
    steps = gram.shape[-1]
    _, unit = in_units(gram.diagonal(dim1=-2, dim2=-1))
    gram = gram / unit[..., None, None]
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (gram.sum((-2, -1)) - trace) / ((steps - 1) * trace)
