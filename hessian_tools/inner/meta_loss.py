"""The outer objective of one task: what a learner's meta-training descends, plus the penalties on its inner loop.

SHOT penalises the distance between the results of few large inner steps (the target) and of many small ones (the
reference); see ``hessian_tools.inner.shot``. The curvature penalty acts on the curvature along the inner gradient
itself; see ``hessian_tools.inner.penalty``. One learner, LEO (latent embedding optimisation, see
``hessian_tools.inner.leo``), has inner steps on latent codes instead of parameters, and penalties of its own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.batches import refuse_unusable
from hessian_tools.inner import leo
from hessian_tools.inner.adapt import learner_path
from hessian_tools.inner.collapse import output_variation
from hessian_tools.inner.descent import InnerPath
from hessian_tools.inner.features import features, with_linear_head
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.parameters import further_parameters, network_parameters, refuse_longer
from hessian_tools.inner.penalty import CurvaturePenalty, mean_relative_change
from hessian_tools.inner.shot import L2, Projector, Shot, identity_projector, reference_distance
from hessian_tools.loss import Batch, Loss, require_network
from hessian_tools.outputs import tensors_of

# The beginning of the error message for a plain function; see ``require_network``.
QUERY_OUTPUTS = "this needs the network's outputs on the query set"


class Aux(NamedTuple):
    """The parts that a meta-loss is made of, detached from its graph.

    query_loss, query_accuracy: loss and accuracy on the query set, after the inner loop.
    support_loss: the loss on the support set, before the inner loop.
    shot_distance: SHOT's distance, before it is multiplied by its weight; NaN without SHOT.
    output_variation: how far the adapted network's outputs differ between queries; see ``homogeneity``.
    relative_change: the mean of alpha |H g| / |g| over the inner steps, which the curvature penalty multiplies by its
        weight; NaN without that penalty.
    """

    query_loss: Float[Tensor, ""]
    shot_distance: Float[Tensor, ""]
    support_loss: Float[Tensor, ""]
    query_accuracy: Float[Tensor, ""]
    output_variation: Float[Tensor, ""]
    relative_change: Float[Tensor, ""]


def meta_loss(
    learner: Learner,
    loss: Loss,
    theta: Float[Tensor, " meta"],
    support: Batch,
    query: Batch,
    *,
    shot: Shot | None = None,
    penalty: CurvaturePenalty | None = None,
    noise: torch.Generator | None = None,
    checkpointing: bool = False,
) -> tuple[Float[Tensor, ""], Aux]:
    """The learner's outer objective on one task, plus its penalties times their weights; differentiable in ``theta``.

    theta: the meta-parameters; see ``hessian_tools.inner.parameters``.
    support, query: the two batches (x, y) of the task. Under ``outer="classes"`` the labels are those of the training
        classes.
    shot: the penalty on SHOT's distance. Its schedule is ignored, so where the weight has a schedule, pass
        ``shot.at(meta_step)``.
    penalty: the curvature penalty, for learners whose inner steps are alpha times the gradient. It costs one
        Hessian-vector product a step, and the outer gradient differentiates this product.
    noise: the generator of LEO's draws and of its dropout; None takes the means of the draws, and drops nothing.
    checkpointing: keep the activations of one inner step in memory instead of those of all steps, at the cost of one
        more forward and backward pass a step. Value and gradient stay the same. It works with ``backward`` and
        ``torch.autograd.grad``, but not inside ``torch.func`` transforms.

    With ``reference_steps=None`` and ``target_steps=1``, SHOT costs one forward and backward pass over the query set.
    The reference is then the learner's own loop of K steps of size alpha, and the target is one step of size K alpha
    along the first gradient of that loop. A distance in parameters costs no pass at all.
    """
    check_shot(shot, learner)
    if penalty is not None:
        penalty.check(learner)
    require_network(loss, QUERY_OUTPUTS)
    for batch in (support, query):
        refuse_unusable(batch, theta)
    refuse_longer(learner, loss, theta)
    if learner.outer == "classes":
        return _class_loss(loss, theta, joined(support, query))
    if learner.latent is not None:
        task = leo.open_task(learner, loss, theta, support, noise)
        parts = _latent_parts(task, query, shot, checkpointing)
    else:
        parts = parameter_parts(
            learner, loss, theta, support, query, shot=shot, penalty=penalty, checkpointing=checkpointing
        )
    objective, distance, aux = parts
    return (objective if shot is None else objective + shot.weight * distance), aux


def check_shot(shot: Shot | None, learner: Learner) -> None:
    """Raise ValueError for a SHOT penalty that cannot be computed from the learner's inner loop."""
    if shot is None:
        return
    if learner.outer == "classes":
        raise ValueError(f"{learner.name} has no inner loop in training for SHOT to compare with; use shot=None")
    if learner.minibatches > 1:
        raise ValueError(
            f"minibatches={learner.minibatches}: SHOT's target and reference must see the same data; use 1"
        )
    shot.counts(learner.steps)  # called for its error alone


def accuracy(outputs: Any, y: Any) -> Float[Tensor, ""]:
    """The share of examples whose largest output is the label.

    It is NaN where an output is not finite, and where there is not one label for each row of outputs: for real-valued
    targets, for several outputs, and for targets in a dict.
    """
    like = next(leaf for leaf in tensors_of(outputs) if leaf.is_floating_point())
    unknown = torch.full((), float("nan"), dtype=like.dtype, device=like.device)
    if not (isinstance(outputs, Tensor) and isinstance(y, Tensor)):
        return unknown
    if y.is_floating_point() or y.shape != outputs.shape[:-1]:
        return unknown
    share = (outputs.argmax(-1) == y.to(outputs.device)).to(outputs.dtype).mean()
    return torch.where(torch.isfinite(outputs).all(), share, unknown)


def joined(support: Batch, query: Batch) -> Batch:
    """Support and query set as one batch, the support set first."""
    return pytree.tree_map(lambda a, b: torch.cat([a, b]), support, query)


def parameter_parts(
    learner: Learner,
    loss: Loss,
    theta: Tensor,
    support: Batch,
    query: Batch,
    *,
    shot: Shot | None,
    penalty: CurvaturePenalty | None = None,
    project: Projector = identity_projector,
    checkpointing: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Aux]:
    """The objective without SHOT, and SHOT's distance, for a learner whose inner loop moves parameters.

    The objective is the query loss plus the curvature penalty or, for Reptile, half the squared displacement. The
    distance is NaN without SHOT. The third value holds the numbers that are reported.
    project: the function that is applied to the outputs of SHOT's reference.
    """
    x, y = query
    is_reptile = learner.outer == "displacement"
    examples = joined(support, query) if is_reptile else support
    # The gradient of the curvature penalty takes third derivatives of the support loss.
    support_loss = loss if penalty is None else loss.thrice_differentiable
    run_loop = partial(learner_path, learner, support_loss, theta, examples, checkpointing=checkpointing)
    path = run_loop(minibatches=learner.minibatches, products=penalty is not None)
    # Without SHOT, Reptile's query outputs are only reported, so no graph of them is needed.
    with torch.set_grad_enabled(torch.is_grad_enabled() and not (is_reptile and shot is None)):
        outputs = loss.outputs(path.adapted, x)
    query_loss = loss.criterion(outputs, y)
    # theta_K is detached, so that the gradient of |theta - theta_K|^2 / 2 is the displacement theta - theta_K.
    objective = ((path.thetas[0] - path.adapted.detach()) ** 2).sum() / 2 if is_reptile else query_loss
    change = None
    if penalty is not None:
        change = mean_relative_change(path, learner.step_size)
        objective = objective + penalty.weight * change
    first = path.gradients[0]

    def outputs_at(end: Tensor) -> Tensor:  # those at the end of the learner's own loop are known already
        return outputs if end is path.adapted else loss.outputs(end, x)

    distance = _shot_distance(shot, path, partial(run_loop, first_gradient=first), outputs_at, project)
    return objective, distance, _aux(query_loss, distance, first.loss, outputs, y, change)


def _latent_parts(
    task: leo.Task, query: Batch, shot: Shot | None, checkpointing: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Aux]:
    """LEO's objective, which is the query loss after its two loops plus its penalties, and SHOT's distance.

    SHOT compares the ends of two loops on the codes, or the outputs of the networks that are decoded there.
    """
    loss, (x, y) = task.loss, query
    path = task.code_path(checkpointing=checkpointing)
    tuned = task.weight_path(path.adapted, checkpointing=checkpointing)
    outputs = loss.outputs(task.network_with(tuned.adapted), x)
    query_loss = loss.criterion(outputs, y)
    objective = query_loss + task.penalty(path.adapted)
    first = path.gradients[0]
    run_loop = partial(task.code_path, first_gradient=first, checkpointing=checkpointing)

    def outputs_at(code: Tensor) -> Tensor:  # decoded from the codes, before any fine-tuning
        return loss.outputs(task.network_with(task.weights(code)), x)

    distance = _shot_distance(shot, path, run_loop, outputs_at)
    return objective, distance, _aux(query_loss, distance, first.loss, outputs, y)


def _shot_distance(
    shot: Shot | None,
    path: InnerPath,
    run_loop: Callable[..., InnerPath],
    outputs_at: Callable[[Tensor], Tensor],
    project: Projector = identity_projector,
) -> Float[Tensor, ""]:
    """SHOT's distance between the end points of two loops, or between the outputs at these points; NaN without SHOT.

    path: the learner's own loop. run_loop: a function that runs the loop with another number of ``steps``.
    outputs_at: a function that returns the query outputs at an end point. project: see ``parameter_parts``.
    """
    if shot is None:
        return torch.full_like(path.gradients[0].loss, float("nan"))

    own_steps, moved = len(path.gradients), path.gradients[0].vector.numel()

    def result_after(steps: int) -> Tensor:
        end = path.adapted if steps == own_steps else run_loop(steps=steps).adapted
        return end if shot.distance == L2 else outputs_at(end)

    return reference_distance(shot, result_after, steps=own_steps, moved=moved, project=project)


def _aux(
    query_loss: Tensor, distance: Tensor, support_loss: Tensor, outputs: Tensor, y: Tensor, change: Tensor | None = None
) -> Aux:
    """The numbers that are reported; ``outputs`` and ``y`` are those of the query set."""
    outputs = outputs.detach()
    change = torch.full_like(query_loss, float("nan")) if change is None else change
    return Aux(
        query_loss.detach(),
        distance.detach(),
        support_loss.detach(),
        accuracy(outputs, y),
        output_variation(outputs),
        change.detach(),
    )


def _class_loss(loss: Loss, theta: Tensor, examples: Batch) -> tuple[Tensor, Aux]:
    """The cross-entropy on all training classes, with the head whose parameters follow the network's in ``theta``."""
    x, y = examples
    outputs = with_linear_head(features(loss, network_parameters(loss, theta), x), further_parameters(loss, theta))
    value = loss.criterion(outputs, y)
    return value, _aux(value, torch.full_like(value, float("nan")), value, outputs, y)
