"""The curvature matrices of a loss. Each has a name and a function that multiplies it by a vector at one point."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vjp

from hessian_tools.loss import Batch, Loss, LossFunction
from hessian_tools.outputs import differentiable_part


@dataclass(frozen=True)
class Matrix:
    """A symmetric matrix that a loss has at every point.

    name: what messages call it. product: ``product(loss, theta, batch, v)`` is the matrix at theta times v.
    """

    name: str
    product: Callable[[Any, Tensor, Batch, Tensor], Tensor]


def hessian_product(
    loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch, v: Float[Tensor, " param"]
) -> Float[Tensor, " param"]:
    """Hv at one point, forward over reverse (Pearlmutter 1994).

    For many points, apply ``vmap`` to this function. The other order, ``jvp(vmap(grad(loss)))``, is silently wrong
    by 1.4 % through training-mode ``F.batch_norm`` (torch 2.13), as is ``grad(vmap(loss))``.
    """

    def value(t: Tensor) -> Tensor:
        return loss(t, batch)

    return jvp(grad(value), (theta,), (v,))[1]


def gauss_newton_product(
    loss: Loss, theta: Float[Tensor, " param"], batch: Batch, v: Float[Tensor, " param"]
) -> Float[Tensor, " param"]:
    """J'BJv at one point (Schraudolph 2002).

    J is the Jacobian of the network's outputs, and B the Hessian of the criterion in the outputs.
    """
    if not loss.has_criterion:
        raise RuntimeError("the network computes its loss itself, so its Gauss-Newton matrix needs route='kept'")
    x, y = loss.split(batch)
    network = DifferentiableOutputs(loss, x)
    outputs, pull, others = vjp(network, theta, has_aux=True)  # type: ignore[misc]
    tangent = jvp(network, (theta,), (v,), has_aux=True)[1]
    return pull(criterion_hessian(loss, outputs, lambda floating: network.put_back(floating, others), y)(tangent))[0]


class DifferentiableOutputs:
    """The floating-point outputs of a network on one input as a function of theta, beside the other output tensors.

    put_back: the function that makes the network's outputs from these two lists of tensors. The first call of the
    network sets it.
    """

    def __init__(self, loss: Loss, x: Any) -> None:
        self.loss, self.x = loss, x
        self.put_back: Callable[[list[Tensor], list[Tensor]], Any] = lambda floating, others: floating

    def __call__(self, theta: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The floating-point outputs, and the other tensors among the outputs."""
        floating, others, self.put_back = differentiable_part(self.loss.outputs(theta, self.x))
        return floating, others


def criterion_hessian(
    loss: Loss, outputs: list[Tensor], put_back: Callable[[list[Tensor]], Any], y: object
) -> Callable[[list[Tensor]], list[Tensor]]:
    """The map u -> Bu, where B is the Hessian of the criterion in the floating-point outputs.

    put_back: turns the floating-point outputs into the outputs that the criterion takes.
    """

    def criterion(floating: list[Tensor]) -> Tensor:
        return loss.criterion(put_back(floating), y)

    # Reverse over reverse, because forward mode cannot differentiate the backward pass of nn.MSELoss.
    pull = vjp(grad(criterion), outputs)[1]
    return lambda u: pull(u)[0]


HESSIAN = Matrix("Hessian", hessian_product)
GAUSS_NEWTON = Matrix("Gauss-Newton", gauss_newton_product)
