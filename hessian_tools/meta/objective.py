"""The outer objective of one task: the query loss after adaptation, plus SHOT's penalty."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.loss import Batch, Loss
from hessian_tools.meta.inner import Path, inner_loop, learner_path
from hessian_tools.meta.learners import Learner
from hessian_tools.meta.shot import DISTANCES, Shot


@dataclass(frozen=True)
class Aux:
    """What a meta-loss is made of, detached: the query loss, SHOT's distance (NaN without SHOT) and accuracies."""

    query_loss: Float[Tensor, ""]
    shot_distance: Float[Tensor, ""]
    support_loss: Float[Tensor, ""]
    query_accuracy: Float[Tensor, ""]


def meta_loss(
    learner: Learner,
    loss: Loss,
    theta: Float[Tensor, " param"],
    support: Batch,
    query: Batch,
    *,
    shot: Shot | None = None,
) -> tuple[Float[Tensor, ""], Aux]:
    """Query loss at the adapted parameters (+ weight x SHOT distance), differentiable in ``theta``.

    With ``reference_steps=None`` and ``target_steps=1`` SHOT costs one forward and backward pass
    over the query set: the target is one step of K alpha along the gradient the inner loop has already.
    """
    path = learner_path(learner, loss, theta, support)
    x, y = query
    outputs = loss.outputs(path.adapted, x)
    query_loss = loss.criterion(outputs, y)
    total, distance = query_loss, torch.full_like(query_loss, float("nan"))
    if shot is not None:
        distance = shot_distance(shot, learner, loss, path, support, x, own_outputs=outputs)
        total = query_loss + shot.weight * distance
    return total, Aux(
        query_loss.detach(), distance.detach(), path.gradients[0].loss.detach(), accuracy(outputs.detach(), y)
    )


def shot_distance(
    shot: Shot, learner: Learner, loss: Loss, path: Path, support: Batch, x: Tensor, *, own_outputs: Tensor
) -> Float[Tensor, ""]:
    """D(reference, target) on the query inputs; both share the first gradient of ``path``."""
    reference_steps = shot.reference_count(learner.steps)

    def outputs_after(steps: int) -> Tensor:
        branch = inner_loop(
            loss,
            path.thetas[0],
            support,
            steps=steps,
            step_size=learner.total_time / steps,
            first_order=learner.first_order,
            first_gradient=path.gradients[0],
        )
        return loss.outputs(branch.adapted, x)

    if reference_steps == learner.steps:
        reference = own_outputs.detach() if shot.detach_reference else own_outputs
    elif shot.detach_reference:
        with torch.no_grad():
            reference = outputs_after(reference_steps)
    else:
        reference = outputs_after(reference_steps)
    target = own_outputs if shot.target_steps == learner.steps else outputs_after(shot.target_steps)
    return DISTANCES[shot.distance](reference, target)


def accuracy(outputs: Tensor, y: Tensor) -> Float[Tensor, ""]:
    """Share of examples whose largest output is the label; NaN for real-valued targets and for outputs not finite."""
    if y.is_floating_point() or not torch.isfinite(outputs).all():
        return torch.full((), float("nan"), dtype=outputs.dtype, device=outputs.device)
    return (outputs.argmax(-1) == y.to(outputs.device)).to(outputs.dtype).mean()
