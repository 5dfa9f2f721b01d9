"""Losses, accuracies and norms along the inner loop, as they were recorded."""

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable

RECORDED = (
    point_variable("support_loss", "loss on the support set (cross-entropy in nat, or squared error)"),
    point_variable("query_loss", "loss on the query set (cross-entropy in nat, or squared error)"),
    point_variable("support_accuracy", "accuracy on the support set"),
    point_variable("query_accuracy", "accuracy on the query set"),
    point_variable("theta_norm", "Euclidean norm |theta_k| of the parameters"),
    point_variable("grad_norm", "norm |g_k| of the inner gradient"),
    point_variable("displacement", "distance |theta_k - theta_0| from the start of the inner loop"),
)
RELATIVE = point_variable("grad_norm_ratio", "|g_k| / |g_0|, the gradient's norm relative to the first step's")


def measure(points: Points) -> Values:
    """Losses, accuracies, norms and displacement of the recorded inner loop, and |g_k| / |g_0|.

    theta_k are the parameters after k inner steps, and g_k is the gradient of the support loss there.
    """
    recorded = {variable.name: getattr(points.trajectory, variable.name) for variable in RECORDED}
    norms = points.trajectory.grad_norm
    return recorded | {RELATIVE.name: norms / norms[:, :1]}


QUANTITY = Quantity(
    name="inner_loop",
    title="losses, accuracies and norms",
    formula="L(theta_k), |theta_k|, |g_k|, |theta_k - theta_0|, |g_k| / |g_0|",
    variables=(*RECORDED, RELATIVE),
    measure=measure,
    library="hessian_tools.record",
    cost="no product with the Hessian",
    reference="Finn, Abbeel, Levine 2017 (the inner loop)",
    products=False,
)
