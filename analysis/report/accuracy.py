"""The accuracy table of a report: the untrained and the trained network, for each seed and for all seeds."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from analysis.drawing.legend import warm_start_sentence
from analysis.drawing.style import method_label
from analysis.evaluation import has_accuracy, percent_scores
from analysis.report.page import DASH, MINUS, Html, element, row, table
from analysis.schema import has_seed, learner_names, with_seeds_of
from analysis.statistics import mean_interval, seed_means


def accuracy_table(ds: xr.Dataset, *, confidence: float = 0.95) -> Html:
    """Make the table of query accuracy (for regression, query loss) after adaptation on held-out tasks.

    The table compares each learner's last checkpoint with its checkpoint 0. If there are no values, a sentence says so.
    """
    is_accuracy = has_accuracy(ds)
    values = percent_scores(ds)
    if not bool(values.notnull().any()):
        any_done = bool((ds["evaluation_done"] == 1).any())
        return element("p", "Every evaluation diverged." if any_done else "No held-out task was evaluated.")
    unit, decimals = ("%", 1) if is_accuracy else ("loss", 3)
    header = ("Learner", "Meta-iteration", "Seed", f"Untrained, {unit}", f"Trained, {unit}", "Difference", "Tasks")
    rows = [line for name in learner_names(ds) for line in _learner_rows(ds, values, name, decimals, confidence)]
    interval = f"a {100 * confidence:g} % Student t interval"
    cut = "An interval that passes 0 or 100 % is written with its ends, cut there. " if is_accuracy else ""
    caption = (
        f"Query {'accuracy' if is_accuracy else 'loss (lower is better)'} after the inner loop on held-out tasks. "
        f"A row of a single seed shows the mean ± half the width of {interval} over that seed's tasks, and its "
        "difference is paired task by task. A row of all seeds shows the mean of the seeds' means ± half the width of "
        f"{interval} over the seeds. {cut}{warm_start_sentence(ds)}"
    )
    return table(header, rows, caption=caption.rstrip())


def _learner_rows(ds: xr.Dataset, values: xr.DataArray, name: str, decimals: int, confidence: float) -> list[Html]:
    """The rows of one learner: one for each seed and, if there are several seeds, one for all of them.

    values: the scores of the whole study, in the unit of the table.
    """
    limits = (0.0, 100.0) if has_accuracy(ds) else (-np.inf, np.inf)
    ds, values = with_seeds_of(ds, name), values.isel(seed=has_seed(ds, name))
    scores = values.sel(learner=name).transpose("checkpoint", "seed", "evaluation_task").values
    done = ds["evaluation_done"].sel(learner=name).transpose("checkpoint", "seed").values == 1
    checkpoints = ds["checkpoint"].values
    measured = np.flatnonzero(np.isfinite(scores).any((1, 2)))  # the positions of the checkpoints with scores
    if measured.size == 0:
        return [row((method_label(name), DASH, "all", DASH, DASH, DASH, _task_count(scores, done)))]
    last = measured[-1]
    absent = np.full_like(scores[0], np.nan)
    # ``start`` is NaN if the study has no checkpoint 0, and ``end`` if the learner has scores at checkpoint 0 alone.
    start = scores[0] if checkpoints[0] == 0 else absent
    end = scores[last] if checkpoints[last] > 0 else absent
    head = (method_label(name), str(checkpoints[last]))
    rows = []
    for index, seed in enumerate(ds["seed"].values):
        cells = _cells([column[index] for column in (start, end, end - start)], decimals, confidence, limits)
        rows.append(row((*head, str(seed), *cells, _task_count(scores[last, index], done[last, index]))))
    if len(rows) > 1:
        cells = _cells([seed_means(column) for column in (start, end, end - start)], decimals, confidence, limits)
        rows.append(row((*head, "all", *cells, _task_count(scores[last], done[last])), css="total"))
    return rows


def _task_count(scores: np.ndarray, done: np.ndarray) -> str:
    """The number of tasks with a score and, if any diverged, the number of these: '100', or '98; 2 diverged'.

    scores [..., task]: NaN where a task has no score. done [...]: True where the tasks were evaluated.
    """
    finite = np.isfinite(scores)
    lost = int((~finite & np.asarray(done)[..., None]).sum())
    return f"{finite.sum()}; {lost} diverged" if lost else str(finite.sum())


def _cells(columns: Sequence[np.ndarray], decimals: int, confidence: float, limits: tuple[float, float]) -> list[Html]:
    """Three cells: the untrained network, the trained one and the difference. ``columns`` holds the values of each.

    Each cell is a mean ± half the width of its interval; the difference is written with its sign.
    limits: the smallest and the largest possible value of a score. An interval that passes one of them is written with
        its ends, which are cut there.
    """
    cells = []
    widest = limits[1] - limits[0]  # the largest possible difference
    for values, sign, (least, most) in zip(columns, ("", "", "+"), (limits, limits, (-widest, widest)), strict=True):
        interval = mean_interval(values, confidence=confidence)
        text = f"{interval.mean:{sign}.{decimals}f}" if np.isfinite(interval.mean) else DASH
        if interval.low < least or interval.high > most:
            low, high = max(interval.low, least), min(interval.high, most)
            text += f" ({low:{sign}.{decimals}f} to {high:{sign}.{decimals}f})"
        elif np.isfinite(interval.half_width):
            text += f" ± {interval.half_width:.{decimals}f}"
        cells.append(element("span", text.replace("-", MINUS), css="num"))
    return cells
