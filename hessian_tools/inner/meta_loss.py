"""The outer objective of one task: what a learner's meta-training descends, plus SHOT's penalty."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.inner import leo
from hessian_tools.inner.adapt import Path, learner_path
from hessian_tools.inner.collapse import output_variation
from hessian_tools.inner.features import features, with_linear_head
from hessian_tools.inner.learners import Latent, Learner
from hessian_tools.inner.parameters import further_parameters, network_parameters
from hessian_tools.inner.shot import L2, Projector, Shot, distance_after, unchanged
from hessian_tools.loss import Batch, Loss


@dataclass(frozen=True)
class Aux:
    """What a meta-loss is made of, detached: losses, SHOT's distance (NaN without SHOT), accuracy.

    output_variation: how far the adapted network's outputs differ between queries; see ``homogeneity``.
    """

    query_loss: Float[Tensor, ""]
    shot_distance: Float[Tensor, ""]
    support_loss: Float[Tensor, ""]
    query_accuracy: Float[Tensor, ""]
    output_variation: Float[Tensor, ""]


def meta_loss(
    learner: Learner,
    loss: Loss,
    theta: Float[Tensor, " meta"],
    support: Batch,
    query: Batch,
    *,
    shot: Shot | None = None,
    noise: torch.Generator | None = None,
    checkpointing: bool = False,
) -> tuple[Float[Tensor, ""], Aux]:
    """The learner's outer objective on one task (+ weight x SHOT distance), differentiable in ``theta``.

    With ``reference_steps=None`` and ``target_steps=1`` SHOT costs one forward and backward pass
    over the query set: the target is one step of K alpha along the gradient the inner loop has already.
    A distance in parameters costs no pass at all. A schedule of ``shot`` is the outer loop's affair;
    here its full weight counts: see ``Shot.at``.

    theta: the meta-parameters; see ``hessian_tools.inner.parameters``. Under ``outer="classes"``
    the labels are those of the training classes. noise: of LEO's draws and dropout; None: their means.
    checkpointing: the same value and gradient with the activations of one inner step in memory, whatever
    their number, for one more forward and backward pass a step; by ``backward`` or ``autograd.grad`` alone.
    """
    check_shot(shot, learner)
    refuse_plain_function(loss)
    if learner.latent is not None:
        return _latent_loss(learner, learner.latent, loss, theta, support, query, shot, noise, checkpointing)
    if learner.outer == "classes":
        return _class_loss(loss, theta, joined(support, query))
    if learner.outer == "displacement":
        return _displacement(learner, loss, theta, support, query, shot)
    return _query_loss(learner, loss, theta, support, query, shot, checkpointing)


def refuse_plain_function(loss: object) -> None:
    """ValueError for a loss that shows no outputs."""
    if not isinstance(loss, Loss):
        raise ValueError("query outputs are judged, which a plain function does not show; use ht.make_loss")


def check_shot(shot: Shot | None, learner: Learner) -> None:
    """Refuse a penalty that the learner's inner loop cannot have."""
    if shot is None:
        return
    if learner.outer == "classes":
        raise ValueError(f"{learner.name} has no inner loop in training for SHOT to compare with; use shot=None")
    if learner.minibatches > 1:
        raise ValueError(
            f"minibatches={learner.minibatches}: SHOT's target and reference must see the same data; use 1"
        )
    shot.counts(learner.steps)


def shot_distance(
    shot: Shot,
    learner: Learner,
    loss: Loss,
    theta: Float[Tensor, " meta"],
    path: Path,
    support: Batch,
    x: Tensor,
    *,
    own_outputs: Tensor,
    project: Projector = unchanged,
    checkpointing: bool = False,
) -> Float[Tensor, ""]:
    """D(reference, target); both share the first gradient of ``path``, the learner's own loop from ``theta``.

    own_outputs: those on the query inputs ``x`` after ``path``. project: what the reference passes.
    """

    def another(steps: int) -> Path:
        first = path.gradients[0]
        return learner_path(
            learner, loss, theta, support, steps=steps, first_gradient=first, checkpointing=checkpointing
        )

    def outputs(end: Tensor) -> Tensor:
        return own_outputs if end is path.adapted else loss.outputs(end, x)

    return _distance_along(shot, learner, path, another, outputs, project)


def _distance_along(
    shot: Shot,
    learner: Learner,
    path: Path,
    another: Callable[[int], Path],
    outputs: Callable[[Tensor], Tensor],
    project: Projector = unchanged,
) -> Float[Tensor, ""]:
    """Between the ends of two loops, or what they put out; one of the learner's own number of steps is ``path``."""

    def compared(steps: int) -> Tensor:
        end = path.adapted if steps == learner.steps else another(steps).adapted
        return end if shot.distance == L2 else outputs(end)

    moved = path.gradients[0].vector.numel()
    return distance_after(shot, compared, steps=learner.steps, moved=moved, project=project)


def accuracy(outputs: Any, y: Any) -> Float[Tensor, ""]:
    """Share of examples whose largest output is the label.

    NaN for outputs not finite, and for whatever else than one label to each row of outputs: real-valued targets,
    several outputs, targets in a dict.
    """
    like = next(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))
    unknown = torch.full((), float("nan"), dtype=like.dtype, device=like.device)
    if not (isinstance(outputs, Tensor) and isinstance(y, Tensor)):
        return unknown
    if y.is_floating_point() or y.shape != outputs.shape[:-1]:
        return unknown
    share = (outputs.argmax(-1) == y.to(outputs.device)).to(outputs.dtype).mean()
    return torch.where(torch.isfinite(outputs).all(), share, unknown)


def summary(query_loss: Tensor, distance: Tensor | None, support_loss: Tensor, outputs: Tensor, y: Tensor) -> Aux:
    """What a meta-loss was made of, without its graph."""
    outputs = outputs.detach()
    absent = torch.full_like(query_loss, float("nan"))
    shown = absent if distance is None else distance
    return Aux(
        query_loss.detach(), shown.detach(), support_loss.detach(), accuracy(outputs, y), output_variation(outputs)
    )


def joined(support: Batch, query: Batch) -> Batch:
    """Both sets as one, the support set first."""
    return pytree.tree_map(lambda a, b: torch.cat([a, b]), support, query)


def _query_loss(
    learner: Learner, loss: Loss, theta: Tensor, support: Batch, query: Batch, shot: Shot | None, checkpointing: bool
) -> tuple[Tensor, Aux]:
    path = learner_path(learner, loss, theta, support, checkpointing=checkpointing)
    x, y = query
    outputs = loss.outputs(path.adapted, x)
    query_loss = loss.criterion(outputs, y)
    total, distance = query_loss, None
    if shot is not None:
        distance = shot_distance(
            shot, learner, loss, theta, path, support, x, own_outputs=outputs, checkpointing=checkpointing
        )
        total = query_loss + shot.weight * distance
    return total, summary(query_loss, distance, path.gradients[0].loss, outputs, y)


def _displacement(
    learner: Learner, loss: Loss, theta: Tensor, support: Batch, query: Batch, shot: Shot | None
) -> tuple[Tensor, Aux]:
    """|theta - theta_K|^2 / 2 with theta_K held: its gradient is theta - theta_K."""
    examples = joined(support, query)
    path = learner_path(learner, loss, theta, examples, minibatches=learner.minibatches)
    total = ((path.thetas[0] - path.adapted.detach()) ** 2).sum() / 2
    x, y = query
    with torch.set_grad_enabled(shot is not None):
        outputs = loss.outputs(path.adapted, x)
    distance = None
    if shot is not None:
        distance = shot_distance(shot, learner, loss, theta, path, examples, x, own_outputs=outputs)
        total = total + shot.weight * distance
    return total, summary(loss.criterion(outputs, y), distance, path.gradients[0].loss, outputs, y)


def _latent_loss(
    learner: Learner,
    latent: Latent,
    loss: Loss,
    theta: Tensor,
    support: Batch,
    query: Batch,
    shot: Shot | None,
    noise: torch.Generator | None,
    checkpointing: bool,
) -> tuple[Tensor, Aux]:
    """Query loss after both of LEO's loops, its penalties, and SHOT on the codes or what is decoded from them."""
    task = leo.open_task(learner, loss, theta, support, noise)
    path = leo.code_path(learner, loss, theta, task, checkpointing=checkpointing)
    tuned = leo.weight_path(learner, loss, theta, task, path.adapted, checkpointing=checkpointing)
    x, y = query
    outputs = loss.outputs(leo.with_weights(loss, theta, tuned.adapted), x)
    query_loss = loss.criterion(outputs, y)
    found = leo.penalties(latent, task, path.adapted)
    total = query_loss + sum(getattr(latent, f"{name}_weight") * value for name, value in found.items())
    distance = None
    if shot is not None:
        distance = _latent_distance(shot, learner, loss, theta, task, path, x, checkpointing)
        total = total + shot.weight * distance
    return total, summary(query_loss, distance, path.gradients[0].loss, outputs, y)


def _latent_distance(
    shot: Shot,
    learner: Learner,
    loss: Loss,
    theta: Tensor,
    task: leo.Task,
    path: Path,
    x: Tensor,
    checkpointing: bool,
) -> Tensor:
    """Between the codes (L2), or the outputs decoded from them before any fine-tuning."""

    def another(steps: int) -> Path:
        first = path.gradients[0]
        return leo.code_path(learner, loss, theta, task, steps=steps, first_gradient=first, checkpointing=checkpointing)

    def outputs(code: Tensor) -> Tensor:
        return loss.outputs(leo.with_weights(loss, theta, task.weights(code).flatten()), x)

    return _distance_along(shot, learner, path, another, outputs)


def _class_loss(loss: Loss, theta: Tensor, examples: Batch) -> tuple[Tensor, Aux]:
    x, y = examples
    outputs = with_linear_head(features(loss, network_parameters(loss, theta), x), further_parameters(loss, theta))
    value = loss.criterion(outputs, y)
    return value, summary(value, None, value, outputs, y)
