"""The accuracy table of a report: every seed on its own, then over the seeds, each against its untrained start."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from analysis.drawing.legend import warm_start_sentence
from analysis.drawing.style import method_label
from analysis.drawing.summary import evaluated, has_accuracy
from analysis.report.page import DASH, MINUS, Html, element, row, table
from analysis.schema import learner_names
from analysis.statistics import Interval, seed_interval, seed_means


def accuracy_table(ds: xr.Dataset, *, confidence: float = 0.95) -> Html:
    """Query accuracy (for regression: loss) after adaptation on held-out tasks, at each learner's last checkpoint."""
    accuracy = has_accuracy(ds)
    values = evaluated(ds) * (100 if accuracy else 1)
    if not bool(values.notnull().any()):
        lost = bool((ds["evaluation_done"] == 1).any())
        return element("p", "Every evaluation diverged." if lost else "No held-out task was evaluated.")
    unit, decimals = ("%", 1) if accuracy else ("loss", 3)
    header = ("Learner", "Meta-iteration", "Seed", f"Untrained, {unit}", f"Trained, {unit}", "Difference", "Tasks")
    rows = [
        line
        for position in range(len(learner_names(ds)))
        for line in _learner_rows(ds, values, position, decimals, confidence)
    ]
    return table(header, rows, caption=f"{_caption(accuracy, 100 * confidence)} {warm_start_sentence(ds)}".rstrip())


def _caption(accuracy: bool, level: float) -> str:
    what = "Query accuracy" if accuracy else "Query loss (lower is better)"
    return (
        f"{what} after the inner loop on held-out tasks. Single seeds: mean ± half a {level:g} % Student t interval "
        "over that seed's tasks; differences are paired task by task. All seeds: mean of the seeds' means ± half a "
        f"{level:g} % Student t interval over the seeds."
    )


def _learner_rows(ds: xr.Dataset, values: xr.DataArray, position: int, decimals: int, confidence: float) -> list[Html]:
    """One row a seed and, with several seeds, one over them."""
    mine = values.isel(learner=position).transpose("checkpoint", "seed", "evaluation_task").values
    done = ds["evaluation_done"].isel(learner=position).transpose("checkpoint", "seed").values == 1
    checkpoints = [int(point) for point in ds["checkpoint"].values]
    there = np.flatnonzero(np.isfinite(mine).any((1, 2)))
    label = method_label(learner_names(ds)[position])
    if there.size == 0:
        return [row((label, DASH, "all", DASH, DASH, DASH, _count(mine, done)))]
    last = int(there[-1])
    missing = np.full_like(mine[0], np.nan)
    start = mine[0] if checkpoints[0] == 0 else missing
    end = mine[last] if checkpoints[last] > 0 else missing
    sides = (start, end, end - start)
    iteration = str(checkpoints[last])
    rows = []
    for index, seed in enumerate(ds["seed"].values):
        cells = _cells([seed_interval(side[index], confidence=confidence) for side in sides], decimals)
        tasks = _count(mine[last, index], done[last, index])
        rows.append(row((label, iteration, str(int(seed)), *cells, tasks)))
    if len(rows) > 1:
        cells = _cells([seed_interval(seed_means(side), confidence=confidence) for side in sides], decimals)
        rows.append(row((label, iteration, "all", *cells, _count(mine[last], done[last])), css="total"))
    return rows


def _count(values: np.ndarray, done: np.ndarray) -> str:
    """'100', or '98; 2 diverged': tasks [..., task] with a number, and those evaluated without one."""
    there = np.isfinite(values)
    lost = int((~there & np.asarray(done)[..., None]).sum())
    return f"{there.sum()}; {lost} diverged" if lost else str(there.sum())


def _cells(intervals: Sequence[Interval], decimals: int) -> list[Html]:
    """Start, end and change; the change with its sign."""
    signs = (False, False, True)
    texts = (_text(value, decimals, signed=signed) for value, signed in zip(intervals, signs, strict=True))
    return [element("span", text, css="num") for text in texts]


def _text(value: Interval, decimals: int, *, signed: bool) -> str:
    if not np.isfinite(value.mean):
        return DASH
    half = (value.high - value.low) / 2
    text = f"{value.mean:+.{decimals}f}" if signed else f"{value.mean:.{decimals}f}"
    text = text.replace("-", MINUS)
    return f"{text} ± {half:.{decimals}f}" if np.isfinite(half) else text
