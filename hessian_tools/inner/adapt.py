"""Running a learner's inner loop from its meta-parameters."""

from jaxtyping import Float
from torch import Tensor

from hessian_tools.inner import leo
from hessian_tools.inner.descent import InnerPath, inner_loop
from hessian_tools.inner.gradients import Gradient
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.parameters import moved_part, network_parameters, step_sizes
from hessian_tools.loss import Batch, LossFunction, refuse_unusable, require_network

# The beginning of the error message for a plain function; see ``require_network``.
LEO_NEEDS = "LEO decodes the head of a network"


def adapt(learner: Learner, loss: LossFunction, theta: Float[Tensor, " meta"], support: Batch) -> Tensor:
    """The network's parameters [param] after the learner's inner loop; differentiable in ``theta``."""
    refuse_unusable(support, theta)
    if learner.latent is not None:
        return leo.adapted(learner, require_network(loss, LEO_NEEDS), theta, support)
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
    products: bool = False,
) -> InnerPath:
    """The points (parameter vectors) and gradients of a learner's inner loop.

    theta: the learner's meta-parameters [meta].
    steps: a number of steps other than the learner's own. The step size is then scaled so that both loops take the
        same total time, as the learner's step rule measures it.
    first_gradient, minibatches, checkpointing, products: see ``inner_loop``.

    LEO moves latent codes, from which the head's weights are decoded (see ``hessian_tools.inner.leo``). Its path
    consists of the networks that are decoded from the codes, then of the fine-tuned ones, with gradients with respect
    to the head's weights. For LEO, ``steps``, ``first_gradient``, ``minibatches`` and ``products`` are ignored.
    """
    if learner.latent is not None:
        return leo.decoded_path(learner, require_network(loss, LEO_NEEDS), theta, support, checkpointing=checkpointing)
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
        products=products,
    )
