"""How many tasks are computed at once: as many as the caller allows, or as many as fit in the memory of a GPU."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

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
    """Computes tasks in chunks, whose size is chosen once and then kept, except that running out of memory halves it.

    largest: the most tasks of a chunk; None until it is known, or where all tasks are one chunk.
    budget: the bytes that a chunk may take; None sets no limit. Where there is a budget and ``largest`` is None, the
        first task is computed alone, its peak of memory is measured, and ``largest`` follows from it.
    demanded: whether the caller has asked for several tasks at once. If vmap refuses the network, this is then an
        error.
    in_turn: whether the tasks of a chunk are computed one after the other, on request or because vmap has refused the
        network.
    memory: counts how often the device has run out of memory all the same.
    """

    largest: int | None = None
    budget: int | None = None
    demanded: bool = False
    in_turn: bool = False
    memory: MemoryBudget = field(default_factory=MemoryBudget)

    def run(self, count: int, function: Callable[[range], T]) -> list[T]:
        """The results of ``function`` on consecutive ranges of the tasks 0 to ``count`` - 1.

        The function computes the tasks of a range as ``in_turn`` says. Where several tasks at once were not demanded, a
        RuntimeError other than running out of memory is taken for vmap's refusal, and all tasks are computed in turn.
        """
        try:
            return self._run(count, function)
        except RuntimeError as error:
            if self.demanded or self.in_turn or is_out_of_memory(error):
                raise
            self.in_turn = True
        return self._run(count, function)

    def _run(self, count: int, function: Callable[[range], T]) -> list[T]:
        """The results of ``function`` on consecutive ranges, whatever it raises; see ``run``."""
        results: list[T] = []
        if self.largest is None and self.budget is not None:
            with _PeakOfLiveBytes() as live:
                results.append(function(range(1)))
            self.largest = max(1, self.budget // max(1, live.peak))
        first = len(results)
        rest = count - first
        return results + self.memory.in_pieces(
            rest,
            lambda piece: function(range(first + piece.start, first + piece.stop)),
            at_once=min(self.largest or rest, rest),
        )


def task_chunks(largest: int | None, device: torch.device | str, *, demanded: bool = False) -> TaskChunks:
    """The chunks of a run on a device.

    largest: the most tasks of a chunk; None takes all of them on a CPU, and as many as fit in memory on a GPU.
    demanded: see ``TaskChunks``.
    """
    device = torch.device(device)
    budget = _free_bytes(device) if largest is None and device.type == "cuda" else None
    return TaskChunks(largest, budget, demanded or largest is not None)


def _free_bytes(device: torch.device) -> int:
    """The bytes of a GPU that a chunk may take: FREE_SHARE of what is free, or reserved by this process and unused.

    Where this process has only a share of the card, no more is free than what is left of that share.
    """
    allocated = torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - allocated
    return int(FREE_SHARE * max(0, min(free, card_memory(device) - allocated)))


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
