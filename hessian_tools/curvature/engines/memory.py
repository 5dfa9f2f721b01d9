"""How many products may run together: memory is measured beforehand, and on CUDA halved where it is refused.

On a CPU memory must be measured beforehand, because there a process that runs out is killed rather than told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.loss import Batch, LossFunction

# Bytes that the products in flight may take, by type of device.
MEMORY_BUDGET = {"cpu": 2**29, "cuda": 2**32}
# Products have one budget and the bases of an eigenvalue run another; points and batches come on top of both. A card of
# 24 GB or more holds 4 GiB of each; on a smaller card each gets this share.
GPU_SHARE = 0.2

# One direct product was measured to need 4 to 7 times the bytes of one forward pass (Conv4, width 16 and 64, 1 to 112
# products at once, peak resident memory); 8 leaves room.
FORWARDS_PER_PRODUCT = 8

# What the graph of a gradient keeps for each point, also in units of the bytes of one forward pass. The same is assumed
# of a trace until its bytes are known.
KEPT_FORWARDS = 4

T = TypeVar("T")


@dataclass
class MemoryBudget:
    """The bytes that products may take, and how often the device has refused what should have fitted.

    max_memory: bytes; None for the device's default. refusals: each of them halves what is asked for together.
    """

    max_memory: int | None = None
    refusals: int = 0

    def budget(self, device: torch.device) -> int:
        """The bytes that products may take on the device."""
        return self.max_memory or memory_budget(device)

    def in_pieces(self, total: int, function: Callable[[slice], T], *, at_once: int) -> list[T]:
        """The results of ``function`` on consecutive slices of ``total`` points.

        at_once: how many points fit together, before any refusal. Raises OutOfMemoryError where one point does not fit.
        """
        results: list[T] = []
        start = 0
        while start < total:
            most = max(1, at_once >> self.refusals)
            remaining = total - start
            # Of nearly equal length, because a short last piece would cost nearly as much as a full one.
            size = ceil(remaining / ceil(remaining / most))
            try:
                results.append(function(slice(start, start + size)))
            except torch.OutOfMemoryError:
                if most <= 1:
                    raise
            else:
                start += size
                continue
            self.refuse()
        return results

    def refuse(self) -> None:
        """Remembers a refusal. Call it outside of ``except``: the error holds the frames that hold what was made."""
        self.refusals += 1
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def memory_budget(device: torch.device) -> int:
    """The default bytes for one kind of work on a device: those of its type, but no more than GPU_SHARE of a GPU."""
    budget = MEMORY_BUDGET.get(device.type, MEMORY_BUDGET["cpu"])
    if device.type != "cuda" or not torch.cuda.is_available():
        return budget
    return min(budget, int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory))


def checked_budget(max_memory: float | int | None) -> MemoryBudget:
    """The budget of so many bytes. Raises ValueError for what is no number of bytes."""
    if max_memory is None:
        return MemoryBudget()
    if isinstance(max_memory, bool) or not isinstance(max_memory, (int, float)) or not max_memory >= 1:
        raise ValueError(f"max_memory={max_memory!r}: give a number of bytes, such as 4e9, or None for the default")
    return MemoryBudget(int(max_memory))


def largest_forward(objective: Objective) -> int:
    """The bytes of the forward pass on the largest batch of the first point; costs one such pass a batch."""
    theta = objective.thetas[0]
    return max(forward_bytes(objective.loss, theta, batch) for batch in objective.batches_at(0))


def forward_bytes(loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch) -> int:
    """The bytes of all tensors that one evaluation of the loss makes; views are not counted.

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
    # A sparse tensor has no storage, so it is identified by itself.
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
