"""From samples to figures: medians, ratios, errors, and whether a goal is met. Pure."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.reference import error_to_norm, worst_error
from benchmarks.rounds import Entry
from benchmarks.rows import MOST_ERROR, Against, Row


@dataclass(frozen=True)
class Line:
    """Ours against one contestant.

    seconds: medians; of the whole task, or of one product where the row counts products. ratio: of the medians,
    turned as the goal is (theirs over ours, or ours over theirs). low, high: of the rounds' ratios.
    cpu_ratio: the same of processor time, which other users of the machine change less.
    """

    row: Row
    contestant: str
    absent: str | None
    goal: float | None = None
    stretch: float | None = None
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    cpu_ratio: float | None = None
    first_ours: float | None = None
    first_theirs: float | None = None
    error_ours: float | None = None
    error_theirs: float | None = None
    matvecs_ours: float | None = None
    matvecs_theirs: float | None = None

    @property
    def met(self) -> str:
        """ "yes", "stretch", "no", "-" without a goal."""
        if self.goal is None or self.ratio is None:
            return "-"
        if self.row.at_most:
            return "yes" if self.ratio <= self.goal else "no"
        if self.row.quantity == "top5" and not (self.error_ours is not None and self.error_ours < MOST_ERROR):
            return "no (error)"
        if self.stretch is not None and self.ratio >= self.stretch:
            return "stretch"
        return "yes" if self.ratio >= self.goal else "no"


def standing(row: Row, entries: list[Entry], points: int, truth: list[list[float]] | None) -> list[Line]:
    """Ours, the first entry, against each of the others."""
    ours, *others = entries
    return [_line(row, a, ours, them, points, truth) for a, them in zip(row.against, others, strict=True)]


def _line(row: Row, against: Against, ours: Entry, theirs: Entry, points: int, truth: list[list[float]] | None) -> Line:
    absent = ours.absent and f"ours: {ours.absent}"
    absent = absent or theirs.absent
    if absent or not (ours.samples and theirs.samples):
        return Line(row, against.contestant, absent or "no round", against.goal, against.stretch)
    a, b = times(row, ours.samples), times(row, theirs.samples)
    ratios = [_turned(row, x, y) for x, y in zip(a, b, strict=True)]
    cpu = _turned(row, *(median(times(row, e.samples, "cpu_seconds")) for e in (ours, theirs)))
    return Line(
        row,
        against.contestant,
        None,
        against.goal,
        against.stretch,
        ours=median(a),
        theirs=median(b),
        ratio=_turned(row, median(a), median(b)),
        low=min(ratios),
        high=max(ratios),
        cpu_ratio=None if against.contestant == "floor" else cpu,
        first_ours=_first(row, ours),
        first_theirs=_first(row, theirs),
        error_ours=_error(row, ours, truth),
        error_theirs=_error(row, theirs, truth),
        matvecs_ours=None if row.quantity == "products" else ours.samples[-1]["num_matvecs"] / points,
        matvecs_theirs=None if row.quantity == "products" else theirs.samples[-1]["num_matvecs"] / points,
    )


def times(row: Row, samples: list[dict[str, Any]], clock: str = "seconds") -> list[float]:
    """Seconds of the whole task; of one product where the row counts products."""
    one = row.quantity == "products"
    return [s[clock] / (s["num_matvecs"] if one else 1) for s in samples]


def _turned(row: Row, ours: float, theirs: float) -> float:
    return ours / theirs if row.at_most else theirs / max(ours, 1e-12)


def _first(row: Row, entry: Entry) -> float | None:
    """The whole first call, also where the row counts products: what is traced then is traced once."""
    return None if entry.first is None else entry.first["seconds"]


def _error(row: Row, entry: Entry, truth: list[list[float]] | None) -> float | None:
    values = entry.samples[-1]["values"]
    if truth is None or values is None:
        return None
    error = worst_error if row.quantity == "top5" else error_to_norm
    return error(values, truth[: len(values)])
