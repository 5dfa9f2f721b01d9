"""The loss of a network as a pure function of one flat vector.

Inner loops and curvature reach the network through this function alone. If a forward pass changes state (moving batch
statistics) or draws random numbers (dropout), the loss depends on more than the parameters. Such a network is refused
with a HiddenStateError, which names the module.
"""

from collections.abc import Callable, Hashable, Mapping
from copy import copy
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from hessian_tools.layout import ParamLayout
from hessian_tools.torch_fixes.function_modes import PrimitiveNormalisation, TwiceDifferentiable

Batch = Any  # a pair (inputs, targets) for a network; whatever a plain function takes
Criterion = Callable[[Any, Any], Tensor]  # (outputs, targets) -> scalar


# A GPU may add in another order in a second pass. The outputs of two passes count as equal if they differ by at most
# this many machine epsilons of the largest output.
REORDERING_EPS = 1e3


class HiddenStateError(ValueError):
    """The network changes something in its forward pass, so its loss is not a function of the parameters."""


@runtime_checkable
class LossFunction(Protocol):
    """The interface that curvature needs: a scalar function of one flat vector and a batch.

    Any Python function with these arguments satisfies it. If it is not a :class:`Loss`, it is called a plain function.
    """

    def __call__(self, theta: Tensor, batch: Batch, /) -> Tensor:
        """The loss at ``theta`` on ``batch``."""


class Loss:
    """The function ``loss(theta, batch) -> scalar`` of a network and a criterion; made by :func:`make_loss`."""

    def __init__(self, model: nn.Module, criterion: Criterion, layout: ParamLayout) -> None:
        self.model = model
        self.layout = layout
        self._criterion = criterion
        self._checked: set[tuple[bool, ...]] = set()  # modes (train, eval) without hidden state
        self._plain: set[Hashable] = set()  # kinds of passes that need no replaced operation
        self._replacing: type[TwiceDifferentiable] = TwiceDifferentiable

    def __call__(self, theta: Float[Tensor, " param"], batch: Batch, /) -> Float[Tensor, ""]:
        """The criterion of the network's outputs on the batch ``(x, y)``."""
        x, y = batch
        return self.criterion(self.outputs(theta, x), y)

    def outputs(self, theta: Float[Tensor, " param"], x: Any) -> Any:
        """The network's outputs at ``theta``: a tensor, or a pytree of tensors.

        Inputs are moved to the device of ``theta``, and floating-point inputs are cast to its dtype.
        """
        return self.outputs_at(self.layout.unflatten(theta), x)

    def outputs_at(self, parameters: Mapping[str, Tensor], x: Any) -> Any:
        """The network's outputs at parameters given by name; any other parameter keeps the model's value."""
        like = next(iter(parameters.values()))
        tensors, x = self._tensors(parameters, like), cast_like(x, like)
        modes = tuple(module.training for module in self.model.modules())
        return self._differentiable((modes, *_shapes(x)), lambda: functional_call(self.model, tensors, (x,)))

    def criterion(self, outputs: Any, y: Any) -> Float[Tensor, ""]:
        """The scalar loss of outputs against targets."""
        tensors = _tensors_of(outputs)
        if not tensors:
            raise ValueError(
                f"the network gives a {type(outputs).__name__}; its outputs must be a tensor, or a tuple, list or dict "
                "of tensors"
            )
        y = cast_like(y, next((t for t in tensors if t.is_floating_point()), tensors[0]))
        value = self._differentiable(_shapes((outputs, y)), lambda: self._criterion(outputs, y))
        if not isinstance(value, Tensor) or value.ndim != 0:
            kind = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(
                f"the criterion gives {kind}; a loss is a tensor with one number: take the mean over examples"
            )
        return value

    def refuse_hidden_state(self, theta: Float[Tensor, " param"], batch: Batch) -> None:
        """Runs the network twice and raises HiddenStateError if it changes state.

        The error is raised if a pass moves a parameter or a buffer, if it draws random numbers, or if the second pass
        gives other outputs. The check costs two forward passes. It is made once for each combination of modes (train,
        eval) of the modules.
        """
        modes = tuple(module.training for module in self.model.modules())
        if modes in self._checked:
            return
        # Comparing losses would not be enough: batch statistics that are tracked in training mode move, while the loss
        # repeats to the last bit.
        with torch.no_grad(), torch.random.fork_rng(devices=[theta.device] if theta.is_cuda else []):
            theta, start = theta.detach().clone(), theta.detach().clone()
            tensors = self._tensors(self.layout.unflatten(theta), theta)
            buffers = self._buffers(theta)
            states = random_states(theta.device)
            x = cast_like(batch[0], theta)
            first = _tensors_of(functional_call(self.model, tensors | buffers, (x,)))
            drew = not same_tensors(states, random_states(theta.device))
            # The pass can have changed only the copies in ``buffers``; the model's own buffers have their old values.
            fresh = self._buffers(theta)
            moved = [name for name, b in fresh.items() if not torch.equal(buffers[name], b)]
            second = _tensors_of(functional_call(self.model, tensors | fresh, (x,)))
        if not ((theta == start) | start.isnan()).all():  # a NaN that did not move differs from itself, too
            raise _hidden_state(self.model, "", "moves its parameters")
        if moved:
            raise _hidden_state(self.model, moved[0].rpartition(".")[0], "moves its buffers")
        if drew:
            raise _hidden_state(self.model, _random_module(self.model), "draws random numbers")
        # Outputs that are not finite are not compared, because a NaN in them would differ from itself.
        if not _repeat(first, second) and all(t.isfinite().all() for t in first):
            raise _hidden_state(self.model, "", "gives another output the second time")
        self._checked.add(modes)

    @cached_property
    def thrice_differentiable(self) -> "Loss":
        """The same loss with right third derivatives, for which normalisations are computed from primitives.

        Values agree to rounding, and a pass takes longer. See
        :class:`~hessian_tools.torch_fixes.function_modes.PrimitiveNormalisation`.
        """
        loss = copy(self)
        loss._plain, loss._replacing = set(), PrimitiveNormalisation
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
        """Copies of the model's buffers, as a forward pass at ``like`` sees them."""
        return {name: cast_like(b.detach().clone(), like) for name, b in self.model.named_buffers()}

    def _tensors(self, moved: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """All parameters and buffers by name: those in ``moved`` as given, the others as constants of the model."""
        fixed: dict[str, Tensor] = {name: p for name, p in self.model.named_parameters() if name not in moved}
        fixed |= dict(self.model.named_buffers())
        return {name: cast_like(t.detach(), like) for name, t in fixed.items()} | dict(moved)


def make_loss(model: nn.Module, criterion: Criterion, layout: ParamLayout) -> Loss:
    """The loss of ``model`` under ``criterion`` as a function of the parameters in ``layout``.

    criterion: ``(outputs, targets) -> scalar``, a mean over examples. Parameters outside the layout keep the values
    that the model holds. Operations that torch cannot differentiate twice are computed in another way, where one is
    known (:class:`~hessian_tools.torch_fixes.function_modes.TwiceDifferentiable`). Raises ValueError for the layout of
    another model.

    >>> from hessian_tools.layout import flatten
    >>> model = nn.Linear(2, 1, bias=False)
    >>> theta, layout = flatten(model)
    >>> loss = make_loss(model, lambda out, y: ((out - y) ** 2).mean(), layout)
    >>> float(loss(torch.tensor([1.0, 2.0]), (torch.ones(1, 2), torch.zeros(1, 1))))
    9.0
    """
    known = dict(model.named_parameters())
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in known or known[name].shape != shape:
            raise ValueError(f"the layout's parameter {name!r} {tuple(shape)} is not in this model; flatten this model")
    return Loss(model, criterion, layout)


def require_network(loss: LossFunction, need: str) -> Loss:
    """Return the loss if it is that of a network; raise ValueError if it is a plain function.

    need: the beginning of the error message, which says what the caller needs from a network.
    """
    if not isinstance(loss, Loss):
        raise ValueError(f"{need}, which a plain function does not have; use ht.make_loss")
    return loss


def cast_like(tree: Any, like: Tensor) -> Any:
    """The pytree with every tensor on the device of ``like`` and every floating-point tensor in its dtype."""

    def cast(leaf: Tensor) -> Tensor:
        return leaf.to(like.device, like.dtype) if leaf.is_floating_point() else leaf.to(like.device)

    return pytree.tree_map_only(Tensor, cast, tree)


def refuse_unusable(batch: Any, like: Tensor) -> None:
    """Raise ValueError for a batch without examples, or with a number that is infinite in the dtype of ``like``.

    The mean over no examples is NaN, and its derivatives are 0, which would look like a flat loss.
    """
    for leaf in _tensors_of(batch):
        if leaf.numel() == 0:
            shape = tuple(leaf.shape)
            raise ValueError(f"a tensor of the batch has shape {shape}, so it is empty; give one example or more")
        if leaf.dtype == torch.float64 and like.dtype == torch.float32:
            largest = float(leaf.abs().max())
            if torch.finfo(torch.float32).max < largest < torch.inf:
                raise ValueError(
                    f"the batch holds the number {largest:.3g}, which float32 cannot hold; "
                    "scale it, or use theta.double()"
                )


def random_states(device: torch.device) -> list[Tensor]:
    """The states of the global random generators from which a forward pass on the device can draw."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def same_tensors(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists of tensors hold the same numbers."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _repeat(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two passes gave the same outputs."""
    return len(first) == len(second) and all(_agree(a, b) for a, b in zip(first, second, strict=True))


def _agree(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are equal: to the bit on the CPU, elsewhere within the rounding of ``REORDERING_EPS``."""
    if a.device.type == "cpu" or a.shape != b.shape or not a.is_floating_point() or a.numel() == 0:
        return torch.equal(a, b)
    return bool((a - b).abs().max() <= REORDERING_EPS * torch.finfo(a.dtype).eps * a.abs().max())


def _shapes(tree: Any) -> tuple[torch.Size, ...]:
    return tuple(leaf.shape for leaf in _tensors_of(tree))


def _tensors_of(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _random_module(model: nn.Module) -> str:
    """The name of the first dropout in training mode; "" where there is none, and something else draws."""
    dropout = nn.modules.dropout._DropoutNd
    return next((name for name, m in model.named_modules() if isinstance(m, dropout) and m.training), "")


def _hidden_state(model: nn.Module, name: str, what: str) -> HiddenStateError:
    """The error for a network whose module ``name`` does ``what``; "" is the network itself."""
    module = model.get_submodule(name)
    where = f"module {name!r} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        fix = "build it with track_running_stats=False, or call model.eval()"
    else:
        fix = "call model.eval(), or make the forward pass a function of its input alone"
    return HiddenStateError(f"{where} {what} in the forward pass, so its loss is no function of the parameters; {fix}")
