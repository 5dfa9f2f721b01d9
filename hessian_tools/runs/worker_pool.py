"""Single-threaded worker processes, which share the runs of a study or the tasks of an outer step.

The pool calls one function for each of several units. A unit is any picklable value that describes one piece of work,
such as one training run; its ``str`` is a short description of it for messages, such as "training maml seed 0". Numbers
do not depend on the number of workers, because every unit is computed on one thread in any case. The reasons for a pool
of our own instead of a library's are given, with figures, in ``docs/architecture.md`` under "Processes".
"""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.multiprocessing import get_context

Emit = Callable[[float, str], None]  # reports progress: the amount of work done, and a note on it
Work = Callable[[Any, Emit], None]  # does the work of one unit

GRACE = 10.0  # seconds that a terminated worker has to end by itself before it is killed
WATCH = 0.1  # seconds between the checks by which a worker sees whether its parent is alive


class WorkerLost(RuntimeError):
    """A worker process ended without an answer, because it was killed from outside, most often for lack of memory."""


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ignore_progress(*report: object) -> None:
    """The ``emit`` of a caller that does not follow the progress."""


class WorkerPool:
    """Worker processes, which are started when they are first needed and kept for all later calls of ``run``.

    workers: the number of processes; with 0 the work is done in this process.
    adapt: a function from a unit and the number of the worker that gets it, 0 to ``workers - 1``, to the unit as that
        worker receives it, such as with the worker's own device; None leaves units as they are.

    ``close``, or leaving the pool's ``with`` block, ends the processes at once, whatever they are doing.
    """

    def __init__(self, workers: int, *, adapt: Callable[[Any, int], Any] | None = None) -> None:
        self.workers = workers
        self._adapt = adapt or (lambda unit, worker: unit)
        self._started: list[_Worker] = []

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The process identifiers of the workers that were started."""
        return [worker.process.pid for worker in self._started if worker.process.pid]

    def run(self, work: Work, units: Sequence[Any], *, emit: Emit = ignore_progress) -> None:
        """Call ``work(unit, emit)`` for every unit and return when all are done.

        work: a picklable function. A worker receives it once and keeps it as long as the same object is passed, so a
            ``functools.partial`` may carry large things that several calls of ``run`` share.
        emit: called in this process with (amount, note) whenever the work calls it.

        The first error that a unit raises is raised here. Raises WorkerLost where a worker process was killed, and
        ValueError where the work cannot be sent to another process. Any of these ends all workers.
        """
        if self.workers == 0:
            with one_thread():
                for unit in units:
                    work(unit, emit)
            return
        try:
            while len(self._started) < min(self.workers, len(units)):
                self._started.append(_Worker(len(self._started)))
            self._dispatch(work, list(units), emit)
        except BaseException:
            # The other workers are still busy, and a later call of ``run`` would take their answers for its own.
            self.close()
            raise

    def close(self) -> None:
        """End the worker processes and wait until they are gone."""
        for worker in self._started:
            worker.connection.close()
            worker.process.terminate()
        for worker in self._started:
            worker.process.join(GRACE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._started = []

    def _dispatch(self, work: Work, waiting: list[Any], emit: Emit) -> None:
        """Give each worker a unit, and another one as soon as it has answered."""
        busy: dict[Any, _Worker] = {}
        for worker in self._started[: len(waiting)]:
            worker.give(work, self._adapt(waiting.pop(0), worker.number))
            busy[worker.connection] = worker
        while busy:
            for connection in wait(list(busy)):
                worker = busy[connection]
                kind, value = worker.answer()
                if kind == "progress":
                    emit(*value)
                elif kind == "error":
                    raise value
                elif waiting:  # here and in the next branch, the kind is "done"
                    worker.give(work, self._adapt(waiting.pop(0), worker.number))
                else:
                    del busy[connection]


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, number: int) -> None:
        context = get_context("spawn")  # a forked process would inherit locks that threads of torch hold
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(other_end, os.getpid()), daemon=True)
        with _interrupts_blocked():
            self.process.start()
        other_end.close()
        self.number, self.activity = number, "waiting for work"
        self._work: Work | None = None

    def give(self, work: Work, unit: Any) -> None:
        """Send a unit, and the work itself unless the worker has it already."""
        try:
            message = ForkingPickler.dumps((None if work is self._work else work, unit))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"the work cannot be sent to another process ({error}); build the network and the tasks from"
                " importable functions, not lambdas, or use no worker processes"
            ) from None
        try:
            self.connection.send_bytes(message)
        except OSError:
            raise self._lost() from None
        self.activity, self._work = str(unit), work

    def answer(self) -> tuple[str, Any]:
        """The next message of the worker: ("progress", (amount, note)), ("error", exception) or ("done", None)."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if kind == "done":
            self.activity = "waiting for work"
        return kind, value

    def _lost(self) -> WorkerLost:
        """The error for a worker whose pipe is closed, which means that its process has ended or is about to."""
        self.process.join(GRACE)
        return WorkerLost(
            f"worker process {self.number} ended (exit code {self.process.exitcode}) while it was {self.activity};"
            " what was saved is complete:\nrun the same again, with fewer workers if memory was short"
        )


def _serve(connection: Connection, parent: int) -> None:
    """The main function of a worker process, which runs until its pipe is closed or its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)

    def emit(amount: float, note: str) -> None:
        connection.send(("progress", (amount, note)))

    work: Work | None = None
    answer: tuple[str, Any]
    with suppress(EOFError, OSError):  # raised when the parent closes the pipe; errors of the work are sent as answers
        while True:
            message = connection.recv_bytes()
            try:
                new_work, unit = ForkingPickler.loads(message)
                work = new_work or work  # None stands for the work of the message before
                assert work is not None
                work(unit, emit)
                answer = ("done", None)
            except Exception as error:
                answer = ("error", sendable(error))
            connection.send(answer)


def sendable(error: Exception) -> Exception:
    """The error itself, or a RuntimeError with its text where its class cannot be pickled and read again."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(" ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]))


def _end_with(parent: int) -> None:
    """End this process once its parent has ended."""
    # A parent that was killed cannot end its workers, and these must not go on writing beside a restarted command.
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block, torch computes on one thread, as it does in a worker process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Inside the block, Ctrl-C is blocked, and a process that is started there inherits this.

    Otherwise a Ctrl-C in the seconds in which workers import their modules makes every worker print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
