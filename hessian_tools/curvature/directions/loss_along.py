"""The loss along directions from a point, beside its quadratic model there, and on a plane through the point."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.batches import refuse_unusable
from hessian_tools.curvature.html import lines_html
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.first_look import value_of
from hessian_tools.layout import ParamLayout
from hessian_tools.loss import Batch, LossFunction
from hessian_tools.result import Result

DEFAULT_STEPS = tuple(i / 10 for i in range(-10, 11))


@dataclass(frozen=True, repr=False)
class LossAlong(Result):
    """The loss at theta + t d for each direction d and step t, and the quadratic model L + t g'd + t^2/2 d'Hd.

    steps: the values of t. slope, curvature: g'd and d'Hd; for a Gauss-Newton matrix G, d'Gd.
    """

    steps: Float[Tensor, " step"]
    loss: Float[Tensor, "*point direction step"]
    quadratic: Float[Tensor, "*point direction step"]
    slope: Float[Tensor, "*point direction"]
    curvature: Float[Tensor, "*point direction"]

    def _repr_html_(self) -> str:
        lines = {"loss": self.loss, "quadratic model": self.quadratic}
        return lines_html("Loss and its quadratic model", lines, self.steps.tolist(), where="along {} directions")


def loss_along(
    H: LossOperator, directions: Float[Tensor, "*point param direction"], *, steps: Sequence[float] = DEFAULT_STEPS
) -> LossAlong:
    """The loss of an operator along directions from each of its points.

    directions: vectors as columns, such as ``top_eigenpairs(H, k=2, vectors=True).vectors``; [param, direction] for
        all points, or [point, param, direction]. They are not scaled.
    steps: the multiples of each direction at which the loss is evaluated.

    It costs one product for each direction, one gradient, and an evaluation of the loss for each direction and step.
    Raises ValueError for an operator that is not the matrix of a loss, directions of another shape, and empty steps.

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(2), torch.tensor([1.0, 4.0]))
    >>> result = loss_along(H, torch.eye(2), steps=[0.0, 1.0])
    >>> result.loss.tolist(), result.curvature.tolist()
    ([[0.0, 0.5], [0.0, 2.0]], [1.0, 4.0])
    """
    points = H.num_points or 1
    if directions.ndim not in (2, 3) or directions.shape[-2] != H.num_params:
        raise ValueError(
            f"directions has shape {tuple(directions.shape)}; give vectors as columns, [{H.num_params}, direction]"
        )
    if len(steps) == 0:
        raise ValueError("steps is empty; give the multiples of each direction, such as [0.0, 1.0]")
    D = directions.to(H.device, H.dtype).expand(points, -1, -1)
    t = torch.tensor(list(steps), dtype=H.dtype, device="cpu").to(H.device)
    objective = H.objective
    slope = (H.engine.gradients(objective)[..., None] * D).sum(-2)
    curvature = (D * H.products(D.contiguous())).sum(-2)
    losses = objective.summed(lambda: _losses(objective, D, t))  # over the processes that share the data
    start, loss = losses[:, 0, 0], losses[:, :, 1:]  # the loss at theta is the same for all directions
    quadratic = start[:, None, None] + slope[..., None] * t + curvature[..., None] * t**2 / 2
    results = (loss, quadratic, slope, curvature)
    return LossAlong(t, *(result[0] if H.num_points is None else result for result in results))


def _losses(
    objective: Objective, D: Float[Tensor, "point param direction"], t: Float[Tensor, " step"]
) -> Float[Tensor, "point direction place"]:
    """The loss over the batches of this process, for each direction: at theta itself, and then at theta + t d."""
    loss = objective.loss
    losses = torch.zeros(len(D), D.shape[-1], 1 + len(t), dtype=D.dtype, device=D.device)
    # The points of a group have batches of the same shapes; group.positions are their numbers among all points.
    for part, group in zip(objective.by_group(), objective.groups, strict=True):
        for member, point in enumerate(group.positions.tolist()):
            theta, directions = part.thetas[member], D[point].mT
            for weight, batch in zip(part.weights, part.batches_at(member), strict=True):
                losses[point, :, 0] += weight * value_of(loss, theta, batch)
                values = [torch.stack([value_of(loss, theta + step * d, batch) for step in t]) for d in directions]
                losses[point, :, 1:] += weight * torch.stack(values)
    return losses


def loss_surface(
    loss: LossFunction,
    theta: Float[Tensor, " param"],
    batch: Batch,
    along: Float[Tensor, " param"],
    across: Float[Tensor, " param"],
    grid: Float[Tensor, " place"],
) -> Float[Tensor, "place place"]:
    """The loss at theta + x along + y across, for every x (first axis) and y (second axis) of ``grid``.

    The price is one forward pass for each value (Li et al. 2018).

    >>> square = lambda theta, batch: (theta**2).sum()
    >>> e1, e2 = torch.eye(2)
    >>> loss_surface(square, torch.zeros(2), None, e1, 2 * e2, torch.tensor([0.0, 1.0]))
    tensor([[0., 4.],
            [1., 5.]])
    """
    refuse_unusable(batch, theta)
    with torch.no_grad():
        rows = [torch.stack([loss(theta + x * along + y * across, batch) for y in grid]) for x in grid]
    return torch.stack(rows)


def filter_normalised(
    layout: ParamLayout, theta: Float[Tensor, "*point param"], direction: Float[Tensor, "*point param"]
) -> Float[Tensor, "*point param"]:
    """The direction, with each of its filters scaled to the norm of the same filter of theta (Li et al. 2018).

    A filter is a slice of a weight along its first axis. The direction becomes 0 in parameters of one dimension (biases
    and those of normalisation layers), as in the authors' code, and in filters where it is 0.

    >>> layout = ParamLayout(("weight", "bias"), (torch.Size([1, 2]), torch.Size([1])))
    >>> filter_normalised(layout, torch.tensor([3.0, 4.0, 1.0]), torch.tensor([0.0, 2.0, 7.0]))
    tensor([0., 5., 0.])
    """
    parts = []
    pairs = (vector.split(list(layout.sizes), dim=-1) for vector in (theta, direction))
    for shape, weights, part in zip(layout.shapes, *pairs, strict=True):
        if len(shape) < 2:
            parts.append(torch.zeros_like(part))
            continue
        filters, of_direction = (tensor.unflatten(-1, (shape[0], -1)) for tensor in (weights, part))
        length = vector_norm(of_direction, keepdim=True)
        scaled = of_direction / torch.where(length > 0, length, 1.0) * vector_norm(filters, keepdim=True)
        parts.append(scaled.flatten(-2))
    return torch.cat(parts, dim=-1)
