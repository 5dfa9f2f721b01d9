"""Whether the ends of one large and of K small inner steps differ along H g, as the expansion for small steps says.

SHOT (Lee, Yoo, Kwak 2023) penalises the distance between the end of a loop of T large steps (the target) and that of a
loop of R small steps (the reference). Here T is 1 and R is the number K of inner steps.
"""

import torch
from torch import Tensor

from analysis.quantities.each_task import Task, cosine_and_ratio, each_task
from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import task_variable
from hessian_tools.curvature import small_step_difference
from hessian_tools.inner.parameters import moved_part


def measure(points: Points) -> Values:
    """The actual difference theta_R - theta_T of the two ends, compared with (tau^2 / 2)(1/T - 1/R) H g.

    Both loops take the total time tau = alpha K, where alpha is the inner step size. g and H are the gradient and the
    Hessian at theta_0, and g_k is the gradient after k of the K steps. The difference is computed as
    alpha sum_k (g_0 - g_k), because the difference of the parameters loses digits for small steps. Where the inner loop
    moves only some parameters, H is the Hessian in these parameters. The values are NaN for K = 1, where both loops
    are the same, and for a learner without one step size alpha.
    """
    steps, alpha = points.trajectory.steps, points.step_size
    if points.learner.why_no_alpha or steps == 1:
        undefined = points.thetas.new_full((2, len(points.thetas)), torch.nan)
        return {"shot_direction_cosine": undefined[0], "shot_direction_ratio": undefined[1]}
    part = moved_part(points.learner, points.loss, device=points.thetas.device)

    def compared(task: Task) -> Tensor:
        gradients = points.trajectory_gradients[task.index]
        actual = alpha * (gradients[0] - gradients[:-1]).sum(0)
        predicted = small_step_difference(
            points.products.hg[task.index, 0], tau=alpha * steps, target_steps=1, reference_steps=steps
        )
        if part is not None:
            actual, predicted = part.take(actual), part.take(predicted)
        return cosine_and_ratio(actual, predicted)

    cosine, ratio = each_task(points, compared, 2).unbind(-1)
    return {"shot_direction_cosine": cosine, "shot_direction_ratio": ratio}


QUANTITY = Quantity(
    name="shot_direction",
    title="SHOT's difference against its small-step expansion",
    formula="theta_R - theta_T against (tau^2 / 2)(1/T - 1/R) H g at theta_0, for T = 1, R = K, tau = alpha K",
    variables=(
        task_variable(
            "shot_direction_cosine",
            "cosine between theta_R - theta_T and its small-step expansion (tau^2 / 2)(1/T - 1/R) H g, T = 1, R = K",
        ),
        task_variable(
            "shot_direction_ratio",
            "norm of theta_R - theta_T relative to that of its small-step expansion, T = 1, R = K",
        ),
    ),
    measure=measure,
    library="hessian_tools.curvature.small_step_difference",
    cost="one product with the Hessian, H g at theta_0, which other quantities compute as well",
    reference="Barrett, Dherin 2021 (drift of gradient descent)",
)
