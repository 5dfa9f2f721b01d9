"""The tables of runs kept as JSON, again: ``python -m benchmarks.show runs/benchmarks/benchmarks.json``."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console

from benchmarks.rounds import Entry
from benchmarks.rows import ROWS, Row
from benchmarks.standing import Clock, Line, standing
from benchmarks.table import table

app = App(name="python -m benchmarks.show", help="Print the tables of runs that were kept.", version_flags=[])


@app.default
def main(
    *files: Path,
    clock: Annotated[Literal["wall", "cpu"], Parameter(help="What ratios are taken of.")] = "wall",
) -> None:
    """One table for each allocator setting, over all files."""
    records = [json.loads(file.read_text()) for file in files]
    show([row for record in records for row in record["rows"]], clock)


def show(rows: list[dict[str, Any]], clock: Clock) -> None:
    """Print rows as a run keeps them."""
    console = Console(width=200)
    for allocator in dict.fromkeys(row["allocator"] for row in rows):
        lines = [line for row in rows if row["allocator"] == allocator for line in _lines(row, clock)]
        console.print(table(lines, f"malloc {allocator}, {clock} clock"))
        for line in lines:
            if line.share is not None:
                console.print(f"{line.row.workload}: convolutions of a product at {line.share:.0%} of the matmul rate")
        console.print()


def _lines(kept: dict[str, Any], clock: Clock) -> list[Line]:
    entries = [Entry(**contestant) for contestant in kept["contestants"]]
    return standing(_row(kept), entries, kept["points"], clock)


def _row(kept: dict[str, Any]) -> Row:
    return next(row for row in ROWS if (row.workload, row.quantity) == (kept["workload"], kept["quantity"]))


if __name__ == "__main__":
    app()
