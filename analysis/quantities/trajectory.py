"""Quantities that need only the recorded inner loop, and no products with the Hessian."""

import torch

from analysis.quantities.points import Points, Values
from hessian_tools.curvature import alignment, cos_displacement

RECORDED = (
    "support_loss",
    "query_loss",
    "support_accuracy",
    "query_accuracy",
    "theta_norm",
    "grad_norm",
    "displacement",
)


def recorded_values(points: Points) -> Values:
    """Losses, accuracies, norms and displacement as they were recorded, and the norm of each parameter tensor."""
    tensors = points.thetas.split(list(points.loss.layout.sizes), dim=-1)
    norms = torch.stack([tensor.norm(dim=-1) for tensor in tensors], -1)
    return {name: getattr(points.trajectory, name) for name in RECORDED} | {"layer_norm": norms}


def gradient_alignment(points: Points) -> Values:
    """Measures how far the inner gradients point the same way (Lee, Yoo, Kwak 2023, figure 3; the alignment A is ours).

    The values are the Gram matrix g_i'g_j of the gradients, the alignment A (0 if they are orthogonal, 1 if equal), and
    the cosine between each step's direction -g_k and the displacement theta_K - theta_0. The cosine is NaN at theta_K,
    from which no step is taken.
    """
    gram = points.trajectory.gram
    displacements = points.thetas[:, -1] - points.thetas[:, 0]
    pairs = zip(points.gradients, displacements, strict=True)
    cosines = torch.stack([cos_displacement(gradients[:-1], displacement) for gradients, displacement in pairs])
    undefined = torch.full_like(cosines[:, :1], float("nan"))
    return {"gram": gram, "alignment": alignment(gram), "cos_displacement": torch.cat([cosines, undefined], -1)}
