"""Contestants in processes of their own that take turns, A B C, A B C, so that a slow moment of the machine meets all.

A contestant's first call is cold and is kept apart: for ours it holds the tracing.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    # glibc keeps the pages that are given back to it. It reads these settings only when a process starts.
    "keep": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Order:
    """What a worker is to measure."""

    workload: str
    contestant: str
    quantity: str
    points: int
    threads: int
    device: str
    dtype: str = "float32"


@dataclass
class Entry:
    """One contestant of one row.

    absent: the reason why there is no figure. first: the sample of the first call, which is cold. values, stderr: the
    numbers that the last round computed; error: how wrong these values are.
    """

    contestant: str
    note: str = ""
    absent: str | None = None
    first: dict[str, Any] | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    values: list[list[float]] | None = None
    stderr: list[list[float]] | None = None
    error: float | None = None


def race(
    row: Row,
    points: Path,
    *,
    count: int,
    rounds: int,
    threads: int,
    device: str,
    allocator: str,
    say: Callable[[str], None],
) -> list[Entry]:
    """All contestants of a row: first one cold call of each, one after another, then ``rounds`` rounds in turns.

    points: the file of the work load; count: how many of its points are measured at. say: called with each progress
    message.
    """
    entries = []
    with ExitStack() as stack:
        workers: dict[str, _Worker] = {}
        for name in row.contestants:
            order = Order(row.workload, name, row.quantity, count, threads, device)
            workers[name] = worker = _Worker(points, order, environment(threads, allocator))
            stack.callback(worker.close)
            ready = worker.answer()
            entry = Entry(name, note=ready.get("note", ""), absent=ready.get("missing") or ready.get("failed"))
            entries.append(entry)
            entry.first = first = None if entry.absent else _turn(entry, worker)
            say(f"{name}: {entry.absent}" if first is None else f"{name}: first call {first['seconds']:.3g} s")
        for number in range(rounds):
            for entry in entries:
                if entry.absent is None and (sample := _turn(entry, workers[entry.contestant])):
                    entry.samples.append(sample)
            say(f"round {number + 1} of {rounds}")
    return entries


def environment(threads: int, allocator: str) -> dict[str, str]:
    """The environment of a worker: the same for every contestant; malloc's settings are never inherited."""
    count = str(threads)
    fixed = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**inherited, **fixed, **ALLOCATORS[allocator], "PYTHONPATH": path}


def run_module(module: str, *words: str) -> None:
    """Run a helper process to its end on all cores; CalledProcessError if it fails."""
    subprocess.run(_command(module, *words), env=environment(os.cpu_count() or 1, "keep"), check=True)


class _Worker:
    """A process that measures one contestant each time it is asked; it speaks JSON, a line for each answer."""

    def __init__(self, points: Path, order: Order, env: dict[str, str]) -> None:
        command = _command("benchmarks.worker", str(points), json.dumps(asdict(order)))
        self.process = subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"failed": f"ended with status {self.process.wait()}"}

    def turn(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("run\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"failed": f"ended with status {self.process.wait()}"}
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def _turn(entry: Entry, worker: _Worker) -> dict[str, Any] | None:
    """One more sample; None where the contestant failed, which the entry then notes."""
    sample = worker.turn()
    if "failed" in sample:
        entry.absent = sample["failed"]
        return None
    entry.values, entry.stderr = sample.pop("values"), sample.pop("stderr")
    return sample


def _command(module: str, *words: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", module, *words]
