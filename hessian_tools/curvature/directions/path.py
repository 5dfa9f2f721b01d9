"""How straight an inner loop is, and how well first derivatives alone describe it."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.torch_fixes.precision import full_precision


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


@full_precision
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
