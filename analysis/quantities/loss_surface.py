"""The support loss on a plane through the start of the inner loop."""

from collections.abc import Mapping

import numpy as np
import torch

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import Sizes, task_variable
from hessian_tools.curvature import filter_normalised, loss_surface

PLACES = np.linspace(-1.0, 1.0, 15)  # an odd number, so that theta_0 itself is one of the places


def coords(_sizes: Sizes) -> Mapping[str, np.ndarray]:
    """The places along both axes of the plane, in units of the axes' directions."""
    return {"surface_x": PLACES, "surface_y": PLACES}


def measure(points: Points) -> Values:
    """The support loss around theta_0: along x the descent direction -g_0, along y a random direction.

    theta_0 is the start of the inner loop, and g_0 the gradient there. In ``loss_surface``, the unit of both axes is
    the length of the first inner step, which is alpha |g_0| for gradient descent with the step size alpha, so that
    (1, 0) is the end of that step. In ``loss_surface_normalised``, each filter of the directions has the norm of the
    same filter of theta_0, so that learners with larger weights are not drawn flatter for that alone.
    The random direction is the first probe of the task, which is the same for all learners and checkpoints.
    """
    theta, descent = points.thetas[:, 0], -points.trajectory_gradients[:, 0]
    random = points.probes[..., 0]
    length = (points.thetas[:, 1] - theta).norm(dim=-1, keepdim=True)
    layout, grid = points.loss.layout, torch.as_tensor(PLACES).to(theta)
    # With torch's default eps, a gradient shorter than 1e-12 would not be scaled to the full length.
    planes = {
        "loss_surface": [length * torch.nn.functional.normalize(d, dim=-1, eps=1e-30) for d in (descent, random)],
        "loss_surface_normalised": [filter_normalised(layout, theta, d) for d in (descent, random)],
    }
    x, y = points.support
    return {
        name: torch.stack(
            [
                loss_surface(points.loss, theta[task], (x[task], y[task]), along[task], across[task], grid)
                for task in range(len(theta))
            ]
        )
        for name, (along, across) in planes.items()
    }


QUANTITY = Quantity(
    name="loss_surface",
    title="loss surface around the start of the inner loop",
    formula="L(theta_0 - x d_g + y d_r), with d_g along g_0 and d_r random, both as long as the first inner step, or"
    " scaled filter by filter to theta_0",
    variables=(
        task_variable(
            "loss_surface",
            "support loss around theta_0; the unit of x (along -g_0) and y (random) is the length of the first step",
            "surface_x",
            "surface_y",
        ),
        task_variable(
            "loss_surface_normalised",
            "support loss around theta_0, with the directions x and y scaled to the norms of theta_0's filters",
            "surface_x",
            "surface_y",
        ),
    ),
    measure=measure,
    library="hessian_tools.curvature.loss_surface, .filter_normalised",
    cost=f"no product with the Hessian; {2 * len(PLACES) ** 2} forward passes for each task",
    reference="Li et al. 2018; Lee, Yoo, Kwak 2023, figure 4",
    products=False,
    level="full",
    coords=coords,
)
