"""The Gauss-Newton matrix of a network's loss, as an operator with exact products."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp

from hessian_tools.curvature.engines.choice import Route
from hessian_tools.curvature.engines.double_backward import are_log_probabilities, linear_outputs
from hessian_tools.curvature.engines.engine import checked_engine
from hessian_tools.curvature.engines.evaluate import Batching
from hessian_tools.curvature.objective.matrix import GAUSS_NEWTON, DifferentiableOutputs, criterion_hessian
from hessian_tools.curvature.objective.objective import Objective, Weights, at_points
from hessian_tools.curvature.objective.validation import objective_at
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.failures import warn
from hessian_tools.loss import Batch, Loss
from hessian_tools.progress import Progress


class GaussNewton(LossOperator):
    """The Gauss-Newton matrix J'BJ by exact products; made by :func:`gauss_newton`."""


def factors_at(
    loss: Loss, theta: Float[Tensor, " param"], batch: Batch
) -> tuple[int, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The number of the network's outputs at one point, and the maps u -> J'u and u -> Bu.

    The vector u [output] has an entry for each output. If the network returns several tensors, u holds the entries of
    all of them, one tensor after the other. J and B are described at :func:`gauss_newton`, and outputs that are not
    floating-point tensors are left out, as they are there. Raises ValueError for a network that computes its loss
    itself, of which :func:`gauss_newton` computes products of J'BJ, but not of its factors.
    """
    if not loss.has_criterion:
        raise ValueError(
            "this needs the criterion as a function of the outputs, but the network computes its loss itself; "
            "give the criterion: ht.make_loss(model, criterion)"
        )
    x, y = loss.split(batch)
    network = DifferentiableOutputs(loss, x)
    leaves, pull, others = vjp(network, theta, has_aux=True)  # type: ignore[misc]
    times_B = criterion_hessian(loss, leaves, lambda floating: network.put_back(floating, others), y)
    sizes = [leaf.numel() for leaf in leaves]

    def shaped(u: Tensor) -> list[Tensor]:
        return [piece.view(leaf.shape) for piece, leaf in zip(u.split(sizes), leaves, strict=True)]

    def flattened(outputs: list[Tensor]) -> Tensor:
        return torch.cat([leaf.flatten() for leaf in outputs])

    return sum(sizes), lambda u: pull(shaped(u))[0], lambda u: flattened(times_B(shaped(u)))


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
    compile: bool = False,
    max_memory: float | int | None = None,
    progress: Progress | None = None,
) -> GaussNewton:
    """The Gauss-Newton matrix J'BJ at every point, as an operator: ``G @ V``; arguments as for :func:`hessian`.

    J: derivative of the network's outputs in theta; B: second derivative of the criterion in the outputs.
    It is the Hessian without the curvature of the network itself. It equals the Hessian for a linear network, and is
    positive semi-definite where the criterion is convex in the outputs. For softmax cross-entropy (a mean
    over examples) it is the Fisher matrix with labels drawn from the model: B = (diag(p) - pp') / n is the
    covariance of the score onehot(y) - p for y ~ p, which does not depend on the targets (Martens 2020).
    For squared error ((out - y)**2).mean() it is 2 J'J / number of outputs.

    What is not a floating-point tensor among the outputs, such as a cache, is a constant. For a network that returns
    its loss itself, the outputs are those whose names end in "logits", and B is read from the graph between them and
    the loss; the route is then "kept".

    A product costs about two thirds of a product with the Hessian (Schraudolph 2002). With route="auto" it is computed
    by "direct" or "traced", and by "kept" only where these cannot be used. Torch's second derivatives of training-mode
    BatchNorm are wrong in most orders of differentiation; a product here takes only first derivatives of the network,
    and is therefore exact to rounding there, too. Warns where the criterion is linear in the outputs or in some of
    them, which add nothing to G. Raises ValueError for a plain function, which has no outputs, and where
    :func:`hessian` does.

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
    engine = checked_engine(route=route, compile=compile, batching=batching, chunk=chunk, max_memory=max_memory)
    # A loader's batches are held between products only if they fit into the memory that products may take.
    keep = engine.memory.budget
    objective = objective_at(loss, thetas, batch, shared=shared, weights=weights, keep=keep, progress=progress)
    _warn_if_linear(objective)
    return GaussNewton(engine.prepare(objective, GAUSS_NEWTON), single=thetas.ndim == 1)


def _warn_if_linear(objective: Objective) -> None:
    """Warns if the criterion is linear in the outputs at the first point, because G is then 0 without any error."""
    group = objective.groups[0]
    batch = group.batches[0] if objective.shared else at_points(group.batches[0], 0)
    try:
        outputs = linear_outputs(objective.network, objective.thetas[int(group.positions[0])], batch)
    except RuntimeError:
        return  # an operation without a derivative is reported later, by the engines
    if not outputs:
        return
    if any(are_log_probabilities(out) for out in outputs):
        advice = (
            "the outputs are log-probabilities: leave LogSoftmax out of the network and pass cross_entropy in place of "
            "nll_loss, which is the same loss"
        )
    else:
        advice = "move the curved part of the loss from the network into the criterion, or measure the Hessian"
    warn(
        "the criterion is linear in the network's outputs or in some of them, so these add nothing to the Gauss-Newton "
        f"matrix; {advice}",
    )
