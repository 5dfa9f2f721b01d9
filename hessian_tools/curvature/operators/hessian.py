"""The Hessian of a loss, at one point or at many, by its exact products; and the gradient there."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.engines.choice import Route
from hessian_tools.curvature.objective.objective import Batching, Weights, hessian_at
from hessian_tools.curvature.objective.validation import objective_at
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.loss import Batch, LossFunction


@dataclass(frozen=True)
class Hessian(LossOperator):
    """The Hessian by exact products (Pearlmutter 1994); made by :func:`hessian`."""

    matrix_at = staticmethod(hessian_at)


def hessian(
    loss: LossFunction,
    thetas: Float[Tensor, "*point param"],
    batch: Batch | list[Batch],
    *,
    shared: bool = False,
    weights: Weights = "size",
    chunk: int | None = None,
    batching: Batching = "vmap",
    route: Route = "auto",
    max_memory: float | int | None = None,
) -> Hessian:
    """The Hessian of ``loss(theta, batch)`` in theta at every point, as an operator: ``H @ V``.

    thetas: [param] for one point, [point, param] for many. With many, every tensor of the batch
    has a leading point axis, unless ``shared=True``; batches of different sizes come as ``ragged([...])``.
    A *list* of batches is several batches of one objective: their mean weighted by the number of
    examples (``weights="size"``, from the first tensor), or by the numbers given.

    max_memory: bytes for the products in flight and what is kept between them, None for 512 MiB (on CUDA 4 GiB, or a
    fifth of a smaller card).
    Sizes are measured beforehand, and where a CUDA device refuses all the same, halved. Inputs and results are not
    counted; with many points, thetas may be a tensor mapped from a file. chunk: products run at once, instead.
    batching="loop" takes points and probes one by one, for a loss that ``vmap`` refuses.

    route, reported by ``.route``; results do not depend on it, or on the memory, beyond rounding:

    - "direct": forward over reverse, batched over points and probes by ``vmap``; nothing is kept.
    - "kept": each point's gradient is kept with its graph, a product is one more reverse pass. Takes any criterion,
      ``nn.MSELoss`` too.
    - "traced": traced once for the loss and shapes (one to ten seconds, then for as long as the loss lives); what does
      not depend on the vector is done once a point. The quickest by far; what cannot be traced is done directly.
    - "auto": for a plain function, or where chunk or batching="loop" is given, "direct". For a network "kept" up to 8
      points, and for any number on a CPU if a forward pass makes 1 MB or more, else "direct"; "traced" once
      2000 / (1 + megabytes of a forward pass) products of the loss have been asked for in this process. "kept" for any
      number of points where a loss turns out to have no forward derivative.

    One product costs about six forward passes. Exact to rounding for training-mode BatchNorm too.
    Raises HiddenStateError if a network changes state in its forward pass; ValueError for shapes.

    >>> import torch
    >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> H = hessian(lambda theta, A: theta @ A @ theta / 2, torch.ones(2), A)
    >>> H @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
    """
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
    return Hessian(points, single=thetas.ndim == 1)


def gradient(
    loss: LossFunction,
    thetas: Float[Tensor, "*point param"],
    batch: Batch | list[Batch],
    *,
    shared: bool = False,
    weights: Weights = "size",
    chunk: int | None = None,
    batching: Batching = "vmap",
    max_memory: float | int | None = None,
) -> Float[Tensor, "*point param"]:
    """The gradient at every point; arguments as for :func:`hessian`.

    >>> import torch
    >>> gradient(lambda theta, a: a * theta @ theta / 2, torch.tensor([1.0, 2.0]), torch.tensor(3.0))
    tensor([3., 6.])
    """
    points = objective_at(
        loss,
        thetas,
        batch,
        shared=shared,
        weights=weights,
        chunk=chunk,
        batching=batching,
        max_memory=max_memory,
    )
    return points.gradients().reshape(thetas.shape)
