"""How much may run at once: measured beforehand, for a CPU without memory kills; on CUDA halved where refused."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hessian_tools.loss import Batch, LossFunction

# Bytes the products in flight may take, by device type.
MEMORY_BUDGET = {"cpu": 2**29, "cuda": 2**32}
# Products and the bases of an eigenvalue run have a budget each, and copies of what they are at: 24 GB and more hold
# 4 GiB of each, smaller cards this share.
GPU_SHARE = 0.2

# One direct product was measured to need 4 to 7 times the bytes of one forward pass (Conv4, width 16 and 64, 1 to 112
# products at once, peak resident memory); 8 leaves room.
FORWARDS_PER_PRODUCT = 8

# What a gradient's graph keeps of a point, in the same measure, and what a trace does before its bytes are known.
KEPT_FORWARDS = 4

T = TypeVar("T")


@dataclass
class MemoryBudget:
    """Bytes for what products need, None for the device's default, and how often the device refused what should fit."""

    max_memory: int | None = None
    refusals: int = 0

    def budget(self, device: torch.device) -> int:
        """The bytes."""
        return self.max_memory or memory_budget(device)

    def in_pieces(self, total: int, function: Callable[[slice], T], *, at_once: int, each: int = 1) -> list[T]:
        """``function`` of consecutive pieces of ``total``, at_once / each long; half as long after each refusal.

        Pieces of nearly equal length: a short last one would cost nearly a whole one. Every refusal is
        remembered for all that is done at these points. Raises OutOfMemoryError where one alone does not fit.
        """
        results: list[T] = []
        start = 0
        while start < total:
            most = max(1, at_once >> self.refusals)
            rest = total - start
            size = ceil(rest / ceil(rest / max(1, most // each)))
            found = self.attempt(function, slice(start, start + size), most=most)
            if found is None:
                continue
            results.append(found)
            start += size
        return results

    def attempt(self, function: Callable[[slice], T], rows: slice, *, most: int) -> T | None:
        """``function(rows)``; None where the device refused, which is remembered. Raises where even one is refused."""
        try:
            return function(rows)
        except torch.OutOfMemoryError:
            if most <= 1:
                raise
        # Only out here is the error gone, and with it the frames that hold what the attempt had made.
        self.refusals += 1
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return None


def memory_budget(device: torch.device) -> int:
    """Bytes that one kind of work may take on a device unasked: its type's; of a GPU no more than GPU_SHARE."""
    budget = MEMORY_BUDGET.get(device.type, MEMORY_BUDGET["cpu"])
    if device.type != "cuda" or not torch.cuda.is_available():
        return budget
    return min(budget, int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory))


def room_of(max_memory: float | int | None) -> MemoryBudget:
    """The checked room. Raises ValueError."""
    if max_memory is None:
        return MemoryBudget()
    if isinstance(max_memory, bool) or not isinstance(max_memory, (int, float)) or not max_memory >= 1:
        raise ValueError(f"max_memory={max_memory!r}: give a number of bytes, such as 4e9, or None for the default")
    return MemoryBudget(int(max_memory))


def products_at_once(forward: int, budget: int) -> int:
    """As many direct products as fit, at least one; forward: see :func:`forward_bytes`."""
    return max(1, budget // (FORWARDS_PER_PRODUCT * max(1, forward)))


def largest_forward(loss: LossFunction, theta: Float[Tensor, " param"], batches: Iterable[Batch]) -> int:
    """Bytes of the forward pass of the largest of the batches; costs one such pass a batch."""
    return max(forward_bytes(loss, theta, batch) for batch in batches)


def forward_bytes(loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch) -> int:
    """Bytes of all tensors that one evaluation of the loss makes, views apart.

    >>> forward_bytes(lambda theta, batch: (2 * theta).sum(), torch.zeros(10), None)  # ten floats and one
    44
    """
    with torch.no_grad(), _CountBytes() as count:
        loss(theta, batch)
    return count.total


class _CountBytes(TorchDispatchMode):
    """Adds up the bytes of every tensor an operation makes, unless it shares an input's storage."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        taken = {_storage(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and _storage(t) not in taken]
        self.total += sum(t.numel() * t.element_size() for t in made)
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)  # a sparse one has none
