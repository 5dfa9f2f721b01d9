"""The processor time that each run of a study took, as lines in files of the run's folder.

Several processes of a machine may measure one run at the same time. All add whole lines to the end of one file, and the
operating system does not mix their lines. A file system that machines share may mix them, so a process on another
machine has a file of its own. Work that was cut off leaves no line, so the sum is the time of completed work.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from time import process_time

NAME = "times.jsonl"
_file_name = ContextVar("_file_name", default=NAME)
PARTS = ("train", "measure")


def stopwatch(run: Path, part: str) -> Callable[..., None]:
    """A function that records the processor time of this process since its last call, or since the watch was made.

    run: the folder of the run. part: one of ``PARTS``. The function takes the share of the time that belongs to this
    run, where the process works on several runs at once; by default it is 1.
    """
    begun, path = process_time(), run / _file_name.get()

    def record(share: float = 1.0) -> None:
        nonlocal begun
        now = process_time()
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": part, "cpu_seconds": round(share * (now - begun), 3)}) + "\n")
        begun = now

    return record


@contextmanager
def apart(process: str) -> Iterator[None]:
    """Inside the block, the stopwatches of this thread write into a file of their own, named after ``process``."""
    token = _file_name.set(f"times-{process}.jsonl")
    try:
        yield
    finally:
        _file_name.reset(token)


def cpu_seconds(run: Path) -> dict[str, float]:
    """The processor time in seconds that each part took in a run; nothing for a run of an earlier version."""
    total = dict.fromkeys(PARTS, 0.0)
    for path in sorted(run.glob("times*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            # A process that was killed may leave a line half-written, which is passed over.
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                total[row["part"]] += row["cpu_seconds"]
    return {part: round(seconds, 1) for part, seconds in total.items() if seconds}


def take_times(source: Path, run: Path, part: str) -> None:
    """Record that a part of a run took the time that it took in the folder ``source``, from which it was copied."""
    (run / NAME).write_text(
        json.dumps({"part": part, "cpu_seconds": cpu_seconds(source).get(part, 0.0)}) + "\n", "utf-8"
    )


def duration(seconds: float) -> str:
    """A time in words, to two digits.

    >>> duration(7.64), duration(95), duration(4000), duration(400_000)
    ('7.6 s', '1.6 min', '1.1 h', '110 h')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} s"
