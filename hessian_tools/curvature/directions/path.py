"""How straight an inner loop is: its path, its gradients, and how well first derivatives describe it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.curvature.directions.gradient_curvature import in_units
from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.result import Result


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


def cos_displacement(
    gradients: Float[Tensor, "*point step param"], displacement: Float[Tensor, "*point param"]
) -> Float[Tensor, "*point step"]:
    """cos(-g_k, theta_K - theta_0) at every inner step k; NaN where either is 0 (Lee, Yoo, Kwak 2023, figure 3).

    Compare its mean over the steps with :func:`cosine_null`, because orthogonal gradients have a positive mean too.

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

    >>> float(alignment(torch.ones(3, 3))), float(alignment(torch.eye(3)))
    (1.0, 0.0)
    """
    steps = gram.shape[-1]
    _, unit = in_units(gram.diagonal(dim1=-2, dim2=-1))
    gram = gram / unit[..., None, None]
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (gram.sum((-2, -1)) - trace) / ((steps - 1) * trace)


def path_ratio(thetas: Float[Tensor, "*task step param"]) -> Float[Tensor, "*task"]:
    """The length of the path through the points, divided by the distance of its ends; at least 1.

    thetas: theta_0 ... theta_K. The ratio is 1 for a straight line, and large where the loop oscillates. It is NaN for
    a loop that does not move.

    >>> path_ratio(torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]))
    tensor(1.4000)
    """
    steps = thetas.diff(dim=-2)
    return vector_norm(steps).sum(-1) / vector_norm(thetas[..., -1, :] - thetas[..., 0, :])


def drop_ratio(
    losses: Float[Tensor, "*task step"],
    gradients: Float[Tensor, "*task step param"],
    thetas: Float[Tensor, "*task step param"],
) -> Float[Tensor, "*task step_k"]:
    """The fall of the loss in each step, divided by the fall that the gradient promises.

    The ratio is (L_k - L_{k+1}) / g_k'(theta_k - theta_{k+1}). All arguments are values at theta_0 ... theta_K, and
    there is a result for each of the K steps. For a step of alpha times the gradient the denominator is alpha |g_k|^2.
    On a quadratic loss with Hessian H the ratio is then 1 - alpha rho_k / 2, where rho_k = g_k'Hg_k / |g_k|^2. It is
    negative where the loss rises. Its rounding error is some eps |L_k| / (alpha |g_k|^2), because it divides a
    difference of losses.

    >>> thetas = torch.tensor([[1.0], [0.5]])  # a step of 0.5 on theta^2 / 2
    >>> drop_ratio((thetas**2).sum(-1) / 2, thetas, thetas)
    tensor([0.7500])
    """
    # Both are changes, which are the falls with a minus sign.
    return losses.diff(dim=-1) / (gradients[..., :-1, :] * thetas.diff(dim=-2)).sum(-1)


def linearisation_error(
    outputs: Callable[[Tensor], Any], start: Float[Tensor, " param"], end: Float[Tensor, " param"]
) -> Float[Tensor, ""]:
    """|f(end) - f_lin(end)| / |f(end) - f(start)| of the outputs f, where f_lin is f to first order around start.

    outputs: a function of the parameters that returns a tensor, or a pytree of tensors, such as
        ``lambda theta: loss.outputs(theta, x)``. It must be twice differentiable.

    The error is 0 where the inner loop moves the outputs as a linear model would, and above 1 where that model is worse
    than one whose outputs do not move. It is NaN where the outputs do not move. The cost is two forward and two
    backward passes.

    >>> linearisation_error(lambda theta: theta**2, torch.tensor([1.0]), torch.tensor([3.0]))  # |9 - 5| / |9 - 1|
    tensor(0.5000)
    """

    def flat(theta: Tensor) -> Tensor:
        return torch.cat([leaf.flatten() for leaf in pytree.tree_leaves(outputs(theta))])

    # torch.autograd.functional.jvp goes backwards twice, so it needs no forward derivative of the network's operations.
    at_start, change = torch.autograd.functional.jvp(flat, start.detach(), (end - start).detach())
    with torch.no_grad():
        actual = flat(end) - at_start
        return (actual - change).norm() / actual.norm()
