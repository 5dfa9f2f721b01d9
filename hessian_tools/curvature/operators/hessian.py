"""The Hessian of a loss, at one point or at many, by its exact products; and the gradient there."""

from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.engines.choice import Route
from hessian_tools.curvature.engines.engine import checked_engine
from hessian_tools.curvature.engines.evaluate import Batching
from hessian_tools.curvature.objective.matrix import HESSIAN
from hessian_tools.curvature.objective.objective import Weights
from hessian_tools.curvature.objective.validation import objective_at
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.loss import Batch, LossFunction


class Hessian(LossOperator):
    """The Hessian by exact products (Pearlmutter 1994); made by :func:`hessian`."""


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

    max_memory: bytes for the products in flight and for what is kept between them. None allows 512 MiB (on CUDA 4 GiB,
    or a fifth of a smaller card). Sizes are measured beforehand; where a CUDA device refuses all the same, they are
    halved. Inputs and results are not counted, and with many points thetas may be a tensor mapped from a file.
    chunk: how many products run at once, instead of a measured number.
    batching: "vmap" takes points and probes together; "loop" takes them one by one, for a loss that ``vmap`` refuses.

    route: the engine. ``.route`` reports the one that was taken. Results do not depend on it, or on the memory, beyond
    rounding.

    - "direct": forward over reverse, batched over points and probes by ``vmap``; nothing is kept.
    - "kept" (or "double_backward"): each point's gradient is kept with its graph, and a product is one more reverse
      pass. It takes any criterion, ``nn.MSELoss`` too.
    - "traced" (or "compiled"): the product is traced once for the loss and shapes (one to ten seconds, then for as long
      as the loss lives), and what does not depend on the vector is computed once a point. It is the quickest by far.
      Raises ValueError at the first product where the loss cannot be traced.
    - "auto": the quickest for the products that are announced, by counts and sizes known beforehand. For a plain
      function, or where chunk or batching="loop" is given, it is "direct". For a network it is "traced" where on a CPU
      2000 / (1 + megabytes of a forward pass) products follow, on a GPU 1500; else "kept" up to 8 points, and on a CPU
      for any number of points if a forward pass makes 1 MB or more; else "direct". ``top_eigenpairs``, ``trace`` and
      their like announce their products; before a loop of your own call ``H.announce(num_products)``. Where a loss
      turns out to have no forward derivative it is "kept".

    One product costs about six forward passes. Exact to rounding for training-mode BatchNorm too.
    Raises HiddenStateError if a network changes state in its forward pass; ValueError for shapes.

    >>> import torch
    >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> H = hessian(lambda theta, A: theta @ A @ theta / 2, torch.ones(2), A)
    >>> H @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
    """
    objective = objective_at(loss, thetas, batch, shared=shared, weights=weights)
    engine = checked_engine(route=route, batching=batching, chunk=chunk, max_memory=max_memory)
    return Hessian(engine.prepare(objective, HESSIAN), single=thetas.ndim == 1)


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
    objective = objective_at(loss, thetas, batch, shared=shared, weights=weights)
    engine = checked_engine(batching=batching, chunk=chunk, max_memory=max_memory)
    return engine.gradients(objective).reshape(thetas.shape)
