"""Errors that torch raises inside a derivative, translated into what the user can do about them."""

import torch

# Words of torch's errors where a loss cannot go through vmap.
VMAP = ("vmap", "data-dependent", "Batching rule", "Cannot access data pointer")
# Words where an operation has no forward derivative: the squared error by nn.MSELoss, kernels without one, and
# autograd.Functions, among which are backward hooks.
NO_FORWARD = ("ZeroTensors are", "forward AD", "autograd.Function")
# Words of torch.autograd and of functorch, and ours, where the derivative of a kernel ends.
NO_SECOND = (
    "is not implemented",
    "out=... arguments don't support automatic differentiation",
    "without a second derivative",
)
# Words where torch.utils.checkpoint runs: within torch.func, with kept graphs, and with use_reentrant=True.
RECOMPUTED = ("saved tensor", "torch.utils.checkpoint")


class NoForwardDerivative(RuntimeError):
    """Forward over reverse cannot differentiate this loss; reverse over reverse may be able to."""


class NoOtherWay(RuntimeError):
    """No engine can differentiate this loss, so that trying another one is of no use."""


def explained(error: RuntimeError) -> BaseException:
    """The error to raise in the place of one of torch's; the same error where torch explains it well enough.

    A NoForwardDerivative says that reverse over reverse is worth a try, a NoOtherWay that nothing is.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | NoForwardDerivative | NoOtherWay) or not text:
        return error
    if "KeyboardInterrupt" in text:  # TorchScript, in which torch has some of its derivatives, reports Ctrl-C like this
        return KeyboardInterrupt()
    kind: type[RuntimeError] = NoOtherWay
    if "_scaled_dot_product" in text:
        why = "attention has no second derivative here: run it within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
    elif any(words in text for words in RECOMPUTED):
        why = "the network runs torch.utils.checkpoint, whose second pass would not be at theta: switch it off here"
    elif any(words in text for words in NO_SECOND) and "Batching rule" not in text:
        why = "torch has no second derivative of an operation in this loss: write it out by other operations"
    elif any(words in text for words in NO_FORWARD):
        kind, why = NoForwardDerivative, _no_forward(text)
    elif "scalar" in text:
        kind, why = RuntimeError, "a loss is one number, a tensor []: take the mean over examples"
    elif "functorch transform" in text:
        kind = RuntimeError
        why = "a kept graph cannot be transformed by torch.func: pass route='direct', or many vectors at once, H @ V"
    elif "random" in text and "vmap" in text:
        why = "the loss draws random numbers, so it is no function of theta: call model.eval() or fix them"
    elif any(words in text for words in VMAP):
        kind, why = RuntimeError, "the loss cannot be batched over points: pass batching='loop'"
    else:
        return error
    return kind(f"{why} (torch said: {text.splitlines()[0][:200]})")


def _no_forward(text: str) -> str:
    if "ZeroTensor" in text:
        why = "the loss has no forward-over-reverse derivative: write nn.MSELoss as ((a - b) ** 2).mean(), or"
    elif "autograd.Function" in text:
        why = "the network runs a torch.autograd.Function, as backward hooks do:"
    else:
        why = "the loss has no forward-over-reverse derivative:"
    return f"{why} pass route='kept' (Hessians alone have one)"
