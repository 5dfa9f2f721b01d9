"""Turns samples into medians, ratios and errors, and decides whether a goal is reached.

A sample is one timed run of a contestant: of this library ("ours") or of a rival ("theirs").
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.race import Entry
from benchmarks.rows import MAX_ERROR, META_GRADIENT, SHOT_COST, Rival, Row
from benchmarks.settings import Clock

CLOCKS = {"wall": "seconds", "cpu": "cpu_seconds"}


@dataclass(frozen=True)
class Figures:
    """The figures of one contestant for a row of the table, which is a quantity measured on a work load.

    seconds: the median over the rounds of the time of one run; in a "products" row, of the time of one product.
    first: the seconds of the whole first call. This is not divided by the number of products in a "products" row,
    because the network is traced once, however many products follow.
    error: the error of the values against the reference, as ``error`` measures it. matvecs: the number of products at
    one point.
    """

    seconds: float
    first: float | None
    error: float | None
    matvecs: float | None


@dataclass(frozen=True)
class Line:
    """One line of a table: ours compared with one rival.

    absent: the reason why there are no figures. ratio: the ratio of the medians: theirs over ours or, if the goal is an
    upper limit, ours over theirs. low, high: the smallest and the largest ratio of a round. cpu_ratio: the ratio of the
    processor times, on which other users of the machine have less effect. share: the operations per second of the
    convolutions in one of our products, as a fraction of the rate of a large matrix product.
    """

    row: Row
    rival: Rival
    absent: str | None = None
    ours: Figures | None = None
    theirs: Figures | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    cpu_ratio: float | None = None
    share: float | None = None

    @property
    def goal_reached(self) -> str:
        """The answer: "yes", "stretch" (even the harder goal is reached), "no", or "-" without a goal or figures."""
        goal, stretch = self.rival.goal, self.rival.stretch
        if goal is None or self.ratio is None or self.ours is None:
            return "-"
        if self.row.at_most:
            return "yes" if self.ratio <= goal else "no"
        # A wrong answer fails the goal at any speed.
        if self.row.quantity == "top5" and (self.ours.error is None or self.ours.error >= MAX_ERROR):
            return "no (error)"
        if stretch is not None and self.ratio >= stretch:
            return "stretch"
        return "yes" if self.ratio >= goal else "no"


def compare(row: Row, entries: list[Entry], points: int, clock: Clock = "wall") -> list[Line]:
    """Compare the first entry, which is ours, with each of the others.

    points: the number of points of the row. clock: the clock for ratios and goals.
    """
    ours, *others = entries
    return [_line(row, rival, ours, theirs, points, clock) for rival, theirs in zip(row.rivals, others, strict=True)]


def _line(row: Row, rival: Rival, ours: Entry, theirs: Entry, points: int, clock: Clock) -> Line:
    """The comparison of our entry with that of one rival."""
    absent = f"ours: {ours.absent}" if ours.absent else theirs.absent
    if absent or not (ours.samples and theirs.samples):
        return Line(row, rival, absent or "no round")

    def ratio(our_time: float, their_time: float) -> float:
        return our_time / their_time if row.at_most else their_time / our_time

    own, peers = (_figures(row, entry, points, clock) for entry in (ours, theirs))
    our_times, their_times = (_times(row, entry.samples, clock) for entry in (ours, theirs))
    our_cpu, their_cpu = (_times(row, entry.samples, "cpu") for entry in (ours, theirs))
    ratios = [ratio(a, b) for a, b in zip(our_times, their_times, strict=True)]
    last, share = theirs.samples[-1], None
    if "matmul_flop_per_second" in last:  # only the contestant "floor" measures this, and only on a GPU
        share = float(last["product_flop"] / own.seconds / last["matmul_flop_per_second"])
    return Line(
        row,
        rival,
        ours=own,
        theirs=peers,
        ratio=ratio(own.seconds, peers.seconds),
        low=min(ratios),
        high=max(ratios),
        cpu_ratio=ratio(median(our_cpu), median(their_cpu)),
        share=share,
    )


def _figures(row: Row, entry: Entry, points: int, clock: Clock) -> Figures:
    first = None if entry.first is None else entry.first[CLOCKS[clock]]
    # The benchmark itself sets how many products a "products" row computes, and meta-gradients compute none.
    counts_products = row.quantity not in ("products", META_GRADIENT, SHOT_COST)
    matvecs = entry.samples[-1]["num_matvecs"] / points if counts_products else None
    return Figures(median(_times(row, entry.samples, clock)), first, entry.error, matvecs)


def _times(row: Row, samples: list[dict[str, Any]], clock: Clock) -> list[float]:
    """The seconds of each sample; in a "products" row, those of one product."""
    products = row.quantity == "products"
    return [sample[CLOCKS[clock]] / (sample["num_matvecs"] if products else 1) for sample in samples]


def error(row: Row, values: list[list[float]] | None, reference: list[list[float]] | None) -> float | None:
    """The error of values [point][number], measured as their row requires; None if there is nothing to compare."""
    if values is None or reference is None:
        return None
    if row.quantity == META_GRADIENT:
        return error_of_vector(values, reference)
    return (worst_error if row.quantity == "top5" else error_to_norm)(values, reference)


def worst_error(values: list[list[float]], reference: list[list[float]]) -> float:
    """The largest relative error of eigenvalue magnitudes.

    Both sides are sorted by magnitude, so that the order of values of equal magnitude does not matter.
    """
    ours, true = (torch.tensor(v, dtype=torch.float64).abs().sort(-1).values for v in (values, reference))
    return float(((ours - true).abs() / true).max())


def error_to_norm(values: list[list[float]], reference: list[list[float]]) -> float:
    """The largest error of an eigenvalue, over the largest magnitude at its point; both sides are sorted by value."""
    ours, true = (torch.tensor(v, dtype=torch.float64).sort(-1).values for v in (values, reference))
    return float(((ours - true).abs().amax(-1) / true.abs().amax(-1)).max())


def error_of_vector(values: list[list[float]], reference: list[list[float]]) -> float:
    """The norm of the difference, divided by the norm of the reference."""
    ours, true = (torch.tensor(v, dtype=torch.float64) for v in (values, reference))
    return float((ours - true).norm() / true.norm())
