"""One run: points, references, races, JSON, table."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.errors import error
from benchmarks.machine import facts
from benchmarks.places import place
from benchmarks.rounds import ALLOCATORS, Entry, race, run_module
from benchmarks.rows import META_GRADIENT, Row
from benchmarks.show import show
from benchmarks.standing import Clock
from benchmarks.workloads import SEED


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

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
        """How many points a row is measured at."""
        if self.quick:
            return row.quick
        if self.points is None or row.quantity == "one point":
            return row.points
        return min(self.points, place(row.workload).size)


def run(settings: Settings) -> Path:
    """Print a table for each allocator setting; the path of the JSON with every sample."""
    settings.out.mkdir(parents=True, exist_ok=True)
    progress = Console(stderr=True, highlight=False)
    names = sorted({row.workload for row in settings.rows})
    points = {name: place(name).save(name, settings.out) for name in names}
    truths = [_truth(row, settings, points[row.workload], progress) for row in settings.rows]
    record, path = _head(settings), settings.out / "benchmarks.json"
    for allocator in settings.allocators:
        for row, truth in zip(settings.rows, truths, strict=True):
            progress.print(f"[bold]{row.workload} {row.title}[/], {settings.points_of(row)} points, malloc {allocator}")
            entries = _race(row, settings, points[row.workload], allocator, progress)
            for entry in entries:
                entry.error = error(row, entry.values, truth["values"] if truth else None)
            record["rows"].append(kept_row(row, settings, allocator, entries, truth))
            path.write_text(json.dumps(record, indent=1))
    show(record["rows"], settings.clock)
    _remarks(settings, path)
    return path


def _race(row: Row, settings: Settings, points: Path, allocator: str, progress: Console) -> list[Entry]:
    return race(
        row,
        points,
        count=settings.points_of(row),
        rounds=min(settings.rounds, row.most_rounds),
        threads=settings.threads,
        device=settings.device,
        allocator=allocator,
        say=lambda text: progress.print(f"  {text}"),
    )


def _truth(row: Row, settings: Settings, points: Path, progress: Console) -> dict[str, Any] | None:
    """Reference eigenvalues, kept beside the points for the next run; None where there are none to compare."""
    if row.quantity not in ("top5", "spectrum", META_GRADIENT):
        return None
    count = settings.points_of(row)
    digest = hashlib.sha256(points.read_bytes()).hexdigest()[:12]
    path = settings.out / f"{row.workload}-{row.quantity}-{count}-{digest}.json"
    if not path.exists():
        progress.print(f"{row.workload} {row.quantity}: reference values in float64 at {count} points ...")
        order = {"workload": row.workload, "quantity": row.quantity, "points": count, "device": settings.device}
        run_module(place(row.workload).reference, str(points), json.dumps(order), str(path))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _head(settings: Settings) -> dict[str, Any]:
    return {
        "machine": facts(settings.device),
        "seed": SEED,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "allocators": {name: ALLOCATORS[name] for name in settings.allocators},
        "workloads": {row.workload: place(row.workload).title for row in settings.rows},
        "rows": [],
    }


def kept_row(
    row: Row, settings: Settings, allocator: str, entries: list[Entry], truth: dict[str, Any] | None
) -> dict[str, Any]:
    """All that was measured. Whole spectra are left out: they are megabytes, and follow from the seed."""
    contestants = [asdict(entry) for entry in entries]
    if row.quantity == "spectrum":
        contestants = [contestant | {"values": None} for contestant in contestants]
        truth = truth and {**truth, "values": None}
    what = {"workload": row.workload, "quantity": row.quantity, "points": settings.points_of(row)}
    return {**what, "allocator": allocator, "reference": truth, "contestants": contestants}


def _remarks(settings: Settings, path: Path) -> None:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        print(f"The machine is busy (load {load:.1f} on {cores} cores): read the column cpu, or give --clock cpu.")
    print(f"Every sample: {path}")
