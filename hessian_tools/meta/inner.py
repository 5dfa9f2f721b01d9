"""The one inner loop: training differentiates it, recording reads it."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value

from hessian_tools.loss import Batch, Loss, LossFunction
from hessian_tools.meta.learners import Learner


@dataclass(frozen=True)
class Gradient:
    """A gradient with what its pass over the support set also gave: the loss, and the outputs of a ``Loss``."""

    vector: Float[Tensor, " param"]
    loss: Float[Tensor, ""]
    outputs: Tensor | None


@dataclass(frozen=True)
class Path:
    """The points an inner loop visited (K + 1) and the gradients it stepped along (K)."""

    thetas: tuple[Tensor, ...]
    gradients: tuple[Gradient, ...]

    @property
    def adapted(self) -> Float[Tensor, " param"]:
        """The last point."""
        return self.thetas[-1]


def support_gradient(loss: LossFunction, theta: Float[Tensor, " param"], support: Batch) -> Gradient:
    """Gradient, loss and outputs at one point in one forward and one backward pass."""

    def with_outputs(t: Tensor) -> tuple[Tensor, Tensor | None]:
        if not isinstance(loss, Loss):
            return loss(t, support), None
        x, y = support
        outputs = loss.outputs(t, x)
        return loss.criterion(outputs, y), outputs

    vector, (value, outputs) = grad_and_value(with_outputs, has_aux=True)(theta)
    return Gradient(vector, value, outputs)


def inner_loop(
    loss: LossFunction,
    theta: Float[Tensor, " param"],
    support: Batch,
    *,
    steps: int,
    step_size: float,
    first_order: bool = False,
    first_gradient: Gradient | None = None,
) -> Path:
    """theta_{k+1} = theta_k - alpha g_k for K steps, differentiable in ``theta``.

    first_gradient: the gradient at ``theta`` where another loop has it already; the pass over the
    support set is then not made again, and an outer backward sweeps through it once for both.
    first_order: every gradient is a constant to the outer derivative.
    """
    thetas, gradients = [theta], []
    for k in range(steps):
        if k == 0 and first_gradient is not None:
            gradient = first_gradient
        else:
            gradient = support_gradient(loss, thetas[-1].detach() if first_order else thetas[-1], support)
        gradients.append(gradient)
        thetas.append(thetas[-1] - step_size * gradient.vector)
    return Path(tuple(thetas), tuple(gradients))


def adapt(learner: Learner, loss: LossFunction, theta: Float[Tensor, " param"], support: Batch) -> Tensor:
    """The parameters after the learner's inner loop on the support set; differentiable in ``theta``."""
    return learner_path(learner, loss, theta, support).adapted


def learner_path(learner: Learner, loss: LossFunction, theta: Float[Tensor, " param"], support: Batch) -> Path:
    """The inner loop as the learner takes it."""
    return inner_loop(
        loss, theta, support, steps=learner.steps, step_size=learner.step_size, first_order=learner.first_order
    )
