"""The gradient of a support loss at one point, with its graph kept, or made again when a derivative asks for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from hessian_tools.inner.parameters import Part
from hessian_tools.loss import Batch, Loss, LossFunction


@dataclass(frozen=True)
class Gradient:
    """A gradient by the entries that move, with the other results of its pass over the support set.

    loss: the value of the support loss. outputs: those of a ``Loss``; None for a plain function.
    """

    vector: Float[Tensor, " moved"]
    loss: Float[Tensor, ""]
    outputs: Tensor | None


def support_gradient(
    loss: LossFunction, theta: Float[Tensor, " param"], support: Batch, *, part: Part | None = None
) -> Gradient:
    """The gradient by the parameters in ``part`` (None: all), loss and outputs, in one forward and one backward pass.

    The result is differentiable in ``theta`` where that requires a gradient, and inside ``torch.func`` transforms.
    """
    if not isinstance(loss, Loss):  # torch.func admits no None beside the value
        vector, value = grad_and_value(loss)(theta, support)
        return Gradient(vector, value, None)
    x, y = support
    rest = loss.layout.unflatten(theta) if part is not None else {}

    def with_outputs(moved: Tensor) -> tuple[Tensor, Tensor]:
        outputs = loss.outputs(moved, x) if part is None else loss.outputs_at(rest | part.layout.unflatten(moved), x)
        return loss.criterion(outputs, y), outputs

    start = theta if part is None else part.of(theta)
    if start.requires_grad and torch.is_grad_enabled() and not _inside_transform():
        # The view is a node of its own: whatever else was made from theta is a constant to the inner gradient.
        point = start.view_as(start)
        value, outputs = with_outputs(point)
        # The same numbers as torch.func's, without the work that torch.func adds to every operation.
        (vector,) = torch.autograd.grad(value, point, create_graph=True)
        return Gradient(vector, value, outputs)
    vector, (value, outputs) = grad_and_value(with_outputs, has_aux=True)(start)
    return Gradient(vector, value, outputs)


def recomputed_gradient(
    loss: LossFunction, theta: Float[Tensor, " param"], support: Batch, *, part: Part | None = None
) -> Gradient:
    """The same numbers as :func:`support_gradient`, with nothing of the two passes kept but ``theta`` and ``support``.

    Each derivative that is taken of the result makes the two passes once more (Chen et al. 2016, for the pair of passes
    that is one inner step). Derivatives of every order are those of :func:`support_gradient`.

    Everything to be differentiated must come in by ``theta`` or ``support``. Raises ValueError where ``loss`` reaches
    for another tensor that requires a gradient, and inside ``torch.func`` transforms.
    """
    if _inside_transform():
        raise ValueError(
            "checkpointing works by loss.backward() or autograd.grad, not inside torch.func; switch it off"
        )
    leaves, tree = pytree.tree_flatten(support)

    def passes(point: Tensor, *parts: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        gradient = support_gradient(loss, point, pytree.tree_unflatten(list(parts), tree), part=part)
        return gradient.vector, gradient.loss, gradient.outputs

    return Gradient(*_Recomputed.apply(passes, theta, *leaves))


def _inside_transform() -> bool:
    """Whether this code runs inside some torch.func transform."""
    return torch._C._functorch.peek_interpreter_stack() is not None


class _Recomputed(torch.autograd.Function):
    """The outputs of a function, whose graph is made only when they are differentiated.

    It is never ``once_differentiable``, because SHOT's penalty may need derivatives of higher order.
    """

    @staticmethod
    def forward(ctx: Any, passes: Callable[..., Any], *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.passes = passes
        ctx.others = [None if isinstance(t, Tensor) else t for t in inputs]
        ctx.save_for_backward(*(t if isinstance(t, Tensor) else None for t in inputs))
        with torch.enable_grad():  # the inputs are detached: an output that requires a gradient has it from elsewhere
            outputs = passes(*(t.detach() if isinstance(t, Tensor) else t for t in inputs))
        if any(isinstance(t, Tensor) and t.requires_grad for t in outputs):
            raise ValueError(
                "the loss depends on a tensor that requires a gradient and is in neither theta nor the batch;"
                " checkpointing would lose that gradient: pass it in the batch, detach it, or switch checkpointing off"
            )
        return outputs

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor | None) -> Any:
        higher_order, needed = torch.is_grad_enabled(), ctx.needs_input_grad[1:]
        with torch.enable_grad():
            # Each input gets a node of its own, because one input may be made from another, and the derivative along
            # that path belongs to the outer graph.
            inputs = [
                other if t is None else t.view_as(t) if higher_order else t.detach().requires_grad_(is_needed)
                for t, other, is_needed in zip(ctx.saved_tensors, ctx.others, needed, strict=True)
            ]
            pairs = [
                (output, gradient)
                for output, gradient in zip(ctx.passes(*inputs), output_gradients, strict=True)
                if gradient is not None and output.requires_grad
            ]
            differentiated = [t for t, is_needed in zip(inputs, needed, strict=True) if is_needed]
            input_gradients: Any = [None] * len(differentiated)
            if pairs:
                outputs, weights = zip(*pairs, strict=True)
                input_gradients = torch.autograd.grad(
                    outputs, differentiated, weights, create_graph=higher_order, allow_unused=True
                )
        remaining = iter(input_gradients)
        return (None, *(next(remaining) if is_needed else None for is_needed in needed))
