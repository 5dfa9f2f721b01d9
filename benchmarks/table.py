"""The table that is printed."""

from rich.table import Table

from benchmarks.standing import Line


def table(lines: list[Line], title: str) -> Table:
    """One line for each pair of a row and a contestant."""
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("work", "task", "against", "goal", "ratio", "rounds", "cpu", "met"):
        drawn.add_column(name)
    for name in ("ours", "theirs", "first ours", "theirs", "error ours", "theirs", "products ours", "theirs"):
        drawn.add_column(name, justify="right")
    for line in lines:
        drawn.add_row(*cells(line))
    return drawn


def cells(line: Line) -> list[str]:
    """What a line says, as text."""
    sign = "<=" if line.row.at_most else ">="
    goal = "" if line.goal is None else f"{sign} {line.goal:g}"
    head = [line.row.workload, line.row.title, line.contestant, goal]
    if line.absent or line.low is None or line.high is None:
        return [*head, line.absent or ""] + [""] * 11
    return [
        *head,
        _number(line.ratio),
        f"{_number(line.low)}-{_number(line.high)}",
        _number(line.cpu_ratio),
        line.met,
        *(_time(t) for t in (line.ours, line.theirs, line.first_ours, line.first_theirs)),
        *("" if e is None else f"{e:.0e}" for e in (line.error_ours, line.error_theirs)),
        *(_number(n) for n in (line.matvecs_ours, line.matvecs_theirs)),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
