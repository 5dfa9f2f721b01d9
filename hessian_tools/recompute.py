"""Blocks of a network whose activations are computed again where a derivative needs them, instead of being kept.

``torch.utils.checkpoint`` runs a block again in the backward pass at the parameters that are stored in the module, and
what it computes there is kept for a second derivative after all. Here a block runs again at theta, once for each
derivative, and its activations are released as soon as that derivative is known (Chen, Xu, Zhang and Guestrin 2016, for
the first derivative). A graph then holds the inputs and the outputs of each block, and the activations of one block at
a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import Function, once_differentiable
from torch.func import functional_call
from torch.utils import _pytree as pytree

from hessian_tools.first_look import agree
from hessian_tools.hidden_state import HiddenStateError

# The types of argument, besides tensors, that a block may receive, because it cannot change them. An object that it can
# change makes a second run differ from the first. To a cache of keys and values, for example, an attention block would
# append the same keys and values once more when it runs again. The output would stay the same, because the weights of
# the doubled keys add up as before, but half of its derivative would belong to the keys of the first run and be lost.
UNCHANGEABLE = (type(None), bool, int, float, complex, str, Enum, torch.dtype, torch.device, torch.layout)
_FLOATING = object()  # stands for a floating-point tensor among the outputs of a block


def blocks_of(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules whose names match one of the patterns, such as "layers.*", without those inside of another match.

    Raises ValueError for a pattern that matches no module, with the names that could be meant.
    """
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        matching = [(name, module) for name, module in model.named_modules() if name and fnmatchcase(name, pattern)]
        if not matching:
            names = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"recompute={pattern!r} matches no module of the network; its modules are {names}")
        found |= dict(matching)
    inner = {name for name in found for other in found if name.startswith(f"{other}.")}
    return {name: module for name, module in found.items() if name not in inner}


@contextmanager
def recomputing(
    blocks: Mapping[str, nn.Module], surroundings: Callable[[], AbstractContextManager[Any]]
) -> Iterator[None]:
    """A context in which a graph holds only the inputs and outputs of these blocks, and not their activations.

    surroundings: makes the context manager within which a block runs. A block runs again in a backward pass, when the
    context managers that surrounded the network's forward pass have ended. Inside of a transform of ``torch.func``
    blocks run as usual.
    """
    # A forward pass that was set on the module itself, and not on its class, is put back in the end.
    own = {name: block.__dict__.get("forward") for name, block in blocks.items()}
    for name, block in blocks.items():
        block.__dict__["forward"] = _Recomputed(name, block, block.forward, surroundings)
    try:
        yield
    finally:
        for name, block in blocks.items():
            if own[name] is None:
                del block.__dict__["forward"]
            else:
                block.__dict__["forward"] = own[name]


@dataclass(frozen=True, eq=False)
class _Recomputed:
    """What replaces the forward pass of a block; ``forward`` is the block's own forward pass."""

    name: str
    block: nn.Module
    forward: Callable[..., Any]
    surroundings: Callable[[], AbstractContextManager[Any]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return self.forward(*args, **kwargs)
        # Within functional_call these are theta's parameters, and not those that the module stores.
        tensors = dict(self.block.named_parameters()) | dict(self.block.named_buffers())
        leaves, spec = pytree.tree_flatten((tensors, args, kwargs))
        # The positions of the tensors that are differentiated.
        differentiated = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not differentiated:
            return self.forward(*args, **kwargs)
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, *UNCHANGEABLE)):
                raise self.refusal(f"receives a {type(leaf).__name__}, which it might change each time it is computed")
        values = [leaves[i] for i in differentiated]
        for i in differentiated:
            leaves[i] = None  # only the graph shall hold these tensors, so that they are freed with it
        run = _Run(self, leaves, spec, differentiated)
        constants = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        versions = [t._version for t in (*values, *constants)]  # torch counts the in-place changes of a tensor there
        outputs = run.whole_outputs(_Block.apply(run, *values))
        if [t._version for t in (*values, *constants)] != versions:
            raise self.refusal("changes its inputs or its buffers in place")
        return outputs

    def refusal(self, what: str) -> HiddenStateError:
        """The error for a block that cannot be computed again."""
        return HiddenStateError(
            f"module {self.name!r} {what}, so its activations cannot be computed again; switch off what holds state, "
            "such as a cache of keys and values (use_cache=False), or leave the module out of recompute="
        )


class _Run:
    """One call of a block as a function of the tensors that are differentiated; everything else is constant.

    recomputed: the block. leaves: all tensors and other values of the call. differentiated: the positions of the
    tensors among them that are differentiated, where ``leaves`` holds None. spec: how the leaves are put together into
    the block's tensors and arguments. outputs: the outputs of the first run, with _FLOATING in the places of
    floating-point tensors.
    """

    def __init__(
        self, recomputed: _Recomputed, leaves: list[Any], spec: pytree.TreeSpec, differentiated: list[int]
    ) -> None:
        self.recomputed, self.leaves, self.spec, self.differentiated = recomputed, leaves, spec, differentiated
        self.outputs: tuple[list[Any], pytree.TreeSpec] | None = None

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The floating-point outputs at these values."""
        leaves = list(self.leaves)
        for i, value in zip(self.differentiated, values, strict=True):
            leaves[i] = value
        tensors, args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        module = _WithForward(self.recomputed.block, self.recomputed.forward)
        with self.recomputed.surroundings():
            result = functional_call(module, {f"block.{name}": t for name, t in tensors.items()}, args, kwargs)
        outputs, spec = pytree.tree_flatten(result)
        floating = tuple(leaf for leaf in outputs if _is_floating(leaf))
        if self.outputs is None:
            self.outputs = [_FLOATING if _is_floating(leaf) else leaf for leaf in outputs], spec
        return floating

    def whole_outputs(self, floating: Sequence[Tensor]) -> Any:
        """The outputs of the block in their own form, with these tensors in the places of floating-point ones."""
        assert self.outputs is not None
        leaves, spec = self.outputs
        tensors = iter(floating)
        return pytree.tree_unflatten([next(tensors) if leaf is _FLOATING else leaf for leaf in leaves], spec)

    def check(self, outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """Raises HiddenStateError if a second run gave other outputs than the first."""
        if any(isinstance(output, FakeTensor) for output in outputs):  # it has a shape and a dtype, but no numbers
            return
        same = len(outputs) == len(expected) and all(map(agree, outputs, expected))
        # NaN is not equal to itself, so outputs that are not finite say nothing about the block.
        if not same and all(bool(output.isfinite().all()) for output in outputs):
            raise self.recomputed.refusal("gives another output when it is computed again")


class _WithForward(nn.Module):
    """A module that runs the own forward pass of a block, for ``functional_call``, which only calls modules.

    The block itself cannot be called: its ``forward`` has been replaced by the ``_Recomputed`` whose run this is, and
    its hooks run where the network calls the block.
    """

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.block, self.run = block, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class _Block(Function):
    """The outputs of a block. The graph has one node for the whole block, whose backward pass runs the block again."""

    @staticmethod
    def forward(ctx: Any, run: _Run, *values: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        outputs = run(*values)
        ctx.run, ctx.num_values = run, len(values)
        ctx.save_for_backward(*values, *outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        # slopes: the derivatives of the loss in the outputs of the block.
        saved, n = ctx.saved_tensors, ctx.num_values
        expected = tuple(output.detach() for output in saved[n:])
        return None, *_Pullback.apply(ctx.run, expected, *saved[:n], *slopes)


class _Pullback(Function):
    """The derivatives of <slopes, outputs> of a block in its inputs and parameters, which are called its values here.

    expected: the outputs of the first run. tensors: the values, and then one slope for each output. A product with the
    Hessian differentiates these derivatives once more, in both, and runs the block again for that.
    """

    @staticmethod
    def forward(ctx: Any, run: _Run, expected: tuple[Tensor, ...], *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.run, ctx.num_values = run, len(tensors) - len(expected)
        ctx.save_for_backward(*tensors)
        values, slopes = _leaves(tensors[: ctx.num_values]), tensors[ctx.num_values :]
        with torch.enable_grad():
            outputs = run(*values)
        run.check(outputs, expected)
        return _pulled_back(outputs, values, slopes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *directions: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        tensors, n = _leaves(ctx.saved_tensors), ctx.num_values
        values, slopes = tensors[:n], tensors[n:]
        with torch.enable_grad():
            first = _pulled_back(ctx.run(*values), values, slopes, create_graph=True)
        return None, None, *_pulled_back(first, tensors, directions)


def _pulled_back(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], slopes: Sequence[Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """The derivatives of <slopes, outputs> in the inputs; zeros if no output depends on an input."""
    chosen = [(output, slope) for output, slope in zip(outputs, slopes, strict=True) if output.requires_grad]
    if not chosen:
        return tuple(torch.zeros_like(t) for t in inputs)
    reached, vectors = zip(*chosen, strict=True)
    return torch.autograd.grad(reached, inputs, vectors, create_graph=create_graph, materialize_grads=True)


def _leaves(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(t.detach().requires_grad_() for t in tensors)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
