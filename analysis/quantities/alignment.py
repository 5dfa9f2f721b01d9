"""Whether the inner gradients point the same way: Gram matrix, alignment A, cosine to the displacement."""

import torch

from analysis.quantities.points import Points
from analysis.quantities.quantity import Quantity, Values
from hessian_tools.curvature import alignment, cos_displacement


def measure(points: Points) -> Values:
    """The cosine is not defined at the adapted point, along whose gradient no step is taken."""
    gram = points.trajectory.gram
    moved = points.thetas[:, -1] - points.thetas[:, 0]
    cosines = torch.stack([cos_displacement(g[:-1], d) for g, d in zip(points.gradients, moved, strict=True)])
    undefined = torch.full_like(cosines[:, :1], float("nan"))
    return {"gram": gram, "alignment": alignment(gram), "cos_displacement": torch.cat([cosines, undefined], -1)}


ALIGNMENT = Quantity(
    "alignment",
    ("gram", "alignment", "cos_displacement"),
    "Lee, Yoo, Kwak 2023, figure 3; A is ours",
    measure,
    curvature=False,
)
