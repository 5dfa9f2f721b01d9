"""Running a learner's inner loop from its meta-parameters."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.batches import refuse_unusable
from hessian_tools.inner import leo
from hessian_tools.inner.descent import InnerPath, inner_loop
from hessian_tools.inner.gradients import Gradient
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.parameters import moved_part, network_parameters, refuse_longer, step_sizes
from hessian_tools.loss import Batch, LossFunction, require_network
from hessian_tools.torch_fixes.precision import full_precision

# The beginning of the error message for a plain function; see ``require_network``.
LEO_NEEDS = "LEO decodes the head of a network"


def adapt(learner: Learner, loss: LossFunction, theta: Float[Tensor, " meta"], support: Batch) -> Tensor:
    """The network's parameters [param] after the learner's inner loop; differentiable in ``theta``."""
    refuse_unusable(support, theta)
    refuse_longer(learner, loss, theta)
    if learner.latent is not None:
        return leo.adapted(learner, require_network(loss, LEO_NEEDS), theta, support)
    return learner_path(learner, loss, theta, support).adapted


@full_precision  # float32 products are computed in float32 and not in TF32
def meta_gradient(
    learner: Learner, loss: LossFunction, theta: Float[Tensor, " meta"], support: Batch, query: Batch, *, full: bool
) -> Float[Tensor, " meta"]:
    """The gradient in ``theta`` of the query loss after the learner's inner loop.

    full: True differentiates through the inner loop; False treats the gradients of its steps as constants, whatever
        ``learner.first_order`` says. With K steps along the gradient, from theta_0 to theta_K, the full meta-gradient
        is J'g and the first-order one is g. Here g is the gradient of the query loss at theta_K, and J is the matrix
        d theta_K / d theta_0 (see ``adaptation_jacobian``), with the transpose J'.

    Penalties that meta-training adds to the query loss, such as SHOT (see ``hessian_tools.inner.shot``), are not part
    of this gradient. The full gradient costs as much as a training step.

    >>> from hessian_tools.inner.learners import maml
    >>> learner, loss = maml(2, 0.1), lambda theta, target: ((theta - target) ** 2).sum() / 2
    >>> task = torch.zeros(1), torch.tensor([0.1])
    >>> meta_gradient(learner, loss, torch.ones(1), *task, full=False)  # theta_2 - 0.1, with theta_2 = 0.9 ** 2
    tensor([0.7100])
    >>> meta_gradient(learner, loss, torch.ones(1), *task, full=True)  # (1 - 0.1) ** 2 times that
    tensor([0.5751])
    """
    theta = theta.detach().requires_grad_()
    adapted = adapt(replace(learner, first_order=not full), loss, theta, support)
    return torch.autograd.grad(loss(adapted, query), theta)[0]


def learner_path(
    learner: Learner,
    loss: LossFunction,
    theta: Float[Tensor, " meta"],
    support: Batch,
    *,
    steps: int | None = None,
    step_factor: float = 1.0,
    first_gradient: Gradient | None = None,
    minibatches: int = 1,
    checkpointing: bool = False,
    products: bool = False,
) -> InnerPath:
    """The points (parameter vectors) and gradients of a learner's inner loop.

    theta: the learner's meta-parameters [meta].
    steps: a number of steps other than the learner's own. The step size is then scaled so that both loops take the
        same total time, as the learner's step rule measures it (for plain steps, their number times their size).
    step_factor: a factor of the learner's step size, or of all its step sizes.
    first_gradient, minibatches, checkpointing, products: see ``inner_loop``.

    LEO (latent embedding optimisation, see ``hessian_tools.inner.leo``) moves latent codes, from which the head's
    weights are decoded. Its path consists of the networks that are decoded from the codes, and then of the fine-tuned
    ones; the gradients are those with respect to the head's weights. For LEO, ``steps``, ``step_factor``,
    ``first_gradient``, ``minibatches`` and ``products`` are ignored.
    """
    if learner.latent is not None:
        return leo.decoded_path(learner, require_network(loss, LEO_NEEDS), theta, support, checkpointing=checkpointing)
    step_size = step_factor * step_sizes(learner, loss, theta)
    if steps is not None:
        step_size = learner.rule.time(learner.steps) * step_size / learner.rule.time(steps)
    return inner_loop(
        loss,
        network_parameters(loss, theta),
        support,
        steps=steps or learner.steps,
        step_size=step_size,
        first_order=learner.first_order,
        first_gradient=first_gradient,
        part=moved_part(learner, loss, device=theta.device),
        rule=learner.rule,
        minibatches=minibatches,
        checkpointing=checkpointing,
        products=products,
    )
