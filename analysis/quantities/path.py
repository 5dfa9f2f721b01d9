"""How straight the inner loop is, and how the loss falls in each step, compared with what the gradient predicts."""

import torch

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable, task_variable
from hessian_tools.curvature import drop_ratio, path_ratio


def measure(points: Points) -> Values:
    """The path's length relative to the distance of its ends, and how the support loss falls beside its prediction.

    The prediction for a step from theta_k to theta_{k+1} is g_k'(theta_k - theta_{k+1}), with the gradient g_k.
    """
    trajectory, thetas = points.trajectory, points.thetas
    ratios = drop_ratio(trajectory.support_loss, points.trajectory_gradients, thetas)
    undefined = torch.full_like(ratios[:, :1], torch.nan)
    values = {"path_ratio": path_ratio(thetas), "drop_ratio": torch.cat([ratios, undefined], -1)}
    values["path_ratio"][trajectory.diverged] = torch.nan
    values["drop_ratio"][trajectory.diverged] = torch.nan
    return values


QUANTITY = Quantity(
    name="path",
    title="straightness of the inner loop",
    formula=(
        "sum_k |theta_{k+1} - theta_k| / |theta_K - theta_0|;"
        " (L(theta_k) - L(theta_{k+1})) / g_k'(theta_k - theta_{k+1})"
    ),
    variables=(
        task_variable("path_ratio", "length of the inner loop's path relative to the distance of its ends; at least 1"),
        point_variable(
            "drop_ratio",
            "fall of the support loss in the step from theta_k, relative to its first-order prediction, which is"
            " alpha |g|^2 for plain steps; not defined at theta_K, where no step follows",
        ),
    ),
    measure=measure,
    library="hessian_tools.curvature.path_ratio, .drop_ratio",
    cost="no product with the Hessian",
    reference="ours (straightness); Conn, Gould, Toint 2000 (actual against predicted fall)",
    products=False,
)
