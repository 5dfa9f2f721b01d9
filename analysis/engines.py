"""Where the work runs: in this process, or in one process per core with one thread each.

A unit of work is any picklable value; the function that does it checks for itself what is already
on disk, so any engine can be stopped at any moment and started again. Numbers do not depend on
the number of workers: every unit runs on one thread wherever it runs.
"""

import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

Emit = Callable[[float, str], None]
Work = Callable[[Any, Emit], None]


class WorkerLost(RuntimeError):
    """A worker process ended without an answer: killed from outside, most often for memory."""


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """The worker processes of a study, started when first needed and kept for all its parts.

    workers: processes; 0 does the work in this one. Leaving the context stops them at once.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._crew: list[_Worker] = []

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._crew:
            worker.stop()

    def run(self, work: Work, units: Sequence[Any], *, emit: Emit) -> None:
        """Do every unit. emit is called in this process with (amount, note). The first error is raised here."""
        if self.workers == 0:
            _run_here(work, units, emit)
            return
        context = mp.get_context("spawn")
        while len(self._crew) < min(self.workers, len(units)):
            self._crew.append(_Worker(context))
        _dispatch(self._crew, work, list(units), emit)


class _Worker:
    def __init__(self, context: Any) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _dispatch(crew: list[_Worker], work: Work, waiting: list[Any], emit: Emit) -> None:
    busy = {}
    for worker in crew[: len(waiting)]:
        worker.connection.send((work, waiting.pop(0)))
        busy[worker.connection] = worker
    while busy:
        for connection in wait(list(busy)):
            kind, value = _receive(connection)
            if kind == "progress":
                emit(*value)
            elif kind == "error":
                raise value
            elif waiting:
                busy[connection].connection.send((work, waiting.pop(0)))
            else:
                del busy[connection]


def _receive(connection: Any) -> tuple[str, Any]:
    try:
        return connection.recv()
    except EOFError:
        raise WorkerLost(
            "a worker process was killed, most often for lack of memory; run the same command again with --workers 1"
        ) from None


def _serve(connection: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)

    def emit(amount: float, note: str) -> None:
        connection.send(("progress", (amount, note)))

    while True:
        try:
            work, unit = connection.recv()
        except EOFError:
            return
        try:
            work(unit, emit)
            connection.send(("done", None))
        except Exception as e:
            connection.send(("error", e))


def _end_with(parent: int) -> None:
    # A parent killed outright cannot stop its workers; they must not go on writing behind a restarted command.
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def _run_here(work: Work, units: Sequence[Any], emit: Emit) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for unit in units:
            work(unit, emit)
    finally:
        torch.set_num_threads(threads)
