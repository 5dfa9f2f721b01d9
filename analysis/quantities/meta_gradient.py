"""How much the curvature of the inner loop changes the meta-gradient."""

from functools import partial

import torch
from torch import Tensor

from analysis.quantities.each_task import Task, cosine_and_ratio, each_task
from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import task_variable
from hessian_tools.inner.adapt import meta_gradient
from hessian_tools.inner.parameters import network_parameters


def measure(points: Points) -> Values:
    """The cosine and the ratio of norms of the full and the first-order meta-gradient of the query loss.

    The full one differentiates through the inner loop; the first-order one treats the inner gradients as constants.
    Both are taken with respect to the network's parameters. The values are NaN for LEO, whose inner loop moves latent
    codes in place of parameters.
    """

    def compared(task: Task) -> Tensor:
        gradient = partial(meta_gradient, points.learner, points.loss, points.meta_theta, task.support, task.query)
        full, first_order = (network_parameters(points.loss, gradient(full=full)) for full in (True, False))
        return cosine_and_ratio(full, first_order)

    if points.learner.latent is not None:
        cosine, ratio = points.thetas.new_full((2, len(points.thetas)), torch.nan)
    else:
        cosine, ratio = each_task(points, compared, 2).unbind(-1)
    return {"meta_gradient_cosine": cosine, "meta_gradient_ratio": ratio}


QUANTITY = Quantity(
    name="meta_gradient",
    title="full against first-order meta-gradient",
    formula="J'g against g, with g the gradient of the query loss at theta_K and J = d theta_K / d theta_0",
    variables=(
        task_variable("meta_gradient_cosine", "cosine between the full and the first-order meta-gradient"),
        task_variable("meta_gradient_ratio", "norm of the full meta-gradient relative to that of the first-order one"),
    ),
    measure=measure,
    library="hessian_tools.inner.adapt.meta_gradient",
    cost="one full and one first-order meta-gradient for each task, which take as long as some 2 K products with the"
    " Hessian",
    reference="Finn, Abbeel, Levine 2017; Nichol, Achiam, Schulman 2018",
    products=False,
)
