"""The loss on a plane through a parameter vector, and directions that are scaled to the filters of a network."""

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.batches import refuse_unusable
from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.layout import ParamLayout
from hessian_tools.loss import Batch, LossFunction
from hessian_tools.torch_fixes.precision import full_precision


@full_precision
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
