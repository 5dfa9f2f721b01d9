"""Contestants in processes of their own, taking turns: A B C, A B C, ... so that a machine's moods hit all alike."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.rows import Row

Allocator = Literal["default", "keep"]
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    # glibc keeps the pages it is given back; must be set before a process starts.
    "keep": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Order:
    """What a worker is told."""

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

    absent: why there is nothing. first: its first call, cold. values, stderr: what its last round found;
    error: how wrong the values are.
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
    """All contestants of a row: made ready and run once cold, one after another; then in turns, ``rounds`` times."""
    entries = []
    with _closing() as workers:
        for name in row.contestants:
            order = Order(row.workload, name, row.quantity, count, threads, device)
            workers[name] = _Worker(points, order, environment(threads, allocator))
            entry = Entry(name)
            entries.append(entry)
            _take(entry, workers[name].answer())
            entry.first = None if entry.absent else _turn(entry, workers[name])
            say(f"{name}: {_beginning(entry)}")
        for number in range(rounds):
            for entry in (e for e in entries if e.absent is None):
                sample = _turn(entry, workers[entry.contestant])
                entry.samples += [sample] if sample else []
            say(f"round {number + 1} of {rounds}")
    return entries


def environment(threads: int, allocator: str) -> dict[str, str]:
    """The same for every process but for the allocator asked for."""
    count = str(threads)
    fixed = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE"}
    outside = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**outside, **fixed, **ALLOCATORS[allocator], "PYTHONPATH": path}


def run_module(module: str, *words: str, allocator: str = "keep") -> None:
    """A helper process to its end, on all cores; CalledProcessError if it fails."""
    command = [sys.executable, "-W", "ignore", "-m", module, *words]
    subprocess.run(command, env=environment(os.cpu_count() or 1, allocator), check=True)


class _Worker:
    def __init__(self, points: Path, order: Order, env: dict[str, str]) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", str(points), json.dumps(asdict(order))]
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


@contextmanager
def _closing() -> Iterator[dict[str, _Worker]]:
    workers: dict[str, _Worker] = {}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def _take(entry: Entry, message: dict[str, Any]) -> None:
    entry.note = message.get("note", "")
    entry.absent = message.get("missing") or message.get("failed")


def _beginning(entry: Entry) -> str:
    return entry.absent or (f"first call {entry.first['seconds']:.3g} s" if entry.first else "")


def _turn(entry: Entry, worker: _Worker) -> dict[str, Any] | None:
    sample = worker.turn()
    if "failed" in sample:
        entry.absent = sample["failed"]
        return None
    entry.values, entry.stderr = sample.pop("values"), sample.pop("stderr")
    return sample
