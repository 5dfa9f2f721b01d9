"""The norm of each parameter tensor along the inner loop."""

import torch

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable


def measure(points: Points) -> Values:
    """The Euclidean norm of each parameter tensor [task, step, layer]."""
    tensors = points.thetas.split(list(points.loss.layout.sizes), dim=-1)
    return {"layer_norm": torch.stack([tensor.norm(dim=-1) for tensor in tensors], -1)}


QUANTITY = Quantity(
    name="layer_norms",
    title="norm of each parameter tensor",
    formula="|theta_k| of each tensor",
    variables=(point_variable("layer_norm", "Euclidean norm of each parameter tensor", "layer"),),
    measure=measure,
    library="hessian_tools.ParamLayout",
    cost="no product with the Hessian",
    reference="van Laarhoven 2017 (growing norms where a normalisation follows)",
    products=False,
)
