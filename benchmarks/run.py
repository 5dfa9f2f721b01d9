"""One run of the benchmarks: draws the problems, computes reference values, runs the races and keeps the results."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.comparison import error
from benchmarks.machine import facts
from benchmarks.race import ALLOCATORS, Entry, race
from benchmarks.reference import reference
from benchmarks.rows import META_GRADIENT, Row
from benchmarks.settings import Settings
from benchmarks.tables import print_tables
from benchmarks.workloads import SEED, WORKLOADS, load, save


def run(rows: tuple[Row, ...], settings: Settings) -> Path:
    """Measure every row, keep every sample as JSON, and print a table for each setting of malloc.

    Returns the path of the JSON file.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    progress = Console(stderr=True, highlight=False)
    if settings.before is not None:
        rows = tuple(row.with_before for row in rows)
    files = {name: save(name, settings.out) for name in sorted({row.workload for row in rows})}
    counts = [num_points(row, settings) for row in rows]
    references = [
        _reference(row, files[row.workload], count, settings, progress) for row, count in zip(rows, counts, strict=True)
    ]
    rounds = 1 if settings.quick else settings.rounds
    record: dict[str, Any] = {
        "machine": facts(settings.device),
        "seed": SEED,
        "threads": settings.threads,
        "rounds": rounds,
        "allocators": {name: ALLOCATORS[name] for name in settings.allocators},
        "workloads": {name: WORKLOADS[name].title for name in files},
        "rows": [],
    }
    path = settings.out / "benchmarks.json"
    for allocator in settings.allocators:
        for row, count, row_reference in zip(rows, counts, references, strict=True):
            progress.print(f"[bold]{row.workload} {row.title}[/], {count} points, malloc {allocator}")
            entries = race(
                row,
                files[row.workload],
                count=count,
                rounds=min(rounds, row.max_rounds),
                threads=settings.threads,
                device=settings.device,
                allocator=allocator,
                before=settings.before and settings.before.absolute(),
                say=lambda text: progress.print(f"  {text}"),
            )
            for entry in entries:
                entry.error = error(row, entry.values, row_reference["values"] if row_reference else None)
            record["rows"].append(kept_row(row, count, allocator, entries, row_reference))
            path.write_text(json.dumps(record, indent=1))  # after every row, so that an interruption loses only one
    print_tables(record["rows"], settings.clock)
    busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    if busy > cores:
        print(f"The machine is busy (load {busy:.1f} on {cores} cores): read the column cpu, or give --clock cpu.")
    print(f"Every sample is in {path}")
    return path


def num_points(row: Row, settings: Settings) -> int:
    """The number of points, or of tasks in training, of a row."""
    if settings.quick:
        return row.quick
    if settings.points is None or row.quantity == "one point":
        return row.points
    return min(settings.points, WORKLOADS[row.workload].size)


def _reference(row: Row, file: Path, count: int, settings: Settings, progress: Console) -> dict[str, Any] | None:
    """Reference values in float64, or None if the row has none. They are kept beside the problem for the next run."""
    if row.quantity not in ("top5", "spectrum", META_GRADIENT):
        return None
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    path = settings.out / f"{row.workload}-{row.quantity}-{count}-{digest}.json"
    if not path.exists():
        progress.print(f"{row.workload} {row.quantity}: reference values in float64 at {count} points ...")
        problem = load(row.workload, file).first(count).to(settings.device, torch.float64)
        path.write_text(json.dumps(reference(problem, row.quantity)))
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored


def kept_row(
    row: Row, count: int, allocator: str, entries: list[Entry], reference: dict[str, Any] | None
) -> dict[str, Any]:
    """A row as it is stored: without whole spectra, which take megabytes and can be computed again from the seed."""
    contestants = [asdict(entry) for entry in entries]
    if row.quantity == "spectrum":
        contestants = [contestant | {"values": None} for contestant in contestants]
        reference = reference and {**reference, "values": None}
    measured = {"workload": row.workload, "quantity": row.quantity, "points": count}
    return {**measured, "allocator": allocator, "reference": reference, "contestants": contestants}
