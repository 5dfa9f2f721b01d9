"""The gradient of a support loss at one point: with its graph kept, or made again when a derivative asks for it."""

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
    """A gradient by the entries that move, with what its pass over the support set also gave.

    These are the loss, and the outputs of a ``Loss``.
    """

    vector: Float[Tensor, " moved"]
    loss: Float[Tensor, ""]
    outputs: Tensor | None


def support_gradient(
    loss: LossFunction, theta: Float[Tensor, " param"], support: Batch, *, part: Part | None = None
) -> Gradient:
    """Gradient by the parameters in ``part``, loss and outputs, in one forward and one backward pass."""

    if not isinstance(loss, Loss):  # torch.func admits no None beside the value
        vector, value = grad_and_value(loss)(theta, support)
        return Gradient(vector, value, None)
    x, y = support
    rest = loss.layout.unflatten(theta) if part is not None else {}

    def with_outputs(moved: Tensor) -> tuple[Tensor, Tensor]:
        outputs = loss.outputs(moved, x) if part is None else loss.outputs_at(rest | part.layout.unflatten(moved), x)
        return loss.criterion(outputs, y), outputs

    start = theta if part is None else part.of(theta)
    if start.requires_grad and torch.is_grad_enabled() and not _is_transformed():
        here = start.view_as(start)  # a node of its own: what else was made from theta is a constant to the inner loop
        value, outputs = with_outputs(here)
        (vector,) = torch.autograd.grad(value, here, create_graph=True)  # as torch.func's, less its work per operation
        return Gradient(vector, value, outputs)
    vector, (value, outputs) = grad_and_value(with_outputs, has_aux=True)(start)
    return Gradient(vector, value, outputs)


def recomputed_gradient(
    loss: LossFunction, theta: Float[Tensor, " param"], support: Batch, *, part: Part | None = None
) -> Gradient:
    """The same numbers, but nothing of the two passes is kept besides ``theta`` and ``support``.

    Each derivative that is taken of it costs the two passes once more; derivatives of every order are those of
    :func:`support_gradient` (Chen et al. 2016, for the pair of passes that is one inner step). All that is
    to be differentiated must come in by ``theta`` or ``support``: ValueError where ``loss`` reaches for
    something else that requires a gradient, and inside ``torch.func`` transforms.
    """
    if _is_transformed():
        raise ValueError(
            "checkpointing works by loss.backward() or autograd.grad, not inside torch.func; switch it off"
        )
    leaves, tree = pytree.tree_flatten(support)

    def passes(point: Tensor, *parts: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        found = support_gradient(loss, point, pytree.tree_unflatten(list(parts), tree), part=part)
        return found.vector, found.loss, found.outputs

    return Gradient(*_Recomputed.apply(passes, theta, *leaves))


def _is_transformed() -> bool:
    """Whether some torch.func transform is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


class _Recomputed(torch.autograd.Function):
    """A function's outputs, its graph made when differentiated. Never ``once_differentiable``: SHOT may need more."""

    @staticmethod
    def forward(ctx: Any, passes: Callable[..., Any], *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.passes = passes
        ctx.others = [None if isinstance(t, Tensor) else t for t in inputs]
        ctx.save_for_backward(*(t if isinstance(t, Tensor) else None for t in inputs))
        with torch.enable_grad():  # of detached inputs: a result that requires a gradient has it from elsewhere
            outputs = passes(*(t.detach() if isinstance(t, Tensor) else t for t in inputs))
        if any(isinstance(t, Tensor) and t.requires_grad for t in outputs):
            raise ValueError(
                "the loss depends on a tensor that requires a gradient and is in neither theta nor the batch;"
                " checkpointing would lose that gradient: pass it in the batch, detach it, or switch checkpointing off"
            )
        return outputs

    @staticmethod
    def backward(ctx: Any, *by_outputs: Tensor | None) -> Any:
        further, needed = torch.is_grad_enabled(), ctx.needs_input_grad[1:]
        with torch.enable_grad():
            # Each input under a node of its own: one may be made from another, and that path is not ours to follow.
            inputs = [
                other if t is None else t.view_as(t) if further else t.detach().requires_grad_(wanted)
                for t, other, wanted in zip(ctx.saved_tensors, ctx.others, needed, strict=True)
            ]
            pairs = [
                (output, by)
                for output, by in zip(ctx.passes(*inputs), by_outputs, strict=True)
                if by is not None and output.requires_grad
            ]
            wanted = [t for t, n in zip(inputs, needed, strict=True) if n]
            outputs, weights = zip(*pairs, strict=True) if pairs else ((), ())
            found = iter(
                torch.autograd.grad(outputs, wanted, weights, create_graph=further, allow_unused=True)
                if pairs
                else [None] * len(wanted)
            )
        return (None, *(next(found) if n else None for n in needed))
