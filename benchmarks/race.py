"""Runs contestants in processes of their own, which take turns A B C, A B C, so that a slow moment affects all alike.

The first call of each contestant is recorded separately, because it does work that later calls reuse, such as our
tracing.
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

from benchmarks.rows import BEFORE, Row

ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    # With these settings, which glibc reads only when a process starts, freed memory stays with the process.
    "keep": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Order:
    """What a worker process is to measure, and how."""

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

    note: the contestant's settings. absent: the reason why it has no figures. first: the sample of the first call.
    samples: the samples of the rounds. values, stderr: the numbers that the last round computed. error: the error of
    these values.
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
    file: Path,
    *,
    count: int,
    rounds: int,
    threads: int,
    device: str,
    allocator: str,
    before: Path | None,
    say: Callable[[str], None],
) -> list[Entry]:
    """Measure all contestants of a row: first one call of each, and then ``rounds`` rounds in turns.

    file: the file of the work load. count: the number of its points (or tasks) that are used. say: a function that
    takes each progress message. before: the checkout from which the contestant "before" is taken.
    """
    entries = []
    with ExitStack() as stack:
        workers: dict[str, _Worker] = {}
        for name in row.contestants:
            root = before if name == BEFORE and before else ROOT
            contestant = "ours" if name == BEFORE else name
            order = Order(row.workload, contestant, row.quantity, count, threads, device)
            workers[name] = worker = _Worker(file, order, root, environment(threads, allocator))
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
    """The environment of a worker, the same for every contestant; this process's settings of malloc are left out."""
    count = str(threads)
    fixed = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    return {**inherited, **fixed, **ALLOCATORS[allocator]}


class _Worker:
    """A process that measures one contestant on each request, and answers with one line of JSON.

    root: the checkout whose code it runs.
    """

    def __init__(self, file: Path, order: Order, root: Path, env: dict[str, str]) -> None:
        order_text = json.dumps(asdict(order))
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", str(file.absolute()), order_text]
        env = env | {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])}
        # Python looks for modules in its working directory first, and then in PYTHONPATH.
        self.process = subprocess.Popen(
            command, cwd=root, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

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
    """Take one more sample. If the contestant fails, return None and note the reason in the entry."""
    sample = worker.turn()
    if "failed" in sample:
        entry.absent = sample["failed"]
        return None
    entry.values, entry.stderr = sample.pop("values"), sample.pop("stderr")
    return sample
