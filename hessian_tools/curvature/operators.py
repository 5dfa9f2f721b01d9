"""The Hessian of a loss, at one point or at many, by its exact products; and the gradient there."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.at_points import AtPoints
from hessian_tools.curvature.points import Batching, Route, Weights, points_of
from hessian_tools.loss import Batch, LossFunction


@dataclass(frozen=True)
class Hessian(AtPoints):
    """The Hessian; made by :func:`hessian`."""

    @property
    def route(self) -> str:
        """How its products have been done so far: "traced" or "direct"."""
        return "traced" if self.points.traced else "direct"

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Hessian-vector products, exact, forward over reverse (Pearlmutter 1994)."""
        return self.points.products(V)


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
) -> Hessian:
    """The Hessian of ``loss(theta, batch)`` in theta at every point, as an operator: ``H @ V``.

    thetas: [param] for one point, [point, param] for many. With many, every tensor of the batch
    has a leading point axis, unless ``shared=True``. A *list* of batches is several batches of one
    objective: their mean weighted by the number of examples (``weights="size"``, from the first
    tensor), or by the numbers given. chunk: products run at once; None measures one forward pass
    and keeps the products in flight under 512 MiB (4 GiB on CUDA); results do not depend on it beyond
    rounding. batching="loop" takes points and probes one by one, for a loss that ``vmap`` refuses.
    route="traced" traces the product once for the loss and shapes (a second or two a process) and shares
    what does not depend on the vector, two to three times quicker after that; "direct" does not; "auto" changes over
    after 500 products of a network's loss, by count. What cannot be traced is done directly; see ``.route``.

    One product costs about six forward passes. Exact to rounding for training-mode BatchNorm too.
    Raises HiddenStateError if a network changes state in its forward pass; ValueError for shapes.

    >>> import torch
    >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> H = hessian(lambda theta, A: theta @ A @ theta / 2, torch.ones(2), A)
    >>> H @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
    """
    points = points_of(loss, thetas, batch, shared=shared, weights=weights, chunk=chunk, batching=batching, route=route)
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
) -> Float[Tensor, "*point param"]:
    """The gradient at every point; arguments as for :func:`hessian`.

    >>> import torch
    >>> gradient(lambda theta, a: a * theta @ theta / 2, torch.tensor([1.0, 2.0]), torch.tensor(3.0))
    tensor([3., 6.])
    """
    points = points_of(loss, thetas, batch, shared=shared, weights=weights, chunk=chunk, batching=batching)
    return points.gradients().reshape(thetas.shape)
