"""The curvature along random rotations of the gradient, a null hypothesis for the curvature along the gradient."""

import torch
from torch import Tensor

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable
from hessian_tools.curvature import Estimate, curvature_along, estimate_of, random_rotations


def measure(points: Points) -> Values:
    """The mean of v'Hv / v'v over random vectors v that have the norm of g in each parameter tensor.

    g is the inner gradient and H the Hessian. There are as many vectors as the trace has probes
    (``points.level`` holds the settings of the measurement). A task has the same directions at
    all inner steps, at all checkpoints and for all learners; only their lengths within the tensors follow the gradient.
    Where the inner loop moves only some tensors, v is zero in the others, as g is. The error is the standard error of
    the mean over the vectors.
    """
    rho = curvature_along_rotations(points, torch.ones_like(points.products.scale))
    return {"rho_rotated": rho.value, "rho_rotated_stderr": rho.stderr}


def curvature_along_rotations(points: Points, scale: Tensor) -> Estimate:
    """The mean of v'(D H D)v / v'v over random rotations v of D g, and its standard error.

    scale: the diagonal of D [task, step, param]; with ones this is the curvature of H along random rotations of g.
    """
    rotated = [
        random_rotations(
            points.loss.layout, g, points.level.probes, seed=points.task_seed, path=("rotated_gradient", task)
        )
        for task, g in zip(points.tasks, scale * points.gradients, strict=True)
    ]
    v, d = torch.stack(rotated), scale[..., None]
    hv = d * points.unflatten(points.hessian @ (d * v).flatten(0, 1))
    return estimate_of(curvature_along(v.mT, hv.mT).rho)  # v is [task, step, param, vector]


QUANTITY = Quantity(
    name="rotated_gradient",
    title="curvature along random rotations of the gradient",
    formula="v'Hv / v'v, mean over random v with |v_l| = |g_l| in each parameter tensor l",
    variables=(
        point_variable(
            "rho_rotated",
            "curvature along random rotations of g within each parameter tensor, mean over rotations",
            error="rho_rotated_stderr",
        ),
        point_variable("rho_rotated_stderr", "standard error of the mean of rho over random rotations of g"),
    ),
    measure=measure,
    library="hessian_tools.curvature.random_rotations, .curvature_along",
    cost="one product with the Hessian for each rotation, of which there are as many as probes",
    reference="ours",
)
