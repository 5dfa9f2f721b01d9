"""The Hessian of a loss at one point or at many, as an operator with exact products, and the gradient."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from hessian_tools.curvature.engines.choice import Route
from hessian_tools.curvature.engines.engine import checked_engine
from hessian_tools.curvature.engines.evaluate import Batching
from hessian_tools.curvature.objective.matrix import HESSIAN
from hessian_tools.curvature.objective.objective import Weights
from hessian_tools.curvature.objective.validation import objective_at
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.layout import Where, flatten
from hessian_tools.loss import Batch, Criterion, LossFunction, make_loss
from hessian_tools.progress import Progress


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
    compile: bool = False,
    max_memory: float | int | None = None,
    progress: Progress | None = None,
) -> Hessian:
    """The Hessian of ``loss(theta, batch)`` in theta at every point, as an operator: ``H @ V``.

    thetas: [param] for one point, [point, param] for many. With many, every tensor of the batch
    has a leading point axis, unless ``shared=True``; give batches of different sizes as ``ragged([...])``.
    A *list* of batches, or a ``DataLoader`` that does not shuffle, means that the objective is the loss of all their
    data. With ``weights="size"`` each batch is weighted by the number by which the criterion divides: the number of its
    examples, of its tokens or of its labels that are not ignored, or the sum of its class weights. For a criterion that
    sums, the losses of the batches are added. Which of these it is is found from the criterion itself, by one pass on
    each batch. Otherwise weights holds one number for each batch; these numbers are scaled to a sum of one.
    The batches of a loader are kept if they take at most max_memory. Otherwise the loader is read again at every
    product, one batch is held at a time, and each reading is compared with the first, so that random augmentation is
    refused. progress: called with (done, total) batches at each reading of such a loader. If the graphs
    of all batches take more than max_memory, they are made anew, batch by batch, at every product.

    max_memory: bytes for the products that run at the same time and for the data kept between products. None allows
    512 MiB (on CUDA 4 GiB, or a fifth of the memory of a smaller card). The memory is measured beforehand; if a CUDA
    device runs out of memory all the same, half as much is computed at once. Inputs and results are not counted, and
    with many points thetas may be a tensor mapped from a file.
    chunk: how many products run at once, instead of the number that the measurement gives.
    batching: "vmap" computes points and probes together; "loop" computes them one by one, for a loss that ``vmap``
    refuses.

    route: the engine by which products are computed. ``H.route`` reports the one that was taken. Neither the route nor
    the memory changes results beyond rounding.

    - "direct": forward over reverse, batched over points and probes by ``vmap``; nothing is kept.
    - "kept" (or "double_backward"): each point's gradient is kept with its graph, and a product is one more reverse
      pass. It takes any criterion, ``nn.MSELoss`` too.
    - "traced" (or "compiled"): the operations of a product are recorded once for the loss and the shapes, which takes
      one to ten seconds; this trace is kept as long as the loss lives. The part of it that does not depend on the
      vector is computed once for each point. With a trace, products are the quickest by far. The first product raises
      ValueError where the loss cannot be traced.
    - "auto": the quickest for the number of products that is announced, judged by counts and sizes known beforehand.
      For a plain function, or where chunk or batching="loop" is given, it is "direct". For a network it is "traced"
      from 2000 / (1 + megabytes of a forward pass) products on a CPU and from 1500 on a GPU. Below that it is "kept"
      for up to 8 points, and on a CPU for any number of points if a forward pass makes 1 MB or more; otherwise it is
      "direct". Where a loss turns out to have no forward derivative, it is "kept". ``top_eigenpairs``, ``trace`` and
      the other functions of the library announce their products; before a loop of your own call
      ``H.announce(num_products)``.

    compile: True to have the traced products compiled by Inductor, the compiler of ``torch.compile``; with it the route
    is "traced". Compiling takes from ten seconds to minutes, in each process and anew for each number of points and of
    vectors that are multiplied together. It is therefore for thousands of products at a constant number of points.
    docs/gpu.md reports measured gains. The first product raises ValueError where Inductor fails, as it does without a
    C++ compiler.

    One product costs about six forward passes. It is exact to rounding for training-mode BatchNorm too.
    The loss is checked once, by two passes and a backward pass at the first point. Raises HiddenStateError if it is
    no function of theta alone: if a network changes state in its forward pass, if network or criterion draw random
    numbers, if the loss does not depend on theta or uses weights that are stored elsewhere, and if a module is run
    again inside its backward pass. Raises ValueError if shapes do not fit, and for batches that differ in size where
    it cannot be found by which number the loss divides.

    >>> import torch
    >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> H = hessian(lambda theta, A: theta @ A @ theta / 2, torch.ones(2), A)
    >>> H @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
    """
    engine = checked_engine(route=route, compile=compile, batching=batching, chunk=chunk, max_memory=max_memory)
    keep = engine.memory.budget
    objective = objective_at(loss, thetas, batch, shared=shared, weights=weights, keep=keep, progress=progress)
    return Hessian(engine.prepare(objective, HESSIAN), single=thetas.ndim == 1)


def hessian_of(
    model: nn.Module,
    criterion: Criterion | None,
    data: Any,
    *,
    where: Where = None,
    weights: Weights = "size",
    route: Route = "auto",
    compile: bool = False,
    max_memory: float | int | None = None,
    progress: Progress | None = None,
) -> Hessian:
    """The Hessian of a model's loss on some data, in its trained parameters and at their present values.

    criterion: ``(outputs, targets) -> scalar``; None for a model that returns its loss, see
        :func:`~hessian_tools.loss.make_loss`.
    data: a batch, a list of batches, or a ``DataLoader`` that does not shuffle.
    where: which parameters the Hessian is taken in; see :func:`~hessian_tools.layout.flatten`. For the other arguments
        see :func:`hessian`.

    The result holds the loss and the layout: ``H.objective.loss``, ``H.layout``. Raises ValueError and
    HiddenStateError where flatten, make_loss and hessian do.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> H = hessian_of(model, torch.nn.MSELoss(), (torch.eye(2), torch.zeros(2, 1)))
    >>> H.to_dense()  # 2 X'X / 2
    tensor([[1., 0.],
            [0., 1.]])
    """
    theta, layout = flatten(model, where)
    loss = make_loss(model, criterion, layout)
    return hessian(
        loss, theta, data, weights=weights, route=route, compile=compile, max_memory=max_memory, progress=progress
    )


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
    progress: Progress | None = None,
) -> Float[Tensor, "*point param"]:
    """The gradient at every point; arguments as for :func:`hessian`.

    >>> import torch
    >>> gradient(lambda theta, a: a * theta @ theta / 2, torch.tensor([1.0, 2.0]), torch.tensor(3.0))
    tensor([3., 6.])
    """
    engine = checked_engine(batching=batching, chunk=chunk, max_memory=max_memory)
    keep = engine.memory.budget
    objective = objective_at(loss, thetas, batch, shared=shared, weights=weights, keep=keep, progress=progress)
    return engine.gradients(objective).reshape(thetas.shape)
