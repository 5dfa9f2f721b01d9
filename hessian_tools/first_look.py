"""A look at a loss at its first call: is it a function of theta alone, and does its derivative reach all of it?

Some losses give wrong curvature without any error. A loss that draws random numbers is another function at each call. A
network whose weights were put in beside theta has the Hessian 0. A module that is run again inside its own backward
pass, as by adjoint methods and hand-written checkpoints, runs at the weights stored in it and not at theta. All of this
shows in two passes and one backward pass at the first point, in torch's ordinary mode. A third pass is made if some
parameters have no gradient, to see whether the loss depends on them all the same. Derivatives that the user's code
writes by hand are compared with differences (:mod:`hessian_tools.hand_written`).
"""

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hessian_tools.hand_written import graph_nodes, hand_written, wrong_derivative
from hessian_tools.outputs import tensors_of
from hessian_tools.rng import stream
from hessian_tools.torch_fixes.precision import full_precision

# A GPU may add in another order in a second pass. The outputs of two passes count as equal if they differ by at most
# this many machine epsilons of the largest output.
REORDERING_EPS = 1e3
# A loss may draw from Python's global generator without depending on what it draws, because checks of types do so, such
# as those of beartype. So many further values are then compared. (One in 256 losses that toss one coin goes unnoticed.)
VALUES_AFTER_DRAWING = 8
# The words of the error for networks with torch.utils.checkpoint. It runs the network again in the backward pass, but
# with the parameters stored in the module instead of theta, so it cannot be allowed.
RECOMPUTED = "saved tensor hooks of torch.utils.checkpoint"
# The beginning of the names of the criterion's buffers, among those of the model.
CRITERION = "<criterion>."
SCALED = "an embedding with scale_grad_by_freq=True has a gradient that is no derivative of its loss; use False"
HOOKED = (
    "a hook on a tensor changes its gradient in the backward pass, so the gradient is no derivative of the loss, and "
    "the hook itself is not differentiated; remove it, or write its effect into the forward pass"
)
SPARSE = (
    "an embedding with sparse=True has no second derivative in torch: use sparse=False, which gives the same numbers"
)


# A network's loss: a generator of its outputs and then its value, for parameters and buffers by name and a batch.
Evaluate = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Any], Iterator[Any]]


class HiddenStateError(ValueError):
    """The loss is no function of theta alone, or its derivative would miss a part of its dependence on theta."""


class Watch(TorchFunctionMode):
    """Sees which stored parameters a forward pass uses where theta should have taken their place.

    is_stored: whether a tensor is such a parameter. used: those. Reading its shape or detaching it does not count.
    sparse, scaled: whether an embedding has been called whose gradients are sparse, or scaled by frequency. hooked:
    whether a hook on a tensor has changed a gradient. constant: whether the loss has differentiated inside itself
    without a graph.
    """

    def __init__(self, is_stored: Callable[[Any], bool]) -> None:
        super().__init__()
        self.is_stored = is_stored
        self.used: list[Tensor] = []
        self.sparse = self.scaled = self.hooked = self.constant = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, and notes a stored parameter among its arguments."""
        if func is Tensor.register_hook:
            args, kwargs = (args[0], self._noted(*args[1:], **(kwargs or {}))), {}
        result = func(*args, **(kwargs or {}))
        if func in (F.embedding, F.embedding_bag):
            call = signature(func).bind(*args, **(kwargs or {})).arguments
            trained = call["weight"].requires_grad
            self.sparse |= bool(call.get("sparse")) and trained
            self.scaled |= bool(call.get("scale_grad_by_freq")) and trained
        if func in (torch.autograd.grad, Tensor.backward) and torch.is_grad_enabled():
            call = signature(func).bind(*args, **(kwargs or {})).arguments
            self.constant |= not call.get("create_graph")
        if isinstance(result, Tensor) and result.requires_grad:
            self.used += [leaf for leaf in pytree.tree_leaves((args, kwargs)) if self.is_stored(leaf)]
        return result

    def _noted(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
        """The hook of a tensor, which notes if it changes the gradient."""

        def noting(gradient: Tensor) -> Tensor | None:
            changed = hook(gradient)
            self.hooked |= changed is not None and not torch.equal(changed, gradient)
            return changed

        return noting


class BackwardWatch(TorchDispatchMode):
    """Sees whether a backward pass uses a stored parameter, which happens only if it runs a module again."""

    def __init__(self, is_stored: Callable[[Any], bool]) -> None:
        super().__init__()
        self.is_stored = is_stored
        self.used: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operation, and notes a stored parameter among its arguments."""
        if self.used is None:
            self.used = next((leaf for leaf in pytree.tree_leaves((args, kwargs)) if self.is_stored(leaf)), None)
        return func(*args, **(kwargs or {}))


@full_precision
def look_at_function(function: Callable[[Tensor, Any], Tensor], theta: Tensor, batch: Any) -> None:
    """Raises HiddenStateError for a plain function that is none of theta alone; see the head of this file.

    Errors that the function itself raises are left to the engines, which explain them.
    """

    def is_stored(leaf: Any) -> bool:
        return isinstance(leaf, nn.Parameter) and leaf.requires_grad

    with _ordinary_mode(theta):
        leaf, watch = theta.detach().clone().requires_grad_(), Watch(is_stored)
        batch = pytree.tree_map_only(Tensor, _out_of_inference, batch)
        before = _random_states(theta.device)
        try:
            with watch:
                value = function(leaf, batch)
        except Exception:
            return
        drew = _drew(before, _random_states(theta.device))
        if drew == "surely":
            raise HiddenStateError(
                "the loss draws random numbers, so it is no function of theta alone; fix them, or call model.eval()"
            )
        if not isinstance(value, Tensor) or value.ndim != 0 or not value.is_floating_point():
            return
        for _ in range(VALUES_AFTER_DRAWING if drew else 1):
            repeat = function(theta.detach().clone().requires_grad_(), batch).detach()
            if bool(value.isfinite()) and not _agree(value.detach(), repeat):
                raise HiddenStateError(
                    f"the loss gives {float(value.detach()):.6g} and then {float(repeat):.6g} at the same place, "
                    "so it is no function of theta alone"
                )
        _refuse_embeddings(watch)
        for stored in {id(p): p for p in watch.used}.values():
            if name := _where_in(theta, stored):
                raise HiddenStateError(
                    f"the loss uses a stored parameter of shape {tuple(stored.shape)}, whose numbers are {name}, but "
                    "not theta itself; write torch.func.functional_call(model, layout.unflatten(theta), (x,)), or "
                    "detach() it if it is a constant"
                )
        gradient, backward = _backward(value, [leaf], is_stored, [])
        if gradient is None:
            return
        if watch.hooked:
            raise HiddenStateError(HOOKED)
        if backward.used is not None:
            raise _run_again("a module")
        if gradient[0] is None:
            raise _independent(
                "compute it from theta, by torch.func.functional_call(model, layout.unflatten(theta), x)"
            )
        _refuse_wrong_derivative(value, lambda at: function(at, batch), theta)
    _warn_of_constant(watch)


@full_precision
def look_at_network(
    evaluate: Evaluate,
    batch: Any,
    parameters: Callable[[Tensor], dict[str, Tensor]],
    buffers: Callable[[], dict[str, Tensor]],
    stored: Mapping[str, Tensor],
    model: nn.Module,
    theta: Tensor,
) -> None:
    """Raises HiddenStateError for a network's loss that is no function of theta alone; see the head of this file.

    evaluate: a generator that yields the network's outputs and then the loss, for parameters and buffers by name and a
        batch. parameters: theta as parameters by name. buffers: copies of the buffers, those of the criterion too.
    stored: the model's own parameters that theta takes the place of.
    """
    names = {id(p): name for name, p in stored.items()}

    def is_stored(leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and id(leaf) in names

    def value_at(pieces: Mapping[str, Tensor]) -> Tensor:
        passes = evaluate(pieces, buffers(), batch)
        next(passes)
        return next(passes)

    with _ordinary_mode(theta):
        batch = pytree.tree_map_only(Tensor, _out_of_inference, batch)
        leaf, copies, watch = theta.detach().clone().requires_grad_(), buffers(), Watch(is_stored)
        pieces = parameters(leaf)
        first = _first_pass(evaluate, pieces, copies, batch, model=model, leaf=leaf, theta=theta, watch=watch)
        if first is None:
            return
        value = first.value
        # The pass can have changed only these copies; the model's own buffers have their old values.
        moved = [name for name, b in buffers().items() if not torch.equal(copies[name], b)]
        _refuse_changes(model, first, moved=moved)
        for _ in range(VALUES_AFTER_DRAWING if first.drew else 1):
            here = parameters(theta.detach().clone().requires_grad_())
            _refuse_another_value(model, first, evaluate(here, buffers(), batch))
        _refuse_embeddings(watch)
        # Tensors that were computed from stored parameters before the pass are seen in its graph alone.
        leaves = [node.variable for node in graph_nodes(value) if hasattr(node, "variable")]
        used = watch.used + [leaf for leaf in leaves if is_stored(leaf)]
        gradients, backward = _backward(value, list(pieces.values()), is_stored, list(model.parameters()))
    if gradients is not None and all(g is None for g in gradients):
        raise _independent(_fix_of_independent(model))
    if used:
        raise HiddenStateError(
            f"the loss uses the model's stored parameter {names[id(used[0])]!r} in place of theta, so a part of "
            "its derivative would be missing; let the forward pass read self's parameters when it is called, and the "
            "criterion only outputs and targets"
        )
    if watch.hooked:
        raise HiddenStateError(HOOKED)
    if backward.used is not None:
        raise _run_again(f"the module of {names[id(backward.used)]!r}")
    if gradients is None:
        return
    unreached = [name for name, gradient in zip(pieces, gradients, strict=True) if gradient is None]
    with _ordinary_mode(theta):
        if unreached:
            here, elsewhere = parameters(theta.detach().clone().requires_grad_()), parameters(_elsewhere(theta))
            moved_value = value_at(here | {name: elsewhere[name] for name in unreached})
            if not _agree(value.detach(), moved_value.detach()):
                raise _unreached(model, unreached[0])
        _refuse_wrong_derivative(value, lambda at: value_at(parameters(at)), theta)
    _warn_of_constant(watch)


# Whether random numbers were drawn: not at all; perhaps by a check of types, from Python's generator alone; or surely.
Drew = Literal["", "perhaps", "surely"]


class _FirstPass(NamedTuple):
    """What the first pass of a network's loss gave, and what it drew from the global random generators."""

    outputs: Any
    value: Tensor
    has_moved_theta: bool
    drew_in_network: Drew
    drew: Drew


def _first_pass(
    evaluate: Evaluate,
    pieces: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batch: Any,
    *,
    model: nn.Module,
    leaf: Tensor,
    theta: Tensor,
    watch: Watch,
) -> _FirstPass | None:
    """Evaluate the loss once; None where a network runs itself again in its backward pass, which the engines refuse.

    pieces: ``leaf`` as parameters by name, where leaf is a copy of theta.
    """
    before = _random_states(theta.device)
    try:
        with disable_saved_tensors_hooks(RECOMPUTED), watch:
            passes = evaluate(pieces, buffers, batch)
            outputs = next(passes)
            drew_in_network = _drew(before, _random_states(theta.device))
            value = next(passes)
    except RuntimeError as error:
        if RECOMPUTED in str(error):
            return None
        if _moved(leaf, theta):  # torch refuses to change a part of theta in place where it is differentiated
            raise _hidden_state(model, "", "moves its parameters") from None
        if "dtype" in str(error) or "scalar type" in str(error):
            raise ValueError(
                f"the network or the criterion holds a tensor in another dtype than theta ({theta.dtype}), or the "
                "batch does; cast it where it is used, as in w.to(outputs), or register it as a buffer (torch said: "
                f"{error})"
            ) from error
        raise
    drew = _drew(before, _random_states(theta.device))
    return _FirstPass(outputs, value, _moved(leaf, theta), drew_in_network, drew)


def _refuse_changes(model: nn.Module, first: _FirstPass, *, moved: list[str]) -> None:
    """Raises HiddenStateError where a pass changes state or draws. moved: the names of the buffers that it changed."""
    if first.has_moved_theta:
        raise _hidden_state(model, "", "moves its parameters")
    if moved:
        raise _hidden_state(model, moved[0].rpartition(".")[0], "moves its buffers")
    if first.drew_in_network == "surely":
        raise _hidden_state(model, _random_module(model), "draws random numbers")
    if first.drew == "surely":
        raise HiddenStateError(
            "the criterion draws random numbers, so the loss is no function of the parameters; draw them once, "
            "before the loss is made, and put them into the batch"
        )


def _refuse_another_value(model: nn.Module, first: _FirstPass, again: Iterator[Any]) -> None:
    """Raises HiddenStateError where a second pass gives other outputs, or another loss, than the first one.

    Losses alone would not be enough: batch statistics that are tracked in training mode move, while the loss repeats to
    the last bit. Outputs that are not finite are not compared: a NaN in them differs from itself.
    """
    outputs, repeated = ([t.detach() for t in tensors_of(o)] for o in (first.outputs, next(again)))
    if not _repeat(outputs, repeated) and all(t.isfinite().all() for t in outputs):
        raise _hidden_state(model, "", "gives another output the second time")
    value, repeat = first.value.detach(), next(again).detach()
    if bool(value.isfinite()) and not _agree(value, repeat):
        raise HiddenStateError(
            "the criterion gives another value the second time, so the loss is no function of the parameters; "
            "make the criterion a function of outputs and targets alone"
        )


def _refuse_embeddings(watch: Watch) -> None:
    """Raises ValueError where an embedding was called that has no second derivative, or a wrong first one."""
    if watch.sparse:
        raise ValueError(SPARSE)
    if watch.scaled:
        raise ValueError(SCALED)


def _elsewhere(theta: Tensor) -> Tensor:
    """A point near theta that differs from it in every entry."""
    noise = torch.randn(len(theta), generator=stream(0, "unreached"), dtype=torch.float64, device="cpu").to(theta)
    return theta.detach() + 0.1 * (1 + theta.detach().abs()) * noise


def _fix_of_independent(model: nn.Module) -> str:
    """What to do where a network's loss does not depend on theta."""
    if hasattr(model, "fast_params"):
        return (
            "higher's patched module uses its own fast weights; make the loss of the module that was patched, and "
            "pass the fast weights as theta = torch.cat([p.flatten() for p in fmodel.parameters()])"
        )
    return (
        "the network must use its parameters when its forward pass is called, not tensors held elsewhere; make the "
        "loss of the module itself, and pass other weights as a vector theta"
    )


def value_of(loss: Callable[[Tensor, Any], Tensor], theta: Tensor, batch: Any) -> Tensor:
    """The loss without a graph, also where it differentiates by theta inside itself."""
    with torch.enable_grad():
        return loss(theta.detach().clone().requires_grad_(), batch).detach()


class _States(NamedTuple):
    """Those of the global random generators."""

    of_torch: list[Tensor]
    of_numpy: Any
    of_python: Any


def _random_states(device: torch.device) -> _States:
    return _States(random_states(device), np.random.get_state(), random.getstate())


def _drew(before: _States, after: _States) -> Drew:
    numpy_same = all(np.array_equal(a, b) for a, b in zip(before.of_numpy, after.of_numpy, strict=True))
    if not (numpy_same and same_tensors(before.of_torch, after.of_torch)):
        return "surely"
    return "" if before.of_python == after.of_python else "perhaps"


def random_states(device: torch.device) -> list[Tensor]:
    """The states of torch's global random generators from which a forward pass on the device can draw."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def same_tensors(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists of tensors hold the same numbers."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@contextmanager
def _ordinary_mode(theta: Tensor) -> Iterator[None]:
    """A context that records graphs, and restores the global random generators afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.inference_mode(False), torch.enable_grad():
        try:
            with torch.random.fork_rng(devices=[theta.device] if theta.is_cuda else []):
                yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _backward(
    value: Tensor, inputs: list[Tensor], is_stored: Callable[[Any], bool], parameters: Sequence[Tensor]
) -> tuple[list[Tensor | None] | None, BackwardWatch]:
    """The gradients in the inputs, None for each that is not reached; and what was seen on the way.

    No gradients at all (None) are returned where torch has no derivative of an operation, which the engines explain.
    parameters: those whose ``.grad`` is put back afterwards, because a module that is run again may add to it. Plain
        tensors may stand in their place, as in a module that ``higher`` has patched.
    """
    watch = BackwardWatch(is_stored)
    if not value.requires_grad:
        return [None] * len(inputs), watch
    held = [(parameter, parameter.grad) for parameter in parameters if parameter.is_leaf]
    for parameter, _ in held:
        parameter.grad = None
    try:
        with watch:
            return list(torch.autograd.grad(value, inputs, allow_unused=True)), watch
    except (RuntimeError, NotImplementedError):
        return None, watch
    finally:
        for parameter, grad in held:
            parameter.grad = grad


def _where_in(theta: Tensor, parameter: Tensor) -> str:
    """Which entries of theta hold a parameter's numbers, in words; "" where none do, or where all numbers are equal."""
    numbers = parameter.detach().flatten().to(theta)
    if len(numbers) < 2 or len(numbers) > len(theta) or bool((numbers == numbers[0]).all()):
        return ""
    for start in (theta[: len(theta) - len(numbers) + 1] == numbers[0]).nonzero()[:16, 0].tolist():
        if torch.equal(theta[start : start + len(numbers)], numbers):
            return f"entries {start} to {start + len(numbers) - 1} of theta"
    return ""


def _moved(now: Tensor, start: Tensor) -> bool:
    return not bool(((now == start) | start.isnan()).all())  # a NaN that did not move differs from itself, too


def _repeat(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two passes gave the same outputs."""
    return len(first) == len(second) and all(_agree(a, b) for a, b in zip(first, second, strict=True))


def _agree(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are equal: to the bit on the CPU, elsewhere within the rounding of ``REORDERING_EPS``."""
    if a.device.type == "cpu" or a.shape != b.shape or not a.is_floating_point() or a.numel() == 0:
        return torch.equal(a, b)
    return bool((a - b).abs().max() <= REORDERING_EPS * torch.finfo(a.dtype).eps * a.abs().max())


def _out_of_inference(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _random_module(model: nn.Module) -> str:
    """The name of the first dropout in training mode; "" where there is none, and something else draws."""
    dropout = nn.modules.dropout._DropoutNd
    return next((name for name, m in model.named_modules() if isinstance(m, dropout) and m.training), "")


def _independent(fix: str) -> HiddenStateError:
    return HiddenStateError(f"the loss does not depend on theta, so its Hessian would be 0 everywhere; {fix}")


def _unreached(model: nn.Module, parameter: str) -> HiddenStateError:
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


def _refuse_wrong_derivative(value: Tensor, function: Callable[[Tensor], Tensor], theta: Tensor) -> None:
    """Raises HiddenStateError if hand-written derivatives in a loss are not those of its values."""
    name = hand_written(value)
    if name and (wrong := wrong_derivative(function, theta)):
        raise HiddenStateError(
            f"the loss runs hand-written derivatives ({name}), and its {wrong} is not the derivative of its values; "
            "write the operation in torch's own functions, or save for the backward pass only inputs, by "
            "ctx.save_for_backward"
        )


def _warn_of_constant(watch: Watch) -> None:
    if watch.constant:
        warnings.warn(
            "the loss differentiates inside itself without create_graph=True, so that what it computes from that "
            "derivative counts as a constant",
            stacklevel=5,
        )


def _run_again(what: str) -> HiddenStateError:
    return HiddenStateError(
        f"{what} is run again inside the backward pass, at its stored weights and not at theta (an adjoint method or a "
        "checkpoint), so its derivative would be lost; use the ordinary forward pass, such as odeint in place of "
        "odeint_adjoint"
    )


def _hidden_state(model: nn.Module, name: str, what: str) -> HiddenStateError:
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
