"""The error for a loss that is no function of theta alone, in the words for each of its causes."""

from torch import nn

# The beginning of the names of the criterion's buffers, among those of the model.
CRITERION = "<criterion>."
# The words of the error for networks with torch.utils.checkpoint. It runs the network again in the backward pass, but
# with the parameters stored in the module instead of theta, so it cannot be allowed.
RECOMPUTED = "saved tensor hooks of torch.utils.checkpoint"
SCALED = "an embedding with scale_grad_by_freq=True has a gradient that is no derivative of its loss; use False"
HOOKED = (
    "a hook on a tensor changes its gradient in the backward pass, so the gradient is no derivative of the loss, and "
    "the hook itself is not differentiated; remove it, or write its effect into the forward pass"
)
SPARSE = (
    "an embedding with sparse=True has no second derivative in torch: use sparse=False, which gives the same numbers"
)


class HiddenStateError(ValueError):
    """The loss is no function of theta alone, or its derivative would miss a part of its dependence on theta."""


def impure_pass(model: nn.Module, name: str, what: str) -> HiddenStateError:
    """The error for a network whose module ``name`` does ``what``; "" is the network itself."""
    if name == CRITERION.removesuffix("."):
        return HiddenStateError(f"the criterion {what}, so the loss is no function of the parameters")
    module = model.get_submodule(name)
    where = f"module {name!r} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        fix = "build it with track_running_stats=False, or call model.eval()"
    else:
        fix = "call model.eval(), or make the forward pass a function of its input alone"
    return HiddenStateError(f"{where} {what} in the forward pass, so its loss is no function of the parameters; {fix}")


def random_module(model: nn.Module) -> str:
    """The name of the first dropout in training mode; "" where there is none, and something else draws."""
    dropout = nn.modules.dropout._DropoutNd
    return next((name for name, m in model.named_modules() if isinstance(m, dropout) and m.training), "")


def independent_of_theta(fix: str) -> HiddenStateError:
    """The error for a loss that does not depend on theta. fix: what to do."""
    return HiddenStateError(f"the loss does not depend on theta, so its Hessian would be 0 everywhere; {fix}")


def unreached_parameter(model: nn.Module, parameter: str) -> HiddenStateError:
    """The error for a parameter that changes the loss although its gradient is None."""
    quantised = next((name for name, m in model.named_modules() if "quantized" in type(m).__module__), None)
    if quantised is not None:
        why = f"module {quantised!r} is quantised and has no derivative"
        fix = "measure the network before it was quantised"
    else:
        why = "it is used under torch.no_grad, detached, or in a checkpoint with use_reentrant=True"
        fix = "let the forward pass record a graph"
    return HiddenStateError(
        f"the loss depends on the parameter {parameter!r}, but its gradient does not ({why}); {fix}, or make the "
        "parameter a constant with flatten(model, where=...)"
    )


def fix_of_independent(model: nn.Module) -> str:
    """What to do where a network's loss does not depend on theta."""
    if hasattr(model, "fast_params"):  # a module that the library ``higher`` has patched
        return (
            "higher's patched module uses its own fast weights; make the loss of the module that was patched, and "
            "pass the fast weights as theta = torch.cat([p.flatten() for p in fmodel.parameters()])"
        )
    return (
        "the network must use its parameters when its forward pass is called, not tensors held elsewhere; make the "
        "loss of the module itself, and pass other weights as a vector theta"
    )


def stored_in_place_of_theta(parameter: str) -> HiddenStateError:
    """The error for a network's loss that uses a parameter stored in the model where theta should be."""
    return HiddenStateError(
        f"the loss uses the model's stored parameter {parameter!r} in place of theta, so a part of "
        "its derivative would be missing; let the forward pass read self's parameters when it is called, and the "
        "criterion only outputs and targets"
    )


def run_again(what: str) -> HiddenStateError:
    """The error for a module that is run again inside the backward pass."""
    return HiddenStateError(
        f"{what} is run again inside the backward pass, at its stored weights and not at theta (an adjoint method or a "
        "checkpoint), so its derivative would be lost; use the ordinary forward pass, such as odeint in place of "
        "odeint_adjoint"
    )
