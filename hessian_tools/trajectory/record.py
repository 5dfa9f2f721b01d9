"""Recording an inner loop: its points and numbers are read from the same loop that training differentiates."""

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.batches import refuse_unusable
from hessian_tools.inner.adapt import learner_path
from hessian_tools.inner.gradients import support_gradient
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.meta_loss import QUERY_OUTPUTS, accuracy
from hessian_tools.inner.parameters import network_parameters, refuse_longer
from hessian_tools.loss import Batch, Loss, require_network
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.trajectory.trajectory import SaveAt, Trajectory, trajectory_of_points

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

    theta: the learner's meta-parameters [meta]; each point is a vector of the network's parameters [param].
    support, query: the task, two batches (x, y).
    save: which vectors the result holds besides the numbers.

    The gradients are taken with respect to the entries that the inner loop moves, and are 0 elsewhere. K is the number
    of steps in training; to record the evaluation steps, pass ``learner.evaluating()``. Numbers that are not finite
    are kept as they are; see ``Trajectory.diverged``. The cost is K + 1 gradients and K + 1 passes over the query set.
    """
    require_network(loss, QUERY_OUTPUTS)
    for batch in (support, query):
        refuse_unusable(batch, theta)
    refuse_longer(learner, loss, theta)
    loss.refuse_hidden_state(network_parameters(loss, theta), support)
    path = learner_path(learner, loss, theta.detach(), support)
    last = support_gradient(loss, path.adapted, support, part=path.part)
    gradients, (x, y) = [*path.gradients, last], query
    with torch.no_grad():
        on_support = [(g.loss, accuracy(g.outputs, support[1])) for g in gradients]
        outputs = [loss.outputs(point, x) for point in path.thetas]
        on_query = [(loss.criterion(out, y), accuracy(out, y)) for out in outputs]
        vectors = [g.vector for g in gradients]
        if path.part is not None:  # the inner loop moves only this part of the parameters
            zero = torch.zeros_like(path.adapted)  # a gradient is 0 at the entries that do not move
            vectors = [path.part.put(zero, vector) for vector in vectors]
        return trajectory_of_points(torch.stack(path.thetas), torch.stack(vectors), on_support, on_query, save)
