"""One run of the benchmarks: draws the problems, computes reference values, runs the races and keeps the results."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.comparison import Clock, error
from benchmarks.machine import facts
from benchmarks.race import ALLOCATORS, Entry, race, run_module
from benchmarks.rows import META_GRADIENT, Row
from benchmarks.tables import print_tables
from benchmarks.workloads import SEED, WORKLOADS, save


@dataclass(frozen=True)
class Settings:
    """The options of the command line. points: the number of points of every row, or None for each row's own number."""

    rows: tuple[Row, ...]
    rounds: int
    threads: int
    allocators: tuple[str, ...]
    device: str
    out: Path
    clock: Clock = "wall"
    quick: bool = False
    points: int | None = None

    def points_of(self, row: Row) -> int:
        """The number of points, or of tasks in training, of a row."""
        if self.quick:
            return row.quick
        if self.points is None or row.quantity == "one point":
            return row.points
        return min(self.points, WORKLOADS[row.workload].size)


def run(settings: Settings) -> Path:
    """Measure every row, keep every sample as JSON, and print a table for each setting of malloc.

    Returns the path of the JSON file.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    progress = Console(stderr=True, highlight=False)
    points = {name: save(name, settings.out) for name in sorted({row.workload for row in settings.rows})}
    references = [_reference(row, settings, points[row.workload], progress) for row in settings.rows]
    record: dict[str, Any] = {
        "machine": facts(settings.device),
        "seed": SEED,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "allocators": {name: ALLOCATORS[name] for name in settings.allocators},
        "workloads": {name: WORKLOADS[name].title for name in points},
        "rows": [],
    }
    path = settings.out / "benchmarks.json"
    for allocator in settings.allocators:
        for row, reference in zip(settings.rows, references, strict=True):
            count = settings.points_of(row)
            progress.print(f"[bold]{row.workload} {row.title}[/], {count} points, malloc {allocator}")
            entries = race(
                row,
                points[row.workload],
                count=count,
                rounds=min(settings.rounds, row.max_rounds),
                threads=settings.threads,
                device=settings.device,
                allocator=allocator,
                say=lambda text: progress.print(f"  {text}"),
            )
            for entry in entries:
                entry.error = error(row, entry.values, reference["values"] if reference else None)
            record["rows"].append(kept_row(row, settings, allocator, entries, reference))
            path.write_text(json.dumps(record, indent=1))  # after every row, so that an interruption loses only one
    print_tables(record["rows"], settings.clock)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        print(f"The machine is busy (load {load:.1f} on {cores} cores): read the column cpu, or give --clock cpu.")
    print(f"Every sample is in {path}")
    return path


def _reference(row: Row, settings: Settings, points: Path, progress: Console) -> dict[str, Any] | None:
    """Reference values in float64, or None if the row has none. They are kept beside the problem for the next run."""
    if row.quantity not in ("top5", "spectrum", META_GRADIENT):
        return None
    count = settings.points_of(row)
    digest = hashlib.sha256(points.read_bytes()).hexdigest()[:12]
    path = settings.out / f"{row.workload}-{row.quantity}-{count}-{digest}.json"
    if not path.exists():
        progress.print(f"{row.workload} {row.quantity}: reference values in float64 at {count} points ...")
        order = {"workload": row.workload, "quantity": row.quantity, "points": count, "device": settings.device}
        run_module("benchmarks.reference", str(points), json.dumps(order), str(path))
    reference: dict[str, Any] = json.loads(path.read_text())
    return reference


def kept_row(
    row: Row, settings: Settings, allocator: str, entries: list[Entry], reference: dict[str, Any] | None
) -> dict[str, Any]:
    """What is kept of a row: all but whole spectra, which take megabytes and can be computed again from the seed."""
    contestants = [asdict(entry) for entry in entries]
    if row.quantity == "spectrum":
        contestants = [contestant | {"values": None} for contestant in contestants]
        reference = reference and {**reference, "values": None}
    measured = {"workload": row.workload, "quantity": row.quantity, "points": settings.points_of(row)}
    return {**measured, "allocator": allocator, "reference": reference, "contestants": contestants}
