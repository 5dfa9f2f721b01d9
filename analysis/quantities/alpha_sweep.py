"""The query loss and the query accuracy after an inner loop with other step sizes than the learner's own."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from analysis.quantities.each_task import Task, each_task
from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import Sizes, task_variable
from hessian_tools.inner.meta_loss import accuracy

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the learner's step size


def measure(points: Points) -> Values:
    """The query loss and accuracy after the K inner steps, with all step sizes multiplied by each of ``FACTORS``.

    NaN where the loop leaves the finite numbers, and for LEO, whose inner loop moves latent codes in place of
    parameters.
    """

    def loss_and_accuracy(task: Task) -> Tensor:
        rows = []
        for factor in FACTORS:
            # The loop with the factor 1 is the recorded one.
            theta = task.thetas[-1] if factor == 1 else task.adapted(step_factor=factor)
            with torch.no_grad():
                outputs = points.loss.outputs(theta, task.query[0])
                rows.append(
                    torch.stack([points.loss.criterion(outputs, task.query[1]), accuracy(outputs, task.query[1])])
                )
        return torch.stack(rows, -1)  # [2, factor]

    if points.learner.latent is not None:
        values = points.thetas.new_full((len(points.thetas), 2, len(FACTORS)), torch.nan)
    else:
        values = each_task(points, loss_and_accuracy, 2, len(FACTORS))
    return {"swept_query_loss": values[:, 0], "swept_query_accuracy": values[:, 1]}


def coords(_sizes: Sizes) -> Mapping[str, np.ndarray]:
    """The factors of the step size."""
    return {"alpha_factor": np.array(FACTORS)}


QUANTITY = Quantity(
    name="alpha_sweep",
    title="adaptation with other step sizes",
    formula="query loss and accuracy after K steps of 1/4, 1/2, 1, 2 and 4 times the learner's step size(s)",
    variables=(
        task_variable(
            "swept_query_loss",
            "query loss after an inner loop with this multiple of the step size (cross-entropy in nat, or squared"
            " error); missing where it is not finite",
            "alpha_factor",
        ),
        task_variable(
            "swept_query_accuracy",
            "query accuracy after an inner loop with this multiple of the step size",
            "alpha_factor",
        ),
    ),
    measure=measure,
    library="hessian_tools.inner.adapt.learner_path",
    cost="no product with the Hessian; 4 K gradients and five passes over the query set for each task",
    reference="ours",
    products=False,
    coords=coords,
)
