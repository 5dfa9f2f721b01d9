"""How often the adapted network gives the same answer as a prototype classifier on its features."""

import torch
from torch import Tensor

from analysis.quantities.each_task import Task, each_task
from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import task_variable
from hessian_tools.inner.features import features, nearest_class_mean


def measure(points: Points) -> Values:
    """The share of query examples on which the adapted network and the nearest class mean agree.

    The features are the inputs of the head in the adapted network. A prototype is the mean of the features of a class's
    support examples, and the prototype classifier gives a query example the label of the nearest one. The share is NaN
    for regression and for networks without a head of their own.
    """

    def agreement(task: Task) -> Tensor:
        if not task.has_classes:
            return task.thetas.new_full((), torch.nan)
        theta, (x, y) = task.thetas[-1], task.support
        with torch.no_grad():
            try:
                support_features, query_features = (features(points.loss, theta, each) for each in (x, task.query[0]))
            except ValueError:  # the network has no head, or does not call it exactly once
                return theta.new_full((), torch.nan)
            answers = points.loss.outputs(theta, task.query[0]).argmax(-1)
            return (answers == nearest_class_mean(support_features, y, query_features)).to(theta.dtype).mean()

    return {"prototype_agreement": each_task(points, agreement)}


QUANTITY = Quantity(
    name="prototypes",
    title="agreement with a prototype classifier",
    formula="share of query examples on which the adapted network and the nearest class mean of its features agree",
    variables=(
        task_variable(
            "prototype_agreement",
            "share of query examples to which the adapted network and the nearest class mean of its features give the"
            " same label; by chance 1 / ways",
        ),
    ),
    measure=measure,
    library="hessian_tools.inner.features.nearest_class_mean",
    cost="no product with the Hessian; three forward passes for each task",
    reference="Snell, Swersky, Zemel 2017; Lee, Yoo, Kwak 2023, appendix D",
    products=False,
)
