"""A learner's inner loop, from its meta-parameters."""

from jaxtyping import Float
from torch import Tensor

from hessian_tools.inner import leo
from hessian_tools.inner.descent import Path, inner_loop, row_parts
from hessian_tools.inner.gradients import Gradient, support_gradient
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.parameters import moved_part, network_parameters, step_sizes
from hessian_tools.loss import Batch, LossFunction

__all__ = ["Gradient", "Path", "adapt", "inner_loop", "learner_path", "row_parts", "support_gradient"]


def adapt(learner: Learner, loss: LossFunction, theta: Float[Tensor, " meta"], support: Batch) -> Tensor:
    """The network's parameters [param] after the learner's inner loop; differentiable in ``theta``."""
    if learner.latent is not None:
        return leo.adapted(learner, leo.own_loss(loss), theta, support)
    return learner_path(learner, loss, theta, support).adapted


def learner_path(
    learner: Learner,
    loss: LossFunction,
    theta: Float[Tensor, " meta"],
    support: Batch,
    *,
    steps: int | None = None,
    first_gradient: Gradient | None = None,
    minibatches: int = 1,
    checkpointing: bool = False,
) -> Path:
    """The inner loop as the learner takes it, from its meta-parameters.

    steps: another number of steps in the same total time, by the rule's own measure of it.
    checkpointing: see ``inner_loop``; without effect on the values.
    Of LEO: the network at the decoded codes, then its fine-tuning; gradients by the weights.
    """
    if learner.latent is not None:
        return leo.decoded_path(learner, leo.own_loss(loss), theta, support, checkpointing=checkpointing)
    alpha = step_sizes(learner, loss, theta)
    if steps is not None:
        alpha = learner.rule.time(learner.steps) * alpha / learner.rule.time(steps)
    return inner_loop(
        loss,
        network_parameters(loss, theta),
        support,
        steps=steps or learner.steps,
        step_size=alpha,
        first_order=learner.first_order,
        first_gradient=first_gradient,
        part=moved_part(learner, loss, device=theta.device),
        rule=learner.rule,
        minibatches=minibatches,
        checkpointing=checkpointing,
    )
