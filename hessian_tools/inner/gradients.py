"""The gradient of a support loss at one parameter vector.

The gradient can be differentiated again. Its graph either stays in memory, or is made again when it is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value, vjp
from torch.utils import _pytree as pytree

from hessian_tools.inner.parameters import Part
from hessian_tools.loss import Batch, Loss, LossFunction


@dataclass(frozen=True)
class Gradient:
    """A gradient in the parameters that the inner loop moves, and other results of the same pass over the support set.

    loss: the value of the support loss.
    outputs: the network's outputs; None where the loss is a plain function and not a ``Loss``.
    product: the product H g of the gradient with the Hessian in the same parameters; None where it was not asked for.
    """

    vector: Float[Tensor, " moved"]
    loss: Float[Tensor, ""]
    outputs: Tensor | None
    product: Float[Tensor, " moved"] | None = None


def support_gradient(
    loss: LossFunction,
    theta: Float[Tensor, " param"],
    support: Batch,
    *,
    part: Part | None = None,
    product: bool = False,
) -> Gradient:
    """The gradient with respect to the parameters in ``part`` (None: all), with the loss and the outputs.

    The cost is one forward and one backward pass. The result is differentiable in ``theta``, if ``theta`` requires a
    gradient, and inside ``torch.func`` transforms.
    product: compute H g as well, by a backward pass through the two passes; this needs the loss of a network. H g is
        differentiable too. For a network with normalisation, its derivative is right only if ``loss`` was made by
        ``Loss.thrice_differentiable``.
    """
    if not isinstance(loss, Loss):  # a case apart, because torch.func cannot return None for the missing outputs
        vector, value = grad_and_value(loss)(theta, support)
        return Gradient(vector, value, None)
    x, y = support
    parameters = loss.layout.unflatten(theta) if part is not None else {}

    def with_outputs(moved: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the outputs, where ``moved`` takes the place of the parameters that move."""
        if part is None:
            outputs = loss.outputs(moved, x)
        else:
            outputs = loss.outputs_at(parameters | part.layout.unflatten(moved), x)
        return loss.criterion(outputs, y), outputs

    start = theta if part is None else part.take(theta)
    if start.requires_grad and torch.is_grad_enabled() and not _inside_transform():
        # The view is a new node of the graph, and the gradient is taken with respect to it. Whatever the caller made
        # from theta, such as the batch, is then a constant to the inner gradient.
        point = start.view_as(start)
        value, outputs = with_outputs(point)
        # torch.func.grad gives the same numbers, but adds work to every operation.
        (vector,) = torch.autograd.grad(value, point, create_graph=True)
        hg = torch.autograd.grad(vector, point, vector, create_graph=True)[0] if product else None
        return Gradient(vector, value, outputs, hg)
    gradient_at = grad_and_value(with_outputs, has_aux=True)
    if product:
        results: Any = vjp(gradient_at, start, has_aux=True)
        vector, pullback, (value, outputs) = results
        return Gradient(vector, value, outputs, pullback(vector)[0])
    vector, (value, outputs) = gradient_at(start)
    return Gradient(vector, value, outputs)


def recomputed_gradient(
    loss: LossFunction,
    theta: Float[Tensor, " param"],
    support: Batch,
    *,
    part: Part | None = None,
    product: bool = False,
) -> Gradient:
    """The result of :func:`support_gradient`, computed again from ``theta`` and ``support`` when it is differentiated.

    Only ``theta`` and ``support`` are kept, and each differentiation runs the forward and the backward pass again (the
    checkpointing of Chen et al. 2016, applied to the two passes of one inner step). Derivatives of every order are
    the same as with :func:`support_gradient`.

    Every tensor to be differentiated must be in ``theta`` or ``support``. Raises ValueError where ``loss`` depends on
    another tensor that requires a gradient, and inside ``torch.func`` transforms.
    """
    if _inside_transform():
        raise ValueError(
            "checkpointing works with loss.backward() and torch.autograd.grad, but not inside torch.func; switch it off"
        )
    leaves, tree = pytree.tree_flatten(support)

    def passes(point: Tensor, *parts: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        batch = pytree.tree_unflatten(list(parts), tree)
        gradient = support_gradient(loss, point, batch, part=part, product=product)
        return gradient.vector, gradient.loss, gradient.outputs, gradient.product

    return Gradient(*_Recomputed.apply(passes, theta, *leaves))


def _inside_transform() -> bool:
    """Whether this code runs inside some torch.func transform, which torch has no public function to ask."""
    return torch._C._functorch.peek_interpreter_stack() is not None


class _Recomputed(torch.autograd.Function):
    """Computes the outputs of a function without their graph, which is made only when they are differentiated.

    ``backward`` is not marked ``once_differentiable``, because penalties on the inner loop may need derivatives of
    higher order.
    """

    @staticmethod
    def forward(ctx: Any, passes: Callable[..., Any], *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)  # ``backward`` gets None, and not zeros, for an output that is not used
        ctx.passes = passes
        ctx.constants = [None if isinstance(t, Tensor) else t for t in inputs]
        ctx.save_for_backward(*(t if isinstance(t, Tensor) else None for t in inputs))
        # The inputs are detached, so an output that still requires a gradient depends on some other tensor.
        with torch.enable_grad():
            outputs = passes(*(t.detach() if isinstance(t, Tensor) else t for t in inputs))
        if any(isinstance(t, Tensor) and t.requires_grad for t in outputs):
            raise ValueError(
                "the loss depends on a tensor that requires a gradient and is in neither theta nor the batch;"
                " checkpointing would lose that gradient: pass it in the batch, detach it, or switch checkpointing off"
            )
        return outputs

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor | None) -> Any:
        # Gradients are enabled here only if the caller differentiates with ``create_graph=True``.
        higher_order, needed = torch.is_grad_enabled(), ctx.needs_input_grad[1:]
        with torch.enable_grad():
            inputs: list[Any] = []
            for t, constant, is_needed in zip(ctx.saved_tensors, ctx.constants, needed, strict=True):
                if t is None:  # an input that is not a tensor
                    inputs.append(constant)
                elif higher_order:
                    # The view is a new node of the graph. One input may be made from another, and the derivative along
                    # that path belongs to the outer graph.
                    inputs.append(t.view_as(t))
                else:
                    inputs.append(t.detach().requires_grad_(is_needed))
            pairs = [
                (output, gradient)
                for output, gradient in zip(ctx.passes(*inputs), output_gradients, strict=True)
                if gradient is not None and output.requires_grad
            ]
            differentiated = [t for t, is_needed in zip(inputs, needed, strict=True) if is_needed]
            input_gradients: Any = [None] * len(differentiated)
            if pairs:
                outputs, given = zip(*pairs, strict=True)
                input_gradients = torch.autograd.grad(
                    outputs, differentiated, given, create_graph=higher_order, allow_unused=True
                )
        remaining = iter(input_gradients)
        return (None, *(next(remaining) if is_needed else None for is_needed in needed))
