"""Losses, accuracies, norms and displacement: the trajectory itself."""

import torch

from analysis.quantities.points import Points
from analysis.quantities.quantity import Quantity, Values

RECORDED = (
    "support_loss",
    "query_loss",
    "support_accuracy",
    "query_accuracy",
    "theta_norm",
    "grad_norm",
    "displacement",
)


def measure(points: Points) -> Values:
    """As recorded in the pass that made the trajectory, plus the norm of each parameter tensor."""
    pieces = points.thetas.split(list(points.loss.layout.sizes), dim=-1)
    norms = torch.stack([piece.norm(dim=-1) for piece in pieces], -1)
    return {name: getattr(points.trajectory, name) for name in RECORDED} | {"layer_norm": norms}


PATH = Quantity("path", (*RECORDED, "layer_norm"), "Finn, Abbeel, Levine 2017", measure, curvature=False)
