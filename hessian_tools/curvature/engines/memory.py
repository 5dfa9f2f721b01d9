"""Decides how many products may run together, from the memory that a forward pass needs.

This memory is measured beforehand, because on a CPU a process that runs out of memory is killed rather than told. If a
CUDA device runs out of memory all the same, half as many products are tried.
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

from hessian_tools.batches import cast_like
from hessian_tools.curvature.objective.loader_batches import LoaderBatches
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.failures import is_out_of_memory
from hessian_tools.first_look import value_of
from hessian_tools.loss import Batch, LossFunction

# Bytes that the products that run at the same time may take, by type of device.
MEMORY_BUDGET = {"cpu": 2**29, "cuda": 2**32}
# Products have one budget and the Lanczos bases of an eigenvalue run another; points and batches come on top of both.
# On a card of 24 GB or more each budget is 4 GiB; on a smaller card each is this share of its memory.
GPU_SHARE = 0.2

# Vectors that are multiplied together, such as probes, may take this share of the budget of products: 32 MiB of the 512
# MiB of a CPU. A vector above it is large, and memory then goes before speed: vectors are multiplied one by one.
BLOCK_SHARE = 1 / 16

# One direct product was measured to need 4 to 7 times the bytes of one forward pass (Conv4, width 16 and 64, 1 to 112
# products at once, peak resident memory); 8 leaves room.
FORWARDS_PER_PRODUCT = 8

# The memory that the graph of a gradient keeps for each point, also in units of the bytes of one forward pass. The
# trace of a product (see ``choice``) is assumed to keep as much until its bytes are known.
KEPT_FORWARDS = 4

T = TypeVar("T")


@dataclass
class MemoryBudget:
    """The bytes that products may take.

    max_memory: bytes, or None for the device's default. shortages: how often the device has run out of memory all the
    same. Each shortage halves the number of points or products that are computed together.
    """

    max_memory: int | None = None
    shortages: int = 0

    def budget(self, device: torch.device) -> int:
        """The bytes that products may take on the device."""
        return self.max_memory or memory_budget(device)

    def in_pieces(self, total: int, function: Callable[[slice], T], *, at_once: int) -> list[T]:
        """The results of ``function`` on consecutive slices of ``total`` points.

        at_once: how many points fit in memory together; this number is halved for each shortage. Raises
        OutOfMemoryError where one point does not fit.
        """
        results: list[T] = []
        start = 0
        while start < total:
            max_size = max(1, at_once >> self.shortages)
            remaining = total - start
            # The pieces have nearly equal lengths, because a short last piece would cost nearly as much as a full one.
            size = ceil(remaining / ceil(remaining / max_size))
            try:
                results.append(function(slice(start, start + size)))
            except RuntimeError as error:
                if max_size <= 1 or not is_out_of_memory(error):
                    raise
            else:
                start += size
                continue
            self.record_shortage()
        return results

    def record_shortage(self) -> None:
        """Counts one more shortage of memory, and frees cached memory.

        Call it after the ``except`` block, because within it the error still holds frames with their tensors.
        """
        self.shortages += 1
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def memory_budget(device: torch.device) -> int:
    """The default budget in bytes on a device: that of its type, but no more than GPU_SHARE of a GPU's memory."""
    budget = MEMORY_BUDGET.get(device.type, MEMORY_BUDGET["cpu"])
    if device.type != "cuda" or not torch.cuda.is_available():
        return budget
    return min(budget, int(GPU_SHARE * card_memory(device)))


def card_memory(device: torch.device) -> int:
    """The bytes of a GPU that this process may use: all of them, or the share that torch was told to keep within."""
    total = torch.cuda.get_device_properties(device).total_memory
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # torch 2.6 has no such function
    if fraction is None or not torch.cuda.is_initialized():
        return total
    return int(fraction(torch.cuda.current_device() if device.index is None else device.index) * total)


def vectors_at_once(device: torch.device, vector_bytes: int, max_count: int) -> int:
    """How many vectors are multiplied together: at most ``max_count``, and what BLOCK_SHARE of the budget allows.

    vector_bytes: the bytes of one vector at all points.
    """
    # vector_bytes is 0 in a process that holds no entry of a sharded vector.
    return max(1, min(max_count, int(BLOCK_SHARE * memory_budget(device)) // max(1, vector_bytes)))


def is_large(vector: Tensor) -> bool:
    """True for a vector above BLOCK_SHARE of the budget of its device."""
    return vector.numel() * vector.element_size() > BLOCK_SHARE * memory_budget(vector.device)


def largest_forward(objective: Objective) -> int:
    """The bytes that a forward pass allocates on the first point's largest batch, measured by a pass on each batch.

    Of the batches of a loader that is read again at every pass, only the one with the most numbers is measured.
    """
    theta = objective.thetas[0]
    if isinstance(batches := objective.batches, LoaderBatches):
        return forward_bytes(objective.loss, theta, cast_like(batches.largest, theta))
    return max(forward_bytes(objective.loss, theta, batch) for batch in objective.batches_at(0))


def forward_bytes(loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch) -> int:
    """The bytes of all tensors that one evaluation of the loss creates; views are not counted.

    >>> forward_bytes(lambda theta, batch: (2 * theta).sum(), torch.zeros(10), None)  # ten floats and their sum
    44
    """
    try:
        with torch.no_grad(), _CountBytes() as count:
            loss(theta, batch)
    except RuntimeError:  # the loss differentiates inside itself, so it needs its graph
        with _CountBytes() as count:
            value_of(loss, theta, batch)
    return count.total


class _CountBytes(TorchDispatchMode):
    """Adds up the bytes of every tensor that an operation creates, unless the tensor shares an input's storage."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        input_storages = {_storage(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        created = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and _storage(t) not in input_storages]
        self.total += sum(t.numel() * t.element_size() for t in created)
        return out


def _storage(tensor: Tensor) -> int:
    """A number that identifies the storage of a tensor."""
    # A sparse tensor has no storage, so the tensor object is identified instead.
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
