"""How many tasks are computed at once: as many as the caller allows, or as many as fit in the memory of a GPU."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hessian_tools.curvature.engines.compiled import recorded
from hessian_tools.curvature.engines.memory import MemoryBudget, card_memory
from hessian_tools.data import Episode
from hessian_tools.failures import is_out_of_memory

# The share of a GPU's free memory that the tasks of a chunk may take. The rest is for what the count of one task's
# bytes does not see: the work space of convolutions, memory that the allocator cannot use, and other processes on the
# same card. How much that is has not been measured on a card yet, so a full half is left.
FREE_SHARE = 0.5

T = TypeVar("T")


@dataclass
class TaskChunks:
    """Computes tasks in chunks, whose size is chosen once; whenever the device runs out of memory, the size is halved.

    largest: the most tasks of a chunk; None until it is known, or where all tasks are one chunk. Each time that the
        device runs out of memory, it becomes half of the number of tasks that were tried.
    budget: the bytes that a chunk may take; None sets no limit. Where there is a budget and ``largest`` is None, the
        first task is computed alone, its peak of memory is measured, and ``largest`` follows from it.
    demanded: whether the caller has asked for several tasks at once. If vmap refuses the network, that refusal is then
        raised as an error.
    one_by_one: whether the tasks of a chunk are computed one after the other. The caller may ask for that, and it
        becomes True where vmap has refused the network.
    """

    largest: int | None = None
    budget: int | None = None
    demanded: bool = False
    one_by_one: bool = False

    def run(self, count: int, function: Callable[[range], T]) -> list[T]:
        """The results of ``function`` on consecutive ranges of the tasks 0 to ``count`` - 1.

        The function must read ``one_by_one`` of this object at each call, and compute the tasks of the range one after
        the other where it is True. Where several tasks at once were not demanded, a RuntimeError other than running out
        of memory is taken for vmap's refusal: ``one_by_one`` becomes True, and all tasks are computed again.
        """
        try:
            return self._run(count, function)
        except RuntimeError as error:
            if self.demanded or self.one_by_one or is_out_of_memory(error):
                raise
            self.one_by_one = True
        return self._run(count, function)

    def _run(self, count: int, function: Callable[[range], T]) -> list[T]:
        """The results of ``function`` on consecutive ranges, as in ``run``, but without a second try after an error."""
        results: list[T] = []
        if self.largest is None and self.budget is not None:
            with _PeakOfLiveBytes() as live:  # the first task alone
                results.append(function(range(1)))
            self.largest = max(1, self.budget // max(1, live.peak))
        first = len(results)  # the index of the first task that is not computed yet
        rest = count - first
        at_once, splitter = min(self.largest or rest, rest), MemoryBudget()
        try:
            return results + splitter.in_pieces(
                rest, lambda piece: function(range(first + piece.start, first + piece.stop)), at_once=at_once
            )
        finally:
            # Remembered as a size, not as a number of halvings, so that a later call with fewer tasks is not cut again.
            if splitter.shortages:
                self.largest = max(1, at_once >> splitter.shortages)


def task_chunks(largest: int | None, device: torch.device | str, *, demanded: bool = False) -> TaskChunks:
    """The chunks of a run on a device.

    largest: the most tasks of a chunk; None takes all of them on a CPU, and as many as fit in memory on a GPU.
    demanded: see ``TaskChunks``.
    """
    device = torch.device(device)
    budget = _free_bytes(device) if largest is None and device.type == "cuda" else None
    # A caller who gives the number of tasks has asked for several at once.
    return TaskChunks(largest, budget, demanded or largest is not None)


def _free_bytes(device: torch.device) -> int:
    """The bytes of a GPU that a chunk may take: ``FREE_SHARE`` of the free memory, or half of that with CUDA graphs.

    Memory that this process has reserved but does not use counts as free. Where this process may use only a share of
    the card, no more is free than what is left of that share.
    """
    allocated = torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - allocated
    # A CUDA graph keeps the memory of its operations for itself, beside that of whatever runs without it.
    share = FREE_SHARE / 2 if recorded.switched_on(device) else FREE_SHARE
    return int(share * max(0, min(free, card_memory(device) - allocated)))


def stacked(episodes: Sequence[Episode]) -> Episode | None:
    """The tasks as one episode, whose tensors have an axis of tasks in front; None where shapes or dtypes differ."""
    leaves, trees = zip(*map(pytree.tree_flatten, episodes), strict=True)
    shapes = [[(leaf.shape, leaf.dtype) for leaf in row] for row in leaves]
    if any(tree != trees[0] for tree in trees) or any(row != shapes[0] for row in shapes):
        return None
    columns: list[Any] = [torch.stack(column) for column in zip(*leaves, strict=True)]
    return pytree.tree_unflatten(columns, trees[0])


class _PeakOfLiveBytes(TorchDispatchMode):
    """Measures the most bytes that tensors made inside this context occupy at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        counted = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in counted:  # a view of an input needs no memory of its own
                counted.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _freed(self, size: int) -> None:
        self.live -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    """The storages of all dense tensors in a tree of arguments; sparse tensors have none."""
    leaves = pytree.tree_leaves(tree)
    return [t.untyped_storage() for t in leaves if isinstance(t, Tensor) and t.layout is torch.strided]
