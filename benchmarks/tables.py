"""Prints the tables of a run; ``python -m benchmarks.tables benchmarks.json`` prints those of earlier runs again."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from benchmarks.comparison import Line, compare
from benchmarks.race import Entry
from benchmarks.rows import BEFORE, ROWS
from benchmarks.settings import Clock

SIDES = ("ours", "theirs")
app = App(name="python -m benchmarks.tables", help="Prints the tables of earlier runs.", version_flags=[])


@app.default
def main(*files: Path, clock: Annotated[Clock, Parameter(help="The clock for ratios.")] = "wall") -> None:
    """Print one table for each setting of malloc, with the rows of all files."""
    print_tables([row for file in files for row in json.loads(file.read_text())["rows"]], clock)


def print_tables(rows: list[dict[str, Any]], clock: Clock) -> None:
    """Print one table for each setting of malloc. rows: stored rows, which ``benchmarks.run.kept_row`` has made."""
    console = Console(width=200)
    for allocator in dict.fromkeys(row["allocator"] for row in rows):
        lines = [line for row in rows if row["allocator"] == allocator for line in _lines(row, clock)]
        title = f"malloc {allocator}, {clock} clock"
        drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for name in ("work", "task", "against", "goal", "ratio", "rounds", "cpu", "reached"):
            drawn.add_column(name)
        for name in ("", "first ", "error ", "products "):
            for side in SIDES:
                drawn.add_column(name + side, justify="right")
        for line in lines:
            drawn.add_row(*cells(line))
        console.print(drawn)
        for line in lines:
            if line.share is not None:
                console.print(
                    f"{line.row.workload}: in one of our products, the convolutions reach {line.share:.0%} of the rate "
                    "(operations per second) of a large matrix product"
                )
        console.print()


def cells(line: Line) -> list[str]:
    """The text of each cell of a line."""
    limit = "<=" if line.row.at_most else ">="
    goal = "" if line.rival.goal is None else f"{limit} {line.rival.goal:g}"
    head = [line.row.workload, line.row.title, line.rival.contestant.rpartition(".")[2], goal]
    if line.ours is None or line.theirs is None:
        reason = line.absent or ""  # the reason why there are no figures
        return [*head, reason] + [""] * 11  # the rest of the 16 columns
    sides = (line.ours, line.theirs)
    return [
        *head,
        _number(line.ratio),
        f"{_number(line.low)}-{_number(line.high)}",
        _number(line.cpu_ratio),
        line.goal_reached,
        *(_time(side.seconds) for side in sides),
        *(_time(side.first) for side in sides),  # the times of the first calls
        *("" if side.error is None else f"{side.error:.0e}" for side in sides),
        *(_number(side.matvecs) for side in sides),
    ]


def _lines(stored: dict[str, Any], clock: Clock) -> list[Line]:
    """The lines of a stored row, one for each rival."""
    row = next(row for row in ROWS if (row.workload, row.quantity) == (stored["workload"], stored["quantity"]))
    entries = [Entry(**contestant) for contestant in stored["contestants"]]
    if entries[-1].contestant == BEFORE:
        # The run had the option --before. It measured two contestants: ours, and ours of another checkout as the only
        # rival. A row of any other run has other rivals.
        row = row.with_before
    return compare(row, entries, stored["points"], clock)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


if __name__ == "__main__":
    app()
