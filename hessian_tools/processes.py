"""Processes that share one calculation: the share of the data that each holds, their sums, and their errors.

Every process of the group runs the same program. A number that decides what comes next must therefore be the same on
all of them, and an error on one of them must reach the others, which would otherwise wait for it.
"""

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
# Vectors that differ by more than this share of their length are different vectors, not rounding.
SAME_VECTOR = 1e-5
# The numbers that say which vectors a process multiplies: their shape [point, param, probe], sum and length.
NUMBERS = 5
# The entry of a group's store that says that a process was lost, and the seconds between looks at it.
LOST, LOOK_EVERY = "hessian_tools/lost", 1.0


class OtherProcessFailed(RuntimeError):
    """Another process of the group raised an error, so that this one cannot go on."""


class ProcessLost(RuntimeError):
    """Another process of the group no longer answers: it has ended or was killed, or the time limit has passed."""


@dataclass(frozen=True, repr=False)
class Share:
    """The batches that this process holds of the data of one objective; made by :func:`data_parallel`."""

    batch: Any
    group: Any

    def __repr__(self) -> str:
        return f"Share(of process {dist.get_rank(self.group)} of {dist.get_world_size(self.group)})"


def data_parallel(batch: Any, process_group: Any = None) -> Share:
    """The batches of this process, as its share of data that all processes of a group hold together.

    The result takes the place of the batch: ``H = ht.hessian(loss, theta, data_parallel(my_batches))`` is the matrix of
    the mean loss over the data of all processes, and whatever is computed from it equals the result of one process with
    all batches in one list. A script is started by ``torchrun --nproc-per-node=N script.py`` and calls
    ``torch.distributed.init_process_group("gloo")`` first ("nccl" for GPUs). Every process must make the same calls
    with the same parameters and vectors.

    batch: one batch, a list of batches, or a ``DataLoader`` that does not shuffle. The shares may differ in size, and a
        share may be an empty list. Batches count by what the criterion divides them by, over all processes; with
        ``weights=`` each process gives one number for each of its batches.
    process_group: a group of ``torch.distributed``; None for all processes.

    Raises ValueError where there is no process group.
    """
    if isinstance(batch, Share):
        raise ValueError("the batch is a Share already; call data_parallel once")
    return Share(batch, checked_group(process_group))


def checked_group(process_group: Any = None) -> Any:
    """The group, or the group of all processes for None; raises ValueError where there is none."""
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "there is no process group; start the script with torchrun --nproc-per-node=N, and call "
            "torch.distributed.init_process_group('gloo') first ('nccl' for GPUs)"
        )
    group = dist.group.WORLD if process_group is None else process_group
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(
            f"process_group is {group!r}, which is no group with this process in it; give a group of "
            "torch.distributed.new_group that holds the process, or None for all processes"
        )
    return group


def refuse_share(batch: Any) -> None:
    """Raise ValueError for the share of a process, for a function that works in one process only."""
    if isinstance(batch, Share):
        raise ValueError(
            "a batch from data_parallel works in hessian, hessian_of, gauss_newton, gradient and third_derivative, and "
            "in what is computed from their operators; give the batch itself here"
        )


@dataclass(frozen=True)
class Ranks:
    """The processes of a group that compute together. device: where the tensors lie that they exchange."""

    group: Any
    device: torch.device

    @property
    def rank(self) -> int:
        """The number of this process in the group."""
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """The number of processes."""
        return dist.get_world_size(self.group)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes, the same to the bit on each of them; it may be changed in place."""
        tensor = tensor.detach().contiguous()
        self._call(dist.all_reduce, tensor)
        return tensor

    def first(self, tensor: Tensor) -> Tensor:
        """The tensor of the first process."""
        tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        self.broadcast(tensor, 0)
        return tensor

    def broadcast(self, tensor: Tensor, rank: int) -> None:
        """Fill a contiguous tensor with that of one process."""
        self._call(dist.broadcast, tensor, group_src=rank)

    def numbers(self, values: Sequence[float]) -> list[list[float]]:
        """The numbers of each process, as many on each."""
        own = torch.tensor(list(values), dtype=torch.float64, device="cpu").to(self.device)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        self._call(dist.all_gather, rows, own)
        return torch.stack(rows).tolist()

    def gather(self, value: Any) -> list[Any]:
        """An object of each process, in their order."""
        own = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(self.device)
        sizes = [int(row[0]) for row in self.numbers([len(own)])]
        rows = [own.new_empty(max(sizes)) for _ in sizes]
        self._call(dist.all_gather, rows, torch.cat([own, own.new_zeros(max(sizes) - len(own))]))
        return [_object(row[:size]) for row, size in zip(rows, sizes, strict=True)]

    def from_process(self, rank: int, value: Any) -> Any:
        """The object of one process, which the others receive."""
        own = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(self.device)
        size = torch.tensor([len(own)], device="cpu").to(self.device)
        self.broadcast(size, rank)
        data = own if rank == self.rank else own.new_empty(int(size))
        self.broadcast(data, rank)
        return _object(data)

    def together(self, function: Callable[[], T]) -> T:
        """``function()``, whose error on one process is raised on every process, so that none waits for another.

        Raises OtherProcessFailed on the processes without an error of their own.
        """
        return self._together(function, ())[0]

    def product(self, compute: Callable[[], Tensor], V: Tensor) -> Tensor:
        """The sum over the processes of ``compute()``, their part of a product with the vectors V.

        Raises ValueError on every process where their vectors differ by more than rounding.
        """
        total, length = V.sum(dtype=torch.float64), torch.linalg.vector_norm(V, dtype=torch.float64)
        part, rows = self._together(compute, [*map(float, V.shape), float(total), float(length)])
        first = torch.tensor(rows[0], dtype=torch.float64, device="cpu")
        for rank, row in enumerate(rows):
            apart = (torch.tensor(row, dtype=torch.float64, device="cpu") - first).abs()
            if apart[:-2].any() or (apart[-2:] > SAME_VECTOR * first[-1]).any():  # False for NaN
                raise ValueError(
                    f"process {rank} multiplies other vectors than process 0, or makes other calls; give the same on "
                    "every process (random vectors from one seed), in the same order"
                )
        return self.sum(part.clone() if _shares_memory(part, V) else part)

    def _together(self, function: Callable[[], T], numbers: Sequence[float]) -> tuple[T, list[list[float]]]:
        """The result of the function, and the numbers of each process."""
        error: Exception | None = None
        try:
            result = function()
        except Exception as raised:
            error = raised
        # Always as many numbers, so that processes that make different calls find out here.
        rows = self.numbers([float(error is not None), *numbers, *[0.0] * (NUMBERS - len(numbers))])
        if any(row[0] for row in rows):
            self._raise_together(error)
        return result, [row[1:] for row in rows]

    def _raise_together(self, error: Exception | None) -> NoReturn:
        reasons = self.gather(None if error is None else f"{type(error).__name__}: {str(error).splitlines()[0][:300]}")
        if error is not None:
            raise error
        rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason)
        raise OtherProcessFailed(f"process {rank} of {self.size} has stopped, so this one does too: {reason}")

    def _call(self, collective: Callable[..., Any], *args: Any, **options: Any) -> None:
        with self.named_losses():
            work = collective(*args, group=self.group, async_op=True, **options)
            if self.device.type == "cpu":
                self._watch(work)
            work.wait()

    @contextmanager
    def named_losses(self, *, among_others: bool = False) -> Iterator[None]:
        """A context for calls of torch's collectives, whose errors are raised as ProcessLost and told to the others.

        among_others: True where a calculation calls collectives, whose own errors are left as they are.
        """
        try:
            yield
        except RuntimeError as error:
            if among_others and not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
                raise
            if "No backend type" in str(error):
                raise ValueError(
                    f"the process group has no backend for tensors on {self.device}; make it with "
                    "torch.distributed.init_process_group('cpu:gloo,cuda:nccl')"
                ) from error
            with suppress(Exception):
                _store().set(LOST, str(self.rank))
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise ProcessLost(
                f"process {self.rank} of {self.size} stops, because another one no longer answers ({reason});\n"
                "see what ended it (memory, a signal, an error of its own), and start all processes again"
            ) from error

    def _watch(self, work: Any) -> None:
        """Wait until a collective is done; raises RuntimeError where another process has lost its connection.

        The end of a process is seen at once by those that wait for it alone. They say so in the store of the group, so
        that those who wait for others do not wait until the time limit.
        """
        pause, next_look = 0.0, time.monotonic() + LOOK_EVERY
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause + 1e-5, 0.01)
            if time.monotonic() > next_look:
                next_look += LOOK_EVERY
                if _store().check([LOST]):
                    raise RuntimeError("another process has said so")


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _object(data: Tensor) -> Any:
    return pickle.loads(data.cpu().numpy().tobytes())


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
