"""One run: points, references, races, table, JSON."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import workloads
from benchmarks.machine import facts
from benchmarks.rounds import ALLOCATORS, Entry, race, run_module
from benchmarks.rows import Row
from benchmarks.standing import Line, standing
from benchmarks.table import table


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    rows: tuple[Row, ...]
    rounds: int
    threads: int
    allocators: tuple[str, ...]
    device: str
    out: Path
    quick: bool = False
    full: bool = False

    def points(self, row: Row) -> int:
        """How many points a row is measured at."""
        if self.quick:
            return row.quick
        return workloads.WORKLOADS[row.workload].num_points if self.full and row.quantity == "top5" else row.points


def run(settings: Settings) -> Path:
    """Print a table for each allocator setting; the path of the JSON with every sample."""
    settings.out.mkdir(parents=True, exist_ok=True)
    console, progress = Console(width=200), Console(stderr=True)
    names = sorted({row.workload for row in settings.rows})
    points = {name: workloads.save(name, settings.out) for name in names}
    truths = {
        (row.workload, row.quantity): _truth(row, settings, points[row.workload], progress) for row in settings.rows
    }
    record: dict[str, Any] = _head(settings, truths)
    path = settings.out / "benchmarks.json"
    for allocator in settings.allocators:
        lines: list[Line] = []
        for row in settings.rows:
            progress.print(f"[bold]{row.workload} {row.title}[/], {settings.points(row)} points, malloc {allocator}")
            entries = _race(row, settings, points[row.workload], allocator, progress)
            truth = truths[row.workload, row.quantity]
            lines += standing(row, entries, settings.points(row), truth and truth["values"])
            record["rows"].append(_kept(row, settings, allocator, entries))
            path.write_text(json.dumps(record, indent=1))
        console.print(table(lines, f"malloc {allocator}, {settings.threads} thread(s), {settings.device}"))
        console.print()
    console.print(f"every sample: {path}")
    return path


def _race(row: Row, settings: Settings, points: Path, allocator: str, progress: Console) -> list[Entry]:
    return race(
        row,
        points,
        count=settings.points(row),
        rounds=min(settings.rounds, row.most_rounds),
        threads=settings.threads,
        device=settings.device,
        allocator=allocator,
        say=lambda text: progress.print(f"  {text}", highlight=False),
    )


def _truth(row: Row, settings: Settings, points: Path, progress: Console) -> dict[str, Any] | None:
    """Reference eigenvalues, kept beside the points for the next run; None where there are none to compare."""
    if row.quantity not in ("top5", "spectrum"):
        return None
    count = settings.points(row)
    digest = hashlib.sha256(points.read_bytes()).hexdigest()[:12]
    path = settings.out / f"{row.workload}-{row.quantity}-{count}-{digest}.json"
    if not path.exists():
        progress.print(f"{row.workload} {row.quantity}: reference values in float64 at {count} points ...")
        order = {"workload": row.workload, "quantity": row.quantity, "points": count, "device": settings.device}
        run_module("benchmarks.reference", str(points), json.dumps(order), str(path))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _head(settings: Settings, truths: dict[tuple[str, str], dict[str, Any] | None]) -> dict[str, Any]:
    return {
        "machine": facts(settings.device),
        "seed": workloads.SEED,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "allocators": {name: ALLOCATORS[name] for name in settings.allocators},
        "workloads": {name: load.title for name, load in workloads.WORKLOADS.items()},
        "references": {f"{load} {what}": found for (load, what), found in truths.items() if found},
        "rows": [],
    }


def _kept(row: Row, settings: Settings, allocator: str, entries: list[Entry]) -> dict[str, Any]:
    """All that was measured; values once, from the last round."""
    kept = [asdict(entry) for entry in entries]
    for entry in kept:
        last = entry["samples"][-1] if entry["samples"] else {}
        entry["values"], entry["stderr"] = last.get("values"), last.get("stderr")
        for sample in [entry["first"] or {}, *entry["samples"]]:
            sample.pop("values", None)
            sample.pop("stderr", None)
    what = {"workload": row.workload, "quantity": row.quantity, "points": settings.points(row)}
    return {**what, "allocator": allocator, "contestants": kept}
