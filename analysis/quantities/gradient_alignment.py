"""How far the gradients of an inner loop point the same way."""

import torch

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable, task_variable
from hessian_tools.curvature import alignment, cos_displacement


def measure(points: Points) -> Values:
    """The Gram matrix g_i'g_j of the gradients, their cosines, the alignment A, and the cosine with the displacement.

    theta_k are the parameters after k of the K inner steps. The gradients are the K ones g_0 to g_{K-1} at theta_0 to
    theta_{K-1}, from which the steps are taken. A is 0 if they are orthogonal and 1 if they are equal. The cosine with
    the displacement is that between -g_k, the direction of a step, and theta_K - theta_0. It is NaN at theta_K, from
    which no step is taken.
    """
    gram = points.trajectory.gram
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    displacements = points.thetas[:, -1] - points.thetas[:, 0]
    pairs = zip(points.trajectory_gradients, displacements, strict=True)
    cosines = torch.stack([cos_displacement(gradients[:-1], displacement) for gradients, displacement in pairs])
    undefined = torch.full_like(cosines[:, :1], float("nan"))
    return {
        "cos_displacement": torch.cat([cosines, undefined], -1),
        "gram": gram,
        "gradient_cosine": gram / (norms[..., :, None] * norms[..., None, :]),
        "alignment": alignment(gram),
    }


QUANTITY = Quantity(
    name="gradient_alignment",
    title="alignment of the inner gradients",
    formula="A = (|sum g|^2 / sum |g|^2 - 1) / (K - 1); cos(g_i, g_j); cos(-g_k, theta_K - theta_0)",
    variables=(
        point_variable(
            "cos_displacement", "cos(-g_k, theta_K - theta_0); not defined at theta_K, where no step follows"
        ),
        task_variable("gram", "inner products g_i'g_j of the inner gradients", "step_i", "step_j"),
        task_variable("gradient_cosine", "cosines cos(g_i, g_j) of the inner gradients", "step_i", "step_j"),
        task_variable(
            "alignment", "alignment A = (|sum g|^2 / sum |g|^2 - 1) / (K - 1): 0 if all g are orthogonal, 1 if equal"
        ),
    ),
    measure=measure,
    library="hessian_tools.curvature.alignment, .cos_displacement",
    cost="no product with the Hessian",
    reference="Lee, Yoo, Kwak 2023, figure 3 (cosine); A is ours",
    products=False,
)
