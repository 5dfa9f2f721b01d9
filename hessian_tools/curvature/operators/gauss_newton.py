"""The Gauss-Newton matrix of a network's loss, as an operator with exact products."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.choice import Route
from hessian_tools.curvature.engines.engine import checked_engine
from hessian_tools.curvature.engines.evaluate import Batching
from hessian_tools.curvature.objective.matrix import GAUSS_NEWTON, criterion_at
from hessian_tools.curvature.objective.objective import Weights
from hessian_tools.curvature.objective.validation import objective_at
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.loss import Batch, Loss


class GaussNewton(LossOperator):
    """The Gauss-Newton matrix J'BJ by exact products; made by :func:`gauss_newton`."""


def factors_at(
    loss: Loss, theta: Float[Tensor, " param"], batch: Batch
) -> tuple[int, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The number of the network's outputs at one point, and the maps u -> J'u and u -> Bu.

    The vector u [output] has an entry for each output. If the network returns several tensors, u holds the entries of
    all of them, one tensor after the other. J and B are described at :func:`gauss_newton`.
    """
    x, y = batch
    outputs, pull = vjp(lambda t: loss.outputs(t, x), theta)[:2]
    curve = criterion_at(loss, outputs, y)
    leaves, spec = pytree.tree_flatten(outputs)
    sizes = [leaf.numel() for leaf in leaves]

    def shaped(u: Tensor) -> Any:
        pieces = zip(u.split(sizes), leaves, strict=True)
        return pytree.tree_unflatten([piece.view(leaf.shape) for piece, leaf in pieces], spec)

    def flattened(outputs: Any) -> Tensor:
        return torch.cat([leaf.flatten() for leaf in pytree.tree_leaves(outputs)])

    return sum(sizes), lambda u: pull(shaped(u))[0], lambda u: flattened(curve(shaped(u)))


def gauss_newton(
    loss: Loss,
    thetas: Float[Tensor, "*point param"],
    batch: Batch | list[Batch],
    *,
    shared: bool = False,
    weights: Weights = "size",
    chunk: int | None = None,
    batching: Batching = "vmap",
    route: Route = "auto",
    max_memory: float | int | None = None,
) -> GaussNewton:
    """The Gauss-Newton matrix J'BJ at every point, as an operator: ``G @ V``; arguments as for :func:`hessian`.

    J: derivative of the network's outputs in theta; B: second derivative of the criterion in the outputs.
    It is the Hessian without the curvature of the network itself. It equals the Hessian for a linear network, and is
    positive semi-definite where the criterion is convex in the outputs. For softmax cross-entropy (a mean
    over examples) it is the Fisher matrix with labels drawn from the model: B = (diag(p) - pp') / n is the
    covariance of the score onehot(y) - p for y ~ p, which does not depend on the targets (Martens 2020).
    For squared error ((out - y)**2).mean() it is 2 J'J / number of outputs.

    A product costs about two thirds of a product with the Hessian (Schraudolph 2002). The route is "direct" or
    "traced". A product is exact to rounding for training-mode BatchNorm too, because only first derivatives of the
    network are taken. Raises ValueError for route="kept", which keeps the graph of a gradient and so serves Hessians
    only; for a plain function, which has no outputs; and where :func:`hessian` does.

    >>> import torch
    >>> from hessian_tools.layout import flatten
    >>> from hessian_tools.loss import make_loss
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> loss = make_loss(model, lambda out, y: ((out - y) ** 2).mean(), flatten(model)[1])
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> gauss_newton(loss, torch.ones(2), (x, torch.zeros(2, 1))).to_dense()  # 2 X'X / 2
    tensor([[10.,  2.],
            [ 2.,  4.]])
    """
    if not isinstance(loss, Loss):
        raise ValueError(
            "the Gauss-Newton matrix needs a network's outputs and a criterion, which a plain function does not have; "
            "give a Loss from make_loss(model, criterion, layout), or use hessian"
        )
    objective = objective_at(loss, thetas, batch, shared=shared, weights=weights)
    engine = checked_engine(route=route, batching=batching, chunk=chunk, max_memory=max_memory)
    return GaussNewton(engine.prepare(objective, GAUSS_NEWTON), single=thetas.ndim == 1)
