"""How far the adapted network's outputs differ from those of the network linearised at the start of the inner loop."""

from torch import Tensor

from analysis.quantities.each_task import Task, each_task
from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import task_variable
from hessian_tools.curvature import linearisation_error


def measure(points: Points) -> Values:
    """The error, at the end theta_K of the inner loop, of the query outputs' first-order expansion around its start."""

    def error(task: Task) -> Tensor:
        x = task.query[0]
        return linearisation_error(lambda theta: points.loss.outputs(theta, x), task.thetas[0], task.thetas[-1])

    return {"linearisation_error": each_task(points, error)}


QUANTITY = Quantity(
    name="linearisation",
    title="error of the linearised model",
    formula="|f(theta_K) - f_lin(theta_K)| / |f(theta_K) - f(theta_0)| of the query outputs f",
    variables=(
        task_variable(
            "linearisation_error",
            "error of the query outputs' first-order expansion around theta_0, relative to how far they move",
        ),
    ),
    measure=measure,
    library="hessian_tools.curvature.linearisation_error",
    cost="no product with the Hessian; two forward and two backward passes over the query set for each task",
    reference="Chizat, Oyallon, Bach 2019; Lee, Xiao 2019 (linearised networks)",
    products=False,
)
