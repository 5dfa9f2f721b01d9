"""The curvature penalty: a term of the outer objective that penalises the curvature along the inner gradient.

At step k of an inner loop let g_k be the gradient of the support loss in the parameters that the inner loop adapts (all
of the network's for MAML, the head's for ANIL), H_k its Hessian in the same parameters, and alpha the step size. A step
changes the gradient by -alpha H_k g_k to leading order, so alpha |H_k g_k| / |g_k| is the relative change of the
gradient. The other penalty, SHOT (see ``hessian_tools.inner.shot``), makes this change small indirectly.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.inner.descent import InnerPath
from hessian_tools.inner.learners import Learner


@dataclass(frozen=True)
class CurvaturePenalty:
    """The penalty weight x (mean over the K inner steps of alpha |H_k g_k| / |g_k|), added to the query loss.

    The outer gradient differentiates the mean completely: through each g_k and each H_k, which takes third derivatives
    of the support loss, and through the points theta_k of the inner loop. A first-order learner (such as
    ``maml(first_order=True)``) treats the inner steps as constants, here as in its query loss: theta_k = theta + c_k
    with a constant c_k.

    weight: the factor of the mean, which has no unit; a negative weight rewards curvature.
    """

    weight: float = 0.1

    def check(self, learner: Learner) -> None:
        """Raise ValueError for a learner that the penalty does not fit."""
        if learner.why_no_alpha:
            raise ValueError(
                f"penalty needs inner steps of alpha times the gradient, which {learner.name} does not take:"
                f" {learner.why_no_alpha}; use penalty=None"
            )
        if learner.outer != "query":
            raise ValueError(
                f"penalty is added to the query loss after the inner loop, which {learner.name} does not descend in"
                " training; use penalty=None"
            )


def mean_relative_change(path: InnerPath, step_size: float) -> Float[Tensor, ""]:
    """The mean over the steps of alpha |H_k g_k| / |g_k|, where the path holds the products H_k g_k.

    A step with g_k = 0 changes nothing, so it counts as 0, and so does its derivative.
    """
    ratios = []
    for gradient in path.gradients:
        if gradient.product is None:
            raise ValueError("the path has no products of Hessian and gradient; make it with products=True")
        length = torch.linalg.vector_norm(gradient.vector)
        # At g = 0 the product H g is 0, too, and is divided by 1. A division by 0 would make the derivative NaN.
        ratios.append(torch.linalg.vector_norm(gradient.product) / torch.where(length == 0, 1.0, length))
    return step_size * torch.stack(ratios).mean()
