"""torch's errors from inside a derivative, with what to do about them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

VMAP = ("vmap", "data-dependent", "Batching rule", "Cannot access data pointer")
# Squared error by nn.MSELoss; kernels without one; autograd.Functions, as backward hooks are.
NO_FORWARD = ("ZeroTensors are", "forward AD", "autograd.Function")


# torch.autograd's and functorch's words for a kernel whose derivative ends there.
NO_SECOND = (
    "is not implemented",
    "out=... arguments don't support automatic differentiation",
    "without a second derivative",
)
# Within torch.func, in the kept route, and with use_reentrant=True.
RECOMPUTED = ("saved tensor", "torch.utils.checkpoint")


class NoForwardDerivative(RuntimeError):
    """Forward over reverse is not to be had, reverse over reverse may be."""


class NoOtherWay(RuntimeError):
    """No other route would do better."""


@contextmanager
def advice() -> Iterator[None]:
    """Errors that torch explains badly, explained; NoForwardDerivative where only reverse mode will do, NoOtherWay
    where no route can."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = str(error)
        if "KeyboardInterrupt" in text:  # as TorchScript, in which torch has some derivatives, reports Ctrl-C
            raise KeyboardInterrupt from error
        told = f"(torch said: {text.splitlines()[0][:200]})"
        if "_scaled_dot_product" in text:
            why = (
                "attention has no second derivative here: run it within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
            )
            raise NoOtherWay(f"{why} {told}") from error
        elif any(word in text for word in RECOMPUTED):
            why = "the network runs torch.utils.checkpoint, whose second pass would not be at theta: switch it off here"
            raise NoOtherWay(f"{why} {told}") from error
        elif any(word in text for word in NO_SECOND) and "Batching rule" not in text:
            why = "torch has no second derivative of an operation in this loss: write it out by other operations"
            raise NoOtherWay(f"{why} {told}") from error
        elif any(word in text for word in NO_FORWARD):
            raise NoForwardDerivative(f"{_no_forward(text)} {told}") from error
        elif "scalar" in text:
            why = "a loss is one number, a tensor []: take the mean over examples"
        elif "functorch transform" in text:
            why = (
                "a kept graph cannot be transformed by torch.func: pass route='direct', or many vectors at once, H @ V"
            )
        elif "random" in text and "vmap" in text:
            why = "the loss draws random numbers, so it is no function of theta: call model.eval() or fix them"
            raise NoOtherWay(f"{why} {told}") from error
        elif any(word in text for word in VMAP):
            why = "the loss cannot be batched over points: pass batching='loop'"
        else:
            raise
        raise RuntimeError(f"{why} {told}") from error


def instead(function: Callable[[], T], refusal: RuntimeError) -> T:
    """What another way gives; torch's first refusal where it refuses that as well."""
    try:
        return function()
    except (torch.OutOfMemoryError, NoOtherWay):
        raise
    except RuntimeError:
        raise refusal from None


def _no_forward(text: str) -> str:
    if "ZeroTensor" in text:
        why = "the loss has no forward-over-reverse derivative: write nn.MSELoss as ((a - b) ** 2).mean(), or"
    elif "autograd.Function" in text:
        why = "the network runs a torch.autograd.Function, as backward hooks do:"
    else:
        why = "the loss has no forward-over-reverse derivative:"
    return f"{why} pass route='kept' (Hessians alone have one)"
