"""Recording an inner loop: the same loop that training differentiates, read out."""

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.inner.adapt import Gradient, Path, learner_path, support_gradient
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.meta_loss import accuracy, refuse_plain_function
from hessian_tools.inner.parameters import network_parameters
from hessian_tools.loss import Batch, Loss
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.trajectory.trajectory import SaveAt, Trajectory

_NUMBERS_ONLY = SaveAt()


@full_precision
def record(
    learner: Learner,
    loss: Loss,
    theta: Float[Tensor, " meta"],
    support: Batch,
    query: Batch,
    *,
    save: SaveAt = _NUMBERS_ONLY,
) -> Trajectory:
    """The trajectory of one task from ``theta``: K + 1 points, each with its gradient on the support set.

    theta: the learner's meta-parameters; the points are the network's parameters. Gradients are by
    the entries that the inner loop moves and 0 elsewhere. K is the training's; of another number of
    evaluation steps record ``learner.evaluating()``.

    Costs K + 1 gradients and K + 1 passes over the query set. Numbers that are not finite are kept
    as they are; see ``Trajectory.diverged``.
    """
    refuse_plain_function(loss)
    loss.refuse_hidden_state(network_parameters(loss, theta), support)
    path = learner_path(learner, loss, theta.detach(), support)
    last = support_gradient(loss, path.adapted, support, part=path.part)
    with torch.no_grad():
        return _read_out(loss, path, [*path.gradients, last], support, query, save)


def _read_out(
    loss: Loss, path: Path, gradients: list[Gradient], support: Batch, query: Batch, save: SaveAt
) -> Trajectory:
    x, y = query
    thetas = torch.stack(path.thetas)
    outputs = [loss.outputs(theta, x) for theta in thetas]
    vectors = _full_length(torch.stack([g.vector for g in gradients]), path)
    stepped = vectors[:-1]
    return Trajectory(
        support_loss=torch.stack([g.loss for g in gradients]),
        query_loss=torch.stack([loss.criterion(out, y) for out in outputs]),
        support_accuracy=torch.stack([accuracy(g.outputs, support[1]) for g in gradients if g.outputs is not None]),
        query_accuracy=torch.stack([accuracy(out, y) for out in outputs]),
        theta_norm=thetas.norm(dim=-1),
        grad_norm=vectors.norm(dim=-1),
        displacement=(thetas - thetas[0]).norm(dim=-1),
        gram=stepped @ stepped.T,
        thetas=thetas if save.thetas else None,
        gradients=vectors if save.gradients else None,
    )


def _full_length(vectors: Tensor, path: Path) -> Tensor:
    if path.part is None:
        return vectors
    zero = torch.zeros_like(path.adapted)
    return torch.stack([path.part.put(zero, vector) for vector in vectors])
