"""The processor time that each run of a study took, as lines in a file of the run's folder.

Several processes measure one run at the same time. Each adds whole lines of its own to the end of the file, which the
operating system does not mix. Work that was cut off leaves no line, so that the sum is the time of completed work.
"""

import json
from collections.abc import Callable
from pathlib import Path
from time import process_time

NAME = "times.jsonl"
PARTS = ("train", "measure")


def stopwatch(run: Path, part: str) -> Callable[[], None]:
    """A function that records the processor time of this process since its last call, or since the watch was made.

    run: the folder of the run. part: one of ``PARTS``.
    """
    begun = process_time()

    def record() -> None:
        nonlocal begun
        now = process_time()
        with (run / NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": part, "cpu_seconds": round(now - begun, 3)}) + "\n")
        begun = now

    return record


def cpu_seconds(run: Path) -> dict[str, float]:
    """The processor time in seconds that each part took in a run; nothing for a run of an earlier version."""
    path, total = run / NAME, dict.fromkeys(PARTS, 0.0)
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            total[row["part"]] += row["cpu_seconds"]
        except (ValueError, KeyError, TypeError):  # a line that a killed process left half-written
            continue
    return {part: round(seconds, 1) for part, seconds in total.items() if seconds}
