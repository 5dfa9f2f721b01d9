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

from hessian_tools.failures import first_line

T = TypeVar("T")
# Vectors of two processes are different if their sums or their norms differ by more than this fraction of the norm;
# a smaller difference is rounding.
SAME_VECTOR = 1e-5
# How many numbers describe the vectors that a process multiplies: three for the shape [point, param, probe], one for
# the sum of all entries and one for their norm.
COUNT_OF_NUMBERS = 5
# LOST: the entry of torch's store, which all processes can read, by which a process reports that another one was lost.
# LOOK_EVERY: the seconds between two readings of this entry.
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
        share may be an empty list. A criterion that averages divides by a number, such as the number of examples. Each
        batch is weighted in proportion to this number, among the batches of all processes. With ``weights=`` each
        process gives one number for each of its batches.
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
    """The processes of a group that compute one result. device: the device of the tensors that they exchange."""

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
        """The sum of a tensor over the processes, the same to the bit on each of them. The argument may be changed."""
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
        """One row for each process: the numbers that it gives. Every process must give the same count of numbers."""
        own = torch.tensor(list(values), dtype=torch.float64, device="cpu").to(self.device)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        self._call(dist.all_gather, rows, own)
        return torch.stack(rows).tolist()

    def gather(self, value: Any) -> list[Any]:
        """The objects that the processes give, in the order of the processes."""
        own = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(self.device)
        sizes = [int(row[0]) for row in self.numbers([len(own)])]
        # all_gather takes tensors of one size, so zeros fill up the shorter ones.
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

    def with_shared_errors(self, function: Callable[[], T]) -> T:
        """``function()``; if it fails on one process, an error is raised on every process.

        Otherwise the processes without an error would wait in their next collective for the one that has failed.
        Raises OtherProcessFailed on the processes without an error of their own.
        """
        return self._call_and_compare(function, ())[0]

    def product(self, compute: Callable[[], Tensor], V: Tensor) -> Tensor:
        """The sum over the processes of ``compute()``, which is one process's part of a product with the vectors V.

        Raises ValueError on every process if the vectors of two processes differ by more than rounding.
        """
        total, norm = V.sum(dtype=torch.float64), torch.linalg.vector_norm(V, dtype=torch.float64)
        part, rows = self._call_and_compare(compute, [*map(float, V.shape), float(total), float(norm)])
        first = torch.tensor(rows[0], dtype=torch.float64, device="cpu")
        for rank, row in enumerate(rows):
            apart = (torch.tensor(row, dtype=torch.float64, device="cpu") - first).abs()
            # Shapes must be equal; sum and norm may differ by rounding. Comparisons with NaN are False, so vectors that
            # hold NaN are not refused.
            if apart[:-2].any() or (apart[-2:] > SAME_VECTOR * first[-1]).any():
                raise ValueError(
                    f"process {rank} multiplies other vectors than process 0, or makes other calls; give the same on "
                    "every process (random vectors from one seed), in the same order"
                )
        # ``sum`` may change its argument, and V is the caller's.
        shares_memory = part.untyped_storage().data_ptr() == V.untyped_storage().data_ptr()
        return self.sum(part.clone() if shares_memory else part)

    def _call_and_compare(self, function: Callable[[], T], numbers: Sequence[float]) -> tuple[T, list[list[float]]]:
        """The result of the function, and the numbers of each process; an error is raised on every process."""
        error: Exception | None = None
        try:
            result = function()
        except Exception as raised:
            error = raised
        # Every call exchanges the same count of numbers. Processes that make different calls therefore meet in the same
        # all_gather, and ``product`` sees that their numbers differ.
        rows = self.numbers([float(error is not None), *numbers, *[0.0] * (COUNT_OF_NUMBERS - len(numbers))])
        if any(row[0] for row in rows):
            self._raise_on_all(error)
        return result, [row[1:] for row in rows]

    def _raise_on_all(self, error: Exception | None) -> NoReturn:
        """Raise the error of this process, or OtherProcessFailed with that of another; all processes call this."""
        reasons = self.gather(None if error is None else f"{type(error).__name__}: {first_line(error)}")
        if error is not None:
            raise error
        rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason)
        raise OtherProcessFailed(f"process {rank} of {self.size} has stopped, so this one does too: {reason}")

    def _call(self, collective: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Calls one of torch's collectives in this group, and waits until it is done."""
        with self.reporting_lost_process():
            work = collective(*args, group=self.group, async_op=True, **options)
            if self.device.type == "cpu":
                self._watch(work)
            work.wait()

    @contextmanager
    def reporting_lost_process(self, *, connection_errors_only: bool = False) -> Iterator[None]:
        """A context for calls of torch's collectives: raises ProcessLost for an error, and reports it to the others.

        connection_errors_only: True for a calculation that calls collectives somewhere inside it. A RuntimeError that
            does not come from the connection is then left as it is.
        """
        try:
            yield
        except RuntimeError as error:
            if connection_errors_only and not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
                raise
            if "No backend type" in str(error):
                raise ValueError(
                    f"the process group has no backend for tensors on {self.device}; make it with "
                    "torch.distributed.init_process_group('cpu:gloo,cuda:nccl')"
                ) from error
            with suppress(Exception):  # the store is lost as well if the process that keeps it has ended
                _store().set(LOST, str(self.rank))
            raise ProcessLost(
                f"process {self.rank} of {self.size} stops, because another one no longer answers "
                f"({first_line(error)});\n"
                "see what ended it (memory, a signal, an error of its own), and start all processes again"
            ) from error

    def _watch(self, work: Any) -> None:
        """Wait until a collective is done; raises RuntimeError if another process has reported a lost process.

        When a process ends, only those processes that wait for it directly see their connection break. They report it
        in the store (:meth:`reporting_lost_process`), so that the others, which wait for processes that are still
        alive, need not wait until the time limit.
        """
        pause, next_look = 0.0, time.monotonic() + LOOK_EVERY
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause + 1e-5, 0.01)  # from 10 microseconds to 10 milliseconds
            if time.monotonic() > next_look:
                next_look += LOOK_EVERY
                if _store().check([LOST]):
                    raise RuntimeError("another process has reported it")


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _object(data: Tensor) -> Any:
    """The object of which these bytes are the pickle."""
    return pickle.loads(data.cpu().numpy().tobytes())
