"""A look at a loss at its first call: is it a function of theta alone, and is its derivative complete?

Some losses give wrong curvature without any error. A loss that draws random numbers is another function at each call. A
network that uses stored weights in place of theta has the Hessian 0. A module that is run again inside its own backward
pass, as by adjoint methods and hand-written checkpoints, runs at the weights stored in it and not at theta. All of this
shows in two passes and one backward pass at the first point, in torch's ordinary mode. A third pass is made if some
parameters have no gradient, to see whether the loss depends on them all the same. Derivatives that the user's code
writes by hand are compared with differences (:mod:`hessian_tools.hand_written`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.utils import _pytree as pytree

from hessian_tools.failures import warn
from hessian_tools.hand_written import graph_nodes, hand_written, wrong_derivative, wrong_words
from hessian_tools.hidden_state import (
    HOOKED,
    RECOMPUTED,
    SCALED,
    SPARSE,
    HiddenStateError,
    fix_of_independent,
    impure_pass,
    independent_of_theta,
    random_module,
    run_again,
    stored_in_place_of_theta,
    unreached_parameter,
)
from hessian_tools.outputs import tensors_of
from hessian_tools.random_states import Drew, drawn_between, global_states, restored_random_states
from hessian_tools.rng import stream
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.watches import BackwardWatch, ForwardWatch

# A GPU may add in another order in a second pass. The outputs of two passes count as equal if they differ by at most
# this many machine epsilons of the largest output.
REORDERING_EPS = 1e3
# How many further values are compared with the first one if random numbers were drawn, but perhaps only by the type
# checker beartype (see ``Drew``). A loss that tosses one coin at each call gives 8 equal values, and is not noticed,
# with probability 1/256.
VALUES_AFTER_DRAWING = 8
# A network's loss: a generator of its outputs and then its value, for parameters and buffers by name and a batch.
Evaluate = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Any], Iterator[Any]]


@full_precision
def look_at_function(function: Callable[[Tensor, Any], Tensor], theta: Tensor, batch: Any) -> None:
    """Raises HiddenStateError for a plain function that depends on more than theta; see the head of this file.

    Errors that the function itself raises are left to the engines, which explain them.
    """

    def is_stored(leaf: Any) -> bool:
        return isinstance(leaf, nn.Parameter) and leaf.requires_grad

    with _ordinary_mode(theta):
        leaf, watch = theta.detach().clone().requires_grad_(), ForwardWatch(is_stored)
        batch = pytree.tree_map_only(Tensor, ordinary, batch)
        before = global_states(theta.device)
        try:
            with watch:
                value = function(leaf, batch)
        except Exception:
            if watch.spread:  # this error is the watch's own
                raise
            return
        drew = drawn_between(before, global_states(theta.device))
        if drew == "surely":
            raise HiddenStateError(
                "the loss draws random numbers, so it is no function of theta alone; fix them, or call model.eval()"
            )
        if not isinstance(value, Tensor) or value.ndim != 0 or not value.is_floating_point():
            return
        for _ in range(VALUES_AFTER_DRAWING if drew else 1):
            repeat = function(theta.detach().clone().requires_grad_(), batch).detach()
            if bool(value.isfinite()) and not agree(value.detach(), repeat):
                raise HiddenStateError(
                    f"the loss gives {float(value.detach()):.6g} and then {float(repeat):.6g} at the same place, "
                    "so it is no function of theta alone"
                )
        _refuse_embeddings(watch)
        # A plain function may use stored parameters as constants. They are refused only if theta holds their numbers.
        for stored in {id(p): p for p in watch.used}.values():
            if entries := _where_in(theta, stored):
                raise HiddenStateError(
                    f"the loss uses a stored parameter of shape {tuple(stored.shape)}, whose numbers are {entries}, "
                    "but not theta itself; write torch.func.functional_call(model, layout.unflatten(theta), (x,)), or "
                    "detach() it if it is a constant"
                )
        gradient, backward = _backward(value, [leaf], is_stored, [])
        if gradient is None:  # torch has no derivative of an operation, which the engines explain
            return
        if watch.hooked:
            raise HiddenStateError(HOOKED)
        if backward.used is not None:
            raise run_again("a module")
        if gradient[0] is None:
            raise independent_of_theta(
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
        batch. parameters: makes the parameters by name of a theta. buffers: makes copies of the buffers by name, of
        the network and of the criterion.
    stored: by name, the parameters of the model that theta replaces.
    """
    names = {id(p): name for name, p in stored.items()}

    def is_stored(leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and id(leaf) in names

    def value_at(pieces: Mapping[str, Tensor]) -> Tensor:
        """The loss for parameters by name."""
        passes = evaluate(pieces, buffers(), batch)
        next(passes)  # the outputs
        return next(passes)

    with _ordinary_mode(theta):
        batch = pytree.tree_map_only(Tensor, ordinary, batch)
        leaf, copies, watch = theta.detach().clone().requires_grad_(), buffers(), ForwardWatch(is_stored)
        pieces = parameters(leaf)  # the parameters by name
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
    # Where torch has no derivative, gradients is None. All gradients are None where the loss does not depend on theta.
    if gradients is not None and all(gradient is None for gradient in gradients):
        raise independent_of_theta(fix_of_independent(model))
    if used:
        raise stored_in_place_of_theta(names[id(used[0])])
    if watch.hooked:
        raise HiddenStateError(HOOKED)
    if backward.used is not None:
        raise run_again(f"the module of {names[id(backward.used)]!r}")
    if gradients is None:
        return
    unreached = [name for name, gradient in zip(pieces, gradients, strict=True) if gradient is None]
    with _ordinary_mode(theta):
        if unreached:
            here, elsewhere = parameters(theta.detach().clone().requires_grad_()), parameters(_elsewhere(theta))
            # Only the unreached parameters move; if the loss moves too, it depends on them.
            moved_value = value_at(here | {name: elsewhere[name] for name in unreached})
            if not agree(value.detach(), moved_value.detach()):
                raise unreached_parameter(model, unreached[0])
        _refuse_wrong_derivative(value, lambda at: value_at(parameters(at)), theta, watch.cut)
    _warn_of_constant(watch)


class _FirstPass(NamedTuple):
    """What the first pass of a network's loss gave, and whether it drew random numbers.

    drew_in_network: whether the network drew some. drew: whether the network or the criterion did.
    """

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
    watch: ForwardWatch,
) -> _FirstPass | None:
    """Evaluate the loss once; None where a network runs itself again in its backward pass, which the engines refuse.

    pieces: ``leaf`` as parameters by name, where leaf is a copy of theta.
    """
    before = global_states(theta.device)
    try:
        # torch.utils.checkpoint sets such hooks, and so fails here with an error that says RECOMPUTED.
        with disable_saved_tensors_hooks(RECOMPUTED), watch:
            passes = evaluate(pieces, buffers, batch)
            outputs = next(passes)
            drew_in_network = drawn_between(before, global_states(theta.device))
            value = next(passes)
    except RuntimeError as error:
        if RECOMPUTED in str(error):
            return None
        if _moved(leaf, theta):  # torch refuses to change a part of theta in place where it is differentiated
            raise impure_pass(model, "", "moves its parameters") from None
        if "dtype" in str(error) or "scalar type" in str(error):
            raise ValueError(
                f"the network or the criterion holds a tensor in another dtype than theta ({theta.dtype}), or the "
                "batch does; cast it where it is used, as in w.to(outputs), or register it as a buffer (torch said: "
                f"{error})"
            ) from error
        raise
    return _FirstPass(
        outputs, value, _moved(leaf, theta), drew_in_network, drawn_between(before, global_states(theta.device))
    )


def _refuse_changes(model: nn.Module, first: _FirstPass, *, moved: list[str]) -> None:
    """Raises HiddenStateError where a pass changes state or draws. moved: the names of the buffers that it changed."""
    if first.has_moved_theta:
        raise impure_pass(model, "", "moves its parameters")
    if moved:
        raise impure_pass(model, moved[0].rpartition(".")[0], "moves its buffers")
    if first.drew_in_network == "surely":
        raise impure_pass(model, random_module(model), "draws random numbers")
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
    same = len(outputs) == len(repeated) and all(map(agree, outputs, repeated))
    if not same and all(t.isfinite().all() for t in outputs):
        raise impure_pass(model, "", "gives another output the second time")
    value, repeat = first.value.detach(), next(again).detach()
    if bool(value.isfinite()) and not agree(value, repeat):
        raise HiddenStateError(
            "the criterion gives another value the second time, so the loss is no function of the parameters; "
            "make the criterion a function of outputs and targets alone"
        )


def _refuse_embeddings(watch: ForwardWatch) -> None:
    """Raises ValueError where an embedding was called that has no second derivative, or a wrong first one."""
    if watch.sparse:
        raise ValueError(SPARSE)
    if watch.scaled:
        raise ValueError(SCALED)


def _elsewhere(theta: Tensor) -> Tensor:
    """A point near theta that differs from it in every entry."""
    noise = torch.randn(len(theta), generator=stream(0, "unreached"), dtype=torch.float64, device="cpu").to(theta)
    return theta.detach() + 0.1 * (1 + theta.detach().abs()) * noise


def value_of(loss: Callable[[Tensor, Any], Tensor], theta: Tensor, batch: Any) -> Tensor:
    """The loss without a graph, also where it differentiates by theta inside itself."""
    with torch.enable_grad():
        return loss(theta.detach().clone().requires_grad_(), batch).detach()


@contextmanager
def _ordinary_mode(theta: Tensor) -> Iterator[None]:
    """A context that records graphs, and restores the global random generators afterwards."""
    with torch.inference_mode(False), torch.enable_grad(), restored_random_states(theta.device):
        yield


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
    """Which entries of theta hold a parameter's numbers, in words; "" if none do.

    It is also "" for a parameter whose numbers are all equal, which may be found in theta by chance.
    """
    numbers = parameter.detach().flatten().to(theta)
    if len(numbers) < 2 or len(numbers) > len(theta) or bool((numbers == numbers[0]).all()):
        return ""
    # The first number may occur often, so that only the first 16 places are compared.
    for start in (theta[: len(theta) - len(numbers) + 1] == numbers[0]).nonzero()[:16, 0].tolist():
        if torch.equal(theta[start : start + len(numbers)], numbers):
            return f"entries {start} to {start + len(numbers) - 1} of theta"
    return ""


def _moved(now: Tensor, start: Tensor) -> bool:
    """Whether any number has changed."""
    return not bool(((now == start) | start.isnan()).all())  # a NaN that did not move differs from itself, too


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are equal: to the bit on the CPU, elsewhere within the rounding of ``REORDERING_EPS``."""
    if a.device.type == "cpu" or a.shape != b.shape or not a.is_floating_point() or a.numel() == 0:
        return torch.equal(a, b)
    return bool((a - b).abs().max() <= REORDERING_EPS * torch.finfo(a.dtype).eps * a.abs().max())


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor; or an ordinary copy, if it was made in inference mode and cannot be part of a graph."""
    return tensor.clone() if tensor.is_inference() else tensor


def _refuse_wrong_derivative(value: Tensor, function: Callable[[Tensor], Tensor], theta: Tensor, cut: str = "") -> None:
    """Raises HiddenStateError if hand-written derivatives in a loss are not the derivatives of its values.

    cut: the call by which the loss uses numbers without their graph, such as "detach()"; "" if there is none. If a
    derivative is wrong for this reason alone, a warning is given, because some objectives intend it.
    """
    name = hand_written(value)
    wrong = wrong_derivative(function, theta) if name or cut else ""
    if wrong and name:
        raise HiddenStateError(wrong_words(name, wrong))
    if wrong:
        warn(
            f"the network or the criterion uses what depends on theta through {cut}, so that it counts as a constant, "
            f"and the {wrong} is not the derivative of the loss's values (as in a straight-through estimator); leave "
            "it out, unless this is meant",
        )


def _warn_of_constant(watch: ForwardWatch) -> None:
    """Warns of a loss that uses a derivative of its own as a constant."""
    if watch.constant:
        warn(
            "the loss differentiates inside itself without create_graph=True, so that what it computes from that "
            "derivative counts as a constant",
        )
