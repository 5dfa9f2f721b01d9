"""Translates errors that torch raises inside a derivative into what the user can do about them."""

import torch

from hessian_tools.failures import first_line, is_out_of_memory

# Each constant holds words by which one kind of torch's errors is recognised; the comment says what the error means.
# The loss cannot go through vmap.
VMAP = ("vmap", "data-dependent", "Batching rule", "Cannot access data pointer")
# An operation has no forward derivative: the backward pass of nn.MSELoss, kernels without a forward derivative, and
# autograd.Functions, which torch also uses for backward hooks.
NO_FORWARD = ("ZeroTensors are", "forward AD", "autograd.Function")
# An operation has no second derivative. The first two phrases are torch's, the last one is from ``double_backward``.
NO_SECOND = (
    "is not implemented",
    "out=... arguments don't support automatic differentiation",
    "without a second derivative",
)
# The loss differentiates inside itself by torch.autograd, which torch.func does not allow within its transforms.
INSIDE = ("requires_grad_()", "does not require grad", "appears to not have been used in the graph")
# The loss has an embedding with sparse gradients.
SPARSE = ("sparse tensors", "SparseCPU", "SparseCUDA", "embedding_sparse_backward")
# The network runs torch.utils.checkpoint.
RECOMPUTED = ("saved tensor", "torch.utils.checkpoint")


class NoForwardDerivative(RuntimeError):
    """Forward over reverse cannot differentiate this loss; reverse over reverse may be able to."""


class NoOtherWay(RuntimeError):
    """No engine can differentiate this loss, so that trying another one is of no use."""


def explained(error: RuntimeError) -> BaseException:
    """The error to raise in place of one of torch's, or the same error if it is none of the known ones.

    Its class says which other engine may be tried: reverse over reverse after a NoForwardDerivative, and none after a
    NoOtherWay. After any other RuntimeError, ``Engine.may_use_reverse`` decides.
    """
    text = str(error)
    if is_out_of_memory(error) or isinstance(error, NoForwardDerivative | NoOtherWay) or not text:
        return error
    if "KeyboardInterrupt" in text:
        # TorchScript, in which some of torch's derivatives are written, turns Ctrl-C into a RuntimeError.
        return KeyboardInterrupt()
    kind: type[RuntimeError] = NoOtherWay
    if "_scaled_dot_product" in text:
        why = "attention has no second derivative here: run it within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
    elif any(words in text for words in RECOMPUTED):
        why = (
            "the network runs torch.utils.checkpoint, whose backward pass computes the network again, but at the "
            "parameters stored in it and not at theta: switch it off here"
        )
    elif any(words in text for words in SPARSE):
        why = "a gradient is sparse, which has no second derivative in torch: build the embedding with sparse=False"
    elif "does not currently support double backward" in text:
        why = "torch.compile has no second derivative: measure the module before it was compiled"
    elif "functorch transform" in text and torch._C._functorch.peek_interpreter_stack() is not None:
        # The engine's own transforms have ended when its errors arrive here. A transform that is still active was begun
        # by the caller, who has put the product into it.
        kind = RuntimeError
        why = (
            "a kept graph cannot be transformed by torch.func: pass route='direct', or replace vmap by one product "
            "with many vectors, H @ V"
        )
    elif any(words in text for words in INSIDE):
        kind = NoForwardDerivative
        why = "the loss differentiates inside itself, by torch.autograd.grad: pass route='kept'"
    # An error about a batching rule may hold words of NO_SECOND, too. It is about vmap, and has a branch further down.
    elif any(words in text for words in NO_SECOND) and "Batching rule" not in text:
        why = "torch has no second derivative of an operation in this loss: write it out by other operations"
    elif any(words in text for words in NO_FORWARD):
        kind, why = NoForwardDerivative, _no_forward(text)
    elif "scalar" in text:
        kind, why = RuntimeError, "a loss must be one number, a tensor without axes: take the mean over examples"
    elif "random" in text and "vmap" in text:
        why = "the loss draws random numbers, so it is not a function of theta alone: call model.eval() or fix them"
    elif any(words in text for words in VMAP):
        kind, why = RuntimeError, "the loss cannot be batched over points: pass batching='loop'"
    else:
        return error
    return kind(f"{why} (torch said: {first_line(error)[:200]})")


def _no_forward(text: str) -> str:
    """What to do about an error of the kind NO_FORWARD."""
    if "ZeroTensor" in text:
        why = "the loss has no forward-over-reverse derivative: write nn.MSELoss as ((a - b) ** 2).mean(), or"
    elif "autograd.Function" in text:
        why = "the network runs a torch.autograd.Function, as backward hooks do:"
    else:
        why = "the loss has no forward-over-reverse derivative:"
    return f"{why} pass route='kept'"
