"""The Gauss-Newton matrix of a network's loss by its exact products."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vjp
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.choice import Route
from hessian_tools.curvature.objective.objective import Batching, Weights
from hessian_tools.curvature.objective.validation import objective_at
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.loss import Batch, Loss


def gauss_newton_at(loss: Loss, theta: Float[Tensor, " param"], batch: Batch) -> Callable[[Tensor], Tensor]:
    """v -> J'BJv at one point; what does not depend on v is computed once."""
    x, y = batch
    outputs, pull = vjp(lambda t: loss.outputs(t, x), theta)[:2]
    curve = criterion_at(loss, outputs, y)
    return lambda v: pull(curve(jvp(lambda t: loss.outputs(t, x), (theta,), (v,))[1]))[0]


def criterion_at(loss: Loss, outputs: Any, y: object) -> Callable[[Any], Any]:
    """u -> Bu, B the Hessian of the criterion in the outputs; reverse over reverse, which nn.MSELoss has too."""

    def criterion(out: Any) -> Tensor:
        return loss.criterion(out, y)

    pull = vjp(grad(criterion), outputs)[1]
    return lambda u: pull(u)[0]


def factors_at(
    loss: Loss, theta: Float[Tensor, " param"], batch: Batch
) -> tuple[int, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """How many numbers the network puts out, and u -> J'u, u -> Bu for u [row], all of them in a row."""
    x, y = batch
    outputs, pull = vjp(lambda t: loss.outputs(t, x), theta)[:2]
    curve = criterion_at(loss, outputs, y)
    leaves, spec = pytree.tree_flatten(outputs)
    sizes = [leaf.numel() for leaf in leaves]

    def shaped(u: Tensor) -> Any:
        pieces = zip(u.split(sizes), leaves, strict=True)
        return pytree.tree_unflatten([piece.view(leaf.shape) for piece, leaf in pieces], spec)

    def in_a_row(outputs: Any) -> Tensor:
        return torch.cat([leaf.flatten() for leaf in pytree.tree_leaves(outputs)])

    return sum(sizes), lambda u: pull(shaped(u))[0], lambda u: in_a_row(curve(shaped(u)))


@dataclass(frozen=True)
class GaussNewton(LossOperator):
    """The Gauss-Newton matrix, J' (d2 criterion / d outputs2) J v, exact; made by :func:`gauss_newton`."""

    matrix_at = staticmethod(gauss_newton_at)


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
    It is the Hessian without the curvature of the network itself, equal to it for a linear network, and
    positive semi-definite where the criterion is convex in the outputs. For softmax cross-entropy (a mean
    over examples) it is the Fisher matrix of the model's own labels: B = (diag(p) - pp') / n is the
    covariance of the score onehot(y) - p for y ~ p, which does not depend on the targets (Martens 2020).
    For squared error ((out - y)**2).mean() it is 2 J'J / number of outputs.

    A product costs about two thirds of the Hessian's. It is done directly or by trace; route="kept" is direct here.
    Exact to rounding for training-mode BatchNorm too: only first derivatives of the network are taken. Raises
    ValueError for a plain function, which has no outputs, and as :func:`hessian`. (Schraudolph 2002.)

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
            "Gauss-Newton needs a network's outputs and a criterion, which a plain function does not show; "
            "give a Loss from make_loss(model, criterion, layout), or use hessian"
        )
    points = objective_at(
        loss,
        thetas,
        batch,
        shared=shared,
        weights=weights,
        chunk=chunk,
        batching=batching,
        route=route,
        max_memory=max_memory,
    )
    return GaussNewton(points, single=thetas.ndim == 1)
