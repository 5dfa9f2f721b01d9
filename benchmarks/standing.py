"""From samples to figures: medians, ratios, errors, and whether a goal is met. Pure."""

from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from benchmarks.rounds import Entry
from benchmarks.rows import META_GRADIENT, MOST_ERROR, SHOT_COST, Against, Row

Clock = Literal["wall", "cpu"]
CLOCKS = {"wall": "seconds", "cpu": "cpu_seconds"}


@dataclass(frozen=True)
class Line:
    """Ours against one contestant.

    seconds: medians; of the whole task, or of one product where the row counts products. ratio: of the medians,
    turned as the goal is (theirs over ours, or ours over theirs). low, high: of the rounds' ratios. share: of the
    rate of matrix products, that the convolutions of one of our products reach.
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
    share: float | None = None

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


def standing(row: Row, entries: list[Entry], points: int, clock: Clock = "wall") -> list[Line]:
    """Ours, the first entry, against each of the others. clock: which one ratios and the goal are judged by."""
    ours, *others = entries
    return [_line(row, a, ours, them, points, clock) for a, them in zip(row.against, others, strict=True)]


def _line(row: Row, against: Against, ours: Entry, theirs: Entry, points: int, clock: Clock) -> Line:
    absent = f"ours: {ours.absent}" if ours.absent else theirs.absent
    if absent or not (ours.samples and theirs.samples):
        return Line(row, against.contestant, absent or "no round", against.goal, against.stretch)
    a, b = times(row, ours.samples, clock), times(row, theirs.samples, clock)
    ratios = [_turned(row, x, y) for x, y in zip(a, b, strict=True)]
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
        cpu_ratio=_turned(row, *(median(times(row, e.samples, "cpu")) for e in (ours, theirs))),
        first_ours=_first(ours, clock),
        first_theirs=_first(theirs, clock),
        error_ours=ours.error,
        error_theirs=theirs.error,
        matvecs_ours=_matvecs(row, ours, points),
        matvecs_theirs=_matvecs(row, theirs, points),
        share=_share(median(a), theirs.samples[-1]),
    )


def times(row: Row, samples: list[dict[str, Any]], clock: Clock) -> list[float]:
    """Seconds of the whole task; of one product where the row counts products."""
    one = row.quantity == "products"
    return [s[CLOCKS[clock]] / (s["num_matvecs"] if one else 1) for s in samples]


def _turned(row: Row, ours: float, theirs: float) -> float:
    return ours / theirs if row.at_most else theirs / ours


def _first(entry: Entry, clock: Clock) -> float | None:
    """The whole first call, also where the row counts products: what is traced then is traced once."""
    return None if entry.first is None else entry.first[CLOCKS[clock]]


def _matvecs(row: Row, entry: Entry, points: int) -> float | None:
    """Products a point."""
    return None if row.quantity in ("products", META_GRADIENT, SHOT_COST) else entry.samples[-1]["num_matvecs"] / points


def _share(seconds: float, floor: dict[str, Any]) -> float | None:
    """Of the rate of matrix products; None where that was not measured."""
    if "matmul_flop_per_second" not in floor:
        return None
    return float(floor["product_flop"] / seconds / floor["matmul_flop_per_second"])
