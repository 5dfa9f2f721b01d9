"""The factors by which the inner loop stretches the distance between two nearby starting points."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import Sizes, task_variable
from hessian_tools.curvature import adaptation_jacobian, singular_values
from hessian_tools.inner.parameters import moved_part, step_sizes
from hessian_tools.inner.steps import PLAIN

COUNT = 2  # the number of singular values


def measure(points: Points) -> Values:
    """The two largest singular values of J = d theta_K / d theta_0, where theta_k are the parameters after k steps.

    K is the number of inner steps. Each value has an error: at least one exact singular value lies within this
    distance. J is the Jacobian in all parameters of the network, also where the inner loop moves only some of them. The
    values are NaN where a step is anything but the gradient with each entry multiplied by a constant: for other step
    rules, and for LEO, whose inner loop moves latent codes in place of parameters. The settings of the
    measurement, ``points.level``, give the tolerance and the largest number of products.
    """
    learner, num_tasks = points.learner, len(points.thetas)
    if learner.latent is not None or learner.rule != PLAIN:
        undefined = points.thetas.new_full((num_tasks, COUNT), torch.nan)
        return {"adaptation_singular_value": undefined, "adaptation_singular_value_residual": undefined.clone()}
    K = points.trajectory.steps
    # The Hessian holds the points theta_0 to theta_K of one task after the other. The K steps of a task were taken from
    # all of these but theta_K.
    starts = torch.arange(num_tasks * (K + 1), device="cpu").reshape(num_tasks, K + 1)[:, :-1].flatten()
    singular = singular_values(
        adaptation_jacobian(points.hessian.select(starts), _step_sizes(points), steps=K),
        k=COUNT,
        rtol=points.level.tolerance,
        seed=points.seed,
        max_matvecs=points.level.max_matvecs,
        copies=False,  # a repeated largest value adds nothing here, and the search for one takes more products
    )
    return {"adaptation_singular_value": singular.values, "adaptation_singular_value_residual": singular.error}


def _step_sizes(points: Points) -> float | Tensor:
    """The step size alpha where it is the same for all parameters, or else that of each parameter [task, step, param].

    A parameter that the inner loop does not move has the step size 0.
    """
    learner, loss, theta = points.learner, points.loss, points.meta_theta.detach()
    sizes = step_sizes(learner, loss, theta)
    part = moved_part(learner, loss, device=theta.device)
    if part is None and not isinstance(sizes, Tensor):
        return sizes
    each = theta.new_zeros(loss.layout.numel)
    positions = torch.arange(len(each), device=theta.device) if part is None else part.positions
    each[positions] = sizes
    # Every task and every step has the same step sizes.
    return each.expand(len(points.thetas), points.trajectory.steps, -1)


def coords(_sizes: Sizes) -> Mapping[str, np.ndarray]:
    """The positions of the singular values, from the largest on."""
    return {"singular_index": np.arange(COUNT)}


QUANTITY = Quantity(
    name="adaptation",
    title="stretch of the inner loop",
    formula="largest singular values of J = d theta_K / d theta_0 = (I - alpha H_{K-1}) ... (I - alpha H_0)",
    variables=(
        task_variable(
            "adaptation_singular_value",
            "largest singular values of d theta_K / d theta_0, by which the distance of nearby starts grows",
            "singular_index",
            error="adaptation_singular_value_residual",
        ),
        task_variable(
            "adaptation_singular_value_residual",
            "distance within which at least one exact singular value lies",
            "singular_index",
        ),
    ),
    measure=measure,
    library="hessian_tools.adaptation_jacobian, hessian_tools.singular_values",
    # A product with J'J takes two products with each of the K Hessians, and the check of a singular value takes three.
    cost=f"at most 2 max_matvecs + {3 * COUNT} products with the Hessian; none at theta_K, from which no step is taken",
    reference="Finn, Abbeel, Levine 2017 (J in the meta-gradient); Lanczos 1950",
    level="full",
    coords=coords,
)
