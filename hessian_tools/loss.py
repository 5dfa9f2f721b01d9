"""The loss of a network as a pure function of one flat vector.

Inner loops and curvature reach the network through this function alone. If a forward pass changes state (moving batch
statistics) or draws random numbers (dropout), the loss depends on more than the parameters. Such a network is refused
with a HiddenStateError, which names the module (:mod:`hessian_tools.first_look`).
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from hessian_tools.batches import TARGETS, Batch, arguments, cast_like, signature_of, split_batch
from hessian_tools.failures import why_criterion_fails
from hessian_tools.first_look import look_at_network
from hessian_tools.hidden_state import CRITERION, HiddenStateError
from hessian_tools.layout import ParamLayout, flatten, unwrapped
from hessian_tools.outputs import own_loss, tensors_of
from hessian_tools.recompute import blocks_of, recomputing
from hessian_tools.torch_fixes.function_modes import PrimitiveNormalisation, TwiceDifferentiable

# The names that other modules import from here; some of them are defined elsewhere.
__all__ = ["Batch", "Criterion", "HiddenStateError", "Loss", "LossFunction", "make_loss", "require_network"]

Criterion = Callable[[Any, Any], Tensor]  # (outputs, targets) -> scalar


@runtime_checkable
class LossFunction(Protocol):
    """The interface that curvature needs: a scalar function of one flat vector and a batch.

    Any Python function with these arguments satisfies it. If it is not a :class:`Loss`, it is called a plain function.
    """

    def __call__(self, theta: Tensor, batch: Batch, /) -> Tensor:
        """The loss at ``theta`` on ``batch``."""


class AtState(NamedTuple):
    """A batch, or the inputs of one, with tensors that the network holds in place of its own while it runs on them.

    tensors: by name, buffers, such as running statistics, and parameters outside of the layout.
    """

    tensors: dict[str, Tensor]
    batch: Any


class Loss:
    """The function ``loss(theta, batch) -> scalar`` of a network and a criterion; made by :func:`make_loss`."""

    def __init__(
        self, model: nn.Module, criterion: Criterion | None, layout: ParamLayout, recompute: Sequence[str] = ()
    ) -> None:
        self.model = model
        self.layout = layout
        self.recomputed = blocks_of(model, recompute)
        self._criterion = criterion
        self._takes = signature_of(model)  # the arguments of the forward pass
        named = dict(model.named_parameters())
        self._dtypes = {named[name].dtype for name in layout.names}  # of the parameters that theta replaces
        self._has_compiled_parts = any(hasattr(module, "_orig_mod") for module in model.modules())
        self._cast: dict[str, tuple[Hashable, Tensor]] = {}  # frozen weights of low precision, cast once
        self._checked: set[tuple[bool, ...]] = set()  # modes (train, eval) without hidden state
        self._plain: set[Hashable] = set()  # kinds of passes that need no replaced operation
        self._replacing: type[TwiceDifferentiable] = TwiceDifferentiable

    def __call__(self, theta: Float[Tensor, " param"], batch: Batch, /) -> Float[Tensor, ""]:
        """The criterion of the network's outputs on the batch, such as ``(x, y)``."""
        x, y = self.split(batch)
        return self.criterion(self.outputs(theta, x), y)

    def fresh(self) -> "Loss":
        """A new object of the same loss, so that :meth:`refuse_hidden_state` looks at it again."""
        return Loss(self.model, self._criterion, self.layout, tuple(self.recomputed))

    def in_states(
        self, thetas: Float[Tensor, "point param"], batches: Sequence[Batch], *, shared: bool
    ) -> tuple[Sequence[Batch], bool]:
        """The batches, with the tensors that the network holds at each point; and whether all points share the batches.

        This loss holds the same tensors at every point and returns the batches as they are. The loss of a recorder,
        which knows the buffers of each recorded point, returns batches of the class AtState.
        """
        return batches, shared

    @property
    def has_criterion(self) -> bool:
        """False if the network itself returns its loss."""
        return self._criterion is not None

    def split(self, batch: Batch) -> tuple[Any, Any]:
        """The inputs that :meth:`outputs` takes and the targets that :meth:`criterion` takes.

        A network that returns its loss gets the whole batch. Raises ValueError for a batch that cannot be divided.
        """
        if isinstance(batch, AtState):
            x, y = self.split(batch.batch)
            return AtState(batch.tensors, x), y
        if self._criterion is None:
            return batch, None
        return batch if type(batch) is tuple and len(batch) == 2 else split_batch(batch, self._takes)

    def outputs(self, theta: Float[Tensor, " param"], x: Any) -> Any:
        """The network's outputs at ``theta``: a tensor, or any nesting of tensors, such as a dict or a dataclass.

        x: the inputs, passed on as several arguments where the network takes several
        (:func:`hessian_tools.batches.arguments`). They are moved to the device of ``theta``, and floating-point inputs
        are cast to its dtype.
        """
        return self.outputs_at(self.layout.unflatten(theta), x)

    def outputs_at(self, parameters: Mapping[str, Tensor], x: Any) -> Any:
        """The network's outputs at parameters given by name; any other parameter keeps the model's value."""
        like = next(iter(parameters.values()))
        tensors, x = self._tensors(parameters, like), cast_like(x, like)
        if isinstance(x, AtState):
            tensors, x = tensors | x.tensors, x.batch
        positional, by_name = arguments(x, self._takes)
        modes = tuple(module.training for module in self.model.modules())
        return self._differentiable((modes, like.dtype, *_shapes(x)), lambda: self._call(tensors, positional, by_name))

    def criterion(self, outputs: Any, y: Any) -> Float[Tensor, ""]:
        """The scalar loss of outputs against targets; for a network that returns its loss, that output."""
        tensors = tensors_of(outputs)
        if not tensors:
            raise ValueError(
                f"the network gives a {type(outputs).__name__}; its outputs must be a tensor, or a tuple, list, dict "
                "or dataclass of tensors"
            )
        if self._criterion is None:
            value = own_loss(outputs)
        else:
            like = next((t for t in tensors if t.is_floating_point()), tensors[0])
            y, function = cast_like(y, like), criterion_like(self._criterion, like)
            try:
                value = self._differentiable((like.dtype, *_shapes((outputs, y))), lambda: function(outputs, y))
            except Exception as error:
                _explain(outputs, y, error)
                raise
        return one_number(value)

    def refuse_hidden_state(self, theta: Float[Tensor, " param"], batch: Batch) -> None:
        """Looks at the loss once, and raises HiddenStateError unless it is a function of theta alone.

        The error is raised if a pass moves a parameter or a buffer, if the network or the criterion draws random
        numbers or gives another result the second time, if the loss does not depend on theta or uses a parameter that
        is stored in the model instead, if a module is run again inside the backward pass, and if hand-written
        derivatives are wrong. The look costs two passes and one backward pass, and some more where parameters have no
        gradient or derivatives are hand-written. It is made once for each combination of modes (train, eval) of the
        modules.
        """
        # The casts of frozen weights are made anew, because a change of a weight through its .data cannot be noticed.
        self._cast.clear()
        modules = [*self.model.modules()]
        modules += [*self._criterion.modules()] if isinstance(self._criterion, nn.Module) else []
        modes = tuple(module.training for module in modules)
        if modes in self._checked:
            return
        named = dict(self.model.named_parameters())
        look_at_network(
            self._passes,
            batch,
            self.layout.unflatten,
            lambda: self._buffers(theta),
            {name: named[name] for name in self.layout.names},
            self.model,
            theta,
        )
        self._checked.add(modes)

    def _passes(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch) -> Iterator[Any]:
        """Yields the outputs, and then the loss, at parameters and buffers given by name; may change the buffers.

        ``first_look`` reads them one by one, because it asks after each of them whether random numbers were drawn.
        """
        like = next(iter(parameters.values()))
        x, y = self.split(batch.batch if isinstance(batch, AtState) else batch)
        of_model = {name: b for name, b in buffers.items() if not name.startswith(CRITERION)}
        positional, by_name = arguments(cast_like(x, like), self._takes)
        with self._replacing():
            outputs = self._call(self._tensors(parameters, like) | of_model, positional, by_name)
        yield outputs
        if not isinstance(self._criterion, nn.Module):
            yield self.criterion(outputs, y)
            return
        y = cast_like(y, next((t for t in tensors_of(outputs) if t.is_floating_point()), like))
        held = {name: p.detach() for name, p in self._criterion.named_parameters()}
        held |= {name.removeprefix(CRITERION): b for name, b in buffers.items() if name not in of_model}
        try:
            with self._replacing():
                value = functional_call(self._criterion, cast_like(held, like), (outputs, y))
        except Exception as error:
            _explain(outputs, y, error)
            raise
        yield value

    def _call(self, tensors: dict[str, Tensor], positional: tuple[Any, ...], by_name: dict[str, Any]) -> Any:
        """The model's outputs with these parameters and buffers.

        Parts made by ``torch.compile`` run as ordinary code here, because compiled code has no second derivative.
        """
        with self._uncompiled(), recomputing(self.recomputed, self._around_a_block):
            try:
                return functional_call(self.model, tensors, positional, by_name)
            except (TypeError, AttributeError, KeyError) as error:
                given = ", ".join(type(part).__name__ for part in (*positional, *by_name.values()))
                whole = "" if self.has_criterion else "; with criterion=None it gets the whole batch"
                if isinstance(error, KeyError) and self.has_criterion and error.args[0] in TARGETS:
                    whole = "; the criterion gets the labels, unless it is None because the network returns its loss"
                raise ValueError(
                    f"the network cannot be called on these inputs ({given}): {error}{whole}; a batch is (x, y), "
                    "((a, b), y) or a mapping of the forward pass's arguments and 'labels', and several batches are a "
                    "list"
                ) from error

    def _uncompiled(self) -> AbstractContextManager[Any]:
        return torch.compiler.set_stance("force_eager") if self._has_compiled_parts else nullcontext()

    @contextmanager
    def _around_a_block(self) -> Iterator[None]:
        """What has to surround a block that is computed again in a backward pass."""
        with self._uncompiled(), self._replacing():
            yield

    @cached_property
    def thrice_differentiable(self) -> "Loss":
        """The same loss with right third derivatives, for which normalisations are computed from primitives.

        Values agree to rounding, and a pass takes longer. See
        :class:`~hessian_tools.torch_fixes.function_modes.PrimitiveNormalisation`.
        """
        loss = copy(self)
        # No block is computed again, because such a block has no third derivative.
        loss._plain, loss._replacing, loss.recomputed = set(), PrimitiveNormalisation, {}
        return loss

    def _differentiable(self, kind: Hashable, function: Callable[[], Any]) -> Any:
        """The result of the function, in which operations that torch differentiates wrongly are replaced.

        kind: everything that may decide which operations the function runs, such as the modes of the modules. The first
        pass of each kind shows whether any operation needs replacing.
        """
        if kind in self._plain:
            return function()
        with self._replacing() as replacement:
            result = function()
        if not replacement.replaced:
            self._plain.add(kind)
        return result

    def _buffers(self, like: Tensor) -> dict[str, Tensor]:
        """Copies of the buffers of model and criterion, as a forward pass at ``like`` sees them."""
        named = dict(self.model.named_buffers())
        if isinstance(self._criterion, nn.Module):
            named |= {f"{CRITERION}{name}": buffer for name, buffer in self._criterion.named_buffers()}
        return {name: cast_like(b.detach().clone(), like) for name, b in named.items()}

    def _tensors(self, moved: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """All parameters and buffers by name: those in ``moved`` as given, the others with the model's values.

        The others are constants, in which nothing is differentiated.
        """
        fixed = {name: self._frozen(name, p, like) for name, p in self.model.named_parameters() if name not in moved}
        fixed |= {name: cast_like(b.detach(), like) for name, b in self.model.named_buffers()}
        return fixed | dict(moved)

    def _frozen(self, name: str, parameter: Tensor, like: Tensor) -> Tensor:
        """A parameter outside of theta, as a constant on the device of ``like``, in the dtype that suits it.

        A weight of low precision keeps its dtype as long as theta has the dtype of the parameters that it replaces,
        because the network itself then casts between the two dtypes. For another theta the weight is cast once, and
        the result is kept: casting all of a large frozen network at every pass would take most of the time and as much
        memory again.
        """
        held = parameter.detach()
        low = held.is_floating_point() and held.dtype not in (torch.float32, torch.float64)
        if not low:
            return cast_like(held, like)
        if {like.dtype} == self._dtypes:
            return held.to(like.device)
        # The result of the cast is valid as long as the weight is neither replaced nor changed in place.
        key = (held.data_ptr(), parameter._version, like.dtype, like.device)
        if name not in self._cast or self._cast[name][0] != key:
            self._cast[name] = (key, cast_like(held, like))
        return self._cast[name][1]


def make_loss(
    model: nn.Module,
    criterion: Criterion | None = None,
    layout: ParamLayout | None = None,
    *,
    recompute: Sequence[str] = (),
) -> Loss:
    """The loss of ``model`` under ``criterion`` as a function of the parameters in ``layout``.

    criterion: ``(outputs, targets) -> scalar``. Its tensors, such as class weights, follow the dtype and device of
        theta. None is for a network that returns its loss itself: as its output ``loss``, as Hugging Face's models do
        when the batch holds labels, or as the only number among its outputs.
    layout: which parameters move, from :func:`~hessian_tools.layout.flatten`; None takes the trained ones. Parameters
        outside the layout keep the values that the model holds.
    recompute: names of modules, with ``*`` for any characters, such as ``["layers.*"]``, whose activations are computed
        again for each derivative instead of being kept, for long sequences and deep networks. Products then take the
        route "kept" (reverse mode twice), and each of them takes about two more forward passes. The numbers are the
        same.

    A batch is ``(x, y)``; or ``((a, b), y)`` or ``(a, b, y)`` for a network with two inputs; or a mapping whose entry
    "labels" (or "label", "targets", "target", "y") is y, and whose other entries are passed to the network by name.
    Operations that torch cannot differentiate twice are computed in another way, where one is known
    (:class:`~hessian_tools.torch_fixes.function_modes.TwiceDifferentiable`). Raises ValueError for the layout of
    another model, and for a name in ``recompute`` that matches no module.

    >>> from hessian_tools.layout import flatten
    >>> model = nn.Linear(2, 1, bias=False)
    >>> theta, layout = flatten(model)
    >>> loss = make_loss(model, lambda out, y: ((out - y) ** 2).mean(), layout)
    >>> float(loss(torch.tensor([1.0, 2.0]), (torch.ones(1, 2), torch.zeros(1, 1))))
    9.0
    """
    model = unwrapped(model)
    layout = flatten(model)[1] if layout is None else layout
    known = dict(model.named_parameters())
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in known or known[name].shape != shape:
            raise ValueError(f"the layout's parameter {name!r} {tuple(shape)} is not in this model; flatten this model")
    return Loss(model, criterion, layout, recompute)


def require_network(loss: LossFunction, need: str) -> Loss:
    """Return the loss if it is that of a network; raise ValueError if it is a plain function.

    need: the beginning of the error message, which says what the caller needs from a network.
    """
    if not isinstance(loss, Loss):
        raise ValueError(f"{need}, which a plain function does not have; use ht.make_loss")
    return loss


def criterion_like(criterion: Criterion, like: Tensor) -> Criterion:
    """The criterion; if it is a module that holds tensors, these on the device and in the dtype of ``like``."""
    if not isinstance(criterion, nn.Module):
        return criterion
    held = {name: t.detach() for name, t in [*criterion.named_parameters(), *criterion.named_buffers()]}
    if not held:
        return criterion
    return lambda outputs, y: functional_call(criterion, cast_like(held, like), (outputs, y))


def one_number(value: Any) -> Float[Tensor, ""]:
    """The value of a criterion; raises ValueError if it is no tensor with one number."""
    if not isinstance(value, Tensor) or value.ndim != 0:
        kind = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"the criterion gives {kind}; a loss is a tensor with one number: take the mean over examples")
    return value


def _explain(outputs: Any, targets: Any, error: Exception) -> None:
    """Raise ValueError with what to change, if it is known why a criterion has failed."""
    if (why := why_criterion_fails(outputs, targets, error)) is not None:
        raise ValueError(why) from error


def _shapes(tree: Any) -> tuple[torch.Size, ...]:
    return tuple(leaf.shape for leaf in tensors_of(tree))
