"""What a report says of learning: SHOT's paired difference in accuracy, and how soon each learner reaches a level.

Both tables read the evaluations on held-out tasks at every checkpoint. For regression they show the query loss, of
which lower is better.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from analysis.drawing.style import method_label
from analysis.drawing.summary import evaluated, has_accuracy
from analysis.report.page import DASH, Html, element, interval, number, row, table
from analysis.schema import learner_names, shot_pairs, trained_learners
from analysis.statistics import Interval, seed_interval, seed_means

SHARES = (0.25, 0.5, 0.75)
_DIFFERENCE = (
    "{what} of the learner with SHOT minus that of its twin without, after {last} meta-iterations. Single seeds: mean "
    "over the held-out tasks, paired task by task, with a {level:g} % Student t interval over these tasks. All seeds: "
    "mean of the seeds' means with the interval over the seeds. {count}"
)
_SPEED = (
    "The meta-iteration at which the mean over held-out tasks first reaches a level, by linear interpolation between "
    "checkpoints; one number for each of the seeds {seeds}, {dash} where the level is not reached. The levels lie a "
    "quarter, half and three quarters of the way from the untrained network to the best mean of this study. Noise "
    "crosses levels too: a mean at one checkpoint is known to about ± {half} (median half {level:g} % interval over "
    "tasks)."
)


def learning_section(ds: xr.Dataset, *, confidence: float = 0.95) -> list[Html]:
    """The headings and tables that this study has something to say in; often none, as in a study without training."""
    parts = []
    if (differences := shot_table(ds, confidence=confidence)) is not None:
        parts += [element("h3", "SHOT against the same learner without it"), differences]
    if (speed := speed_table(ds, confidence=confidence)) is not None:
        parts += [element("h3", f"Meta-iterations to a given {'accuracy' if has_accuracy(ds) else 'loss'}"), speed]
    return parts


def shot_differences(ds: xr.Dataset, with_shot: str, without: str) -> np.ndarray:
    """With SHOT minus without [seed, task] at the last checkpoint, in % for accuracy; NaN where either diverged."""
    names = learner_names(ds)
    last = _values(ds).isel(checkpoint=-1)
    ours, theirs = (last.isel(learner=names.index(name)) for name in (with_shot, without))
    return (ours - theirs).transpose("seed", "evaluation_task").values


def shot_table(ds: xr.Dataset, *, confidence: float = 0.95) -> Html | None:
    """One row for each seed of each pair and, with several seeds, one over them; None without a pair to compare."""
    rows, of_seeds = [], []
    for with_shot, without in shot_pairs(ds):
        differences = shot_differences(ds, with_shot, without)
        if not np.isfinite(differences).any():
            continue
        label = f"{method_label(with_shot)} against {method_label(without)}"
        intervals = [seed_interval(tasks, confidence=confidence) for tasks in differences]
        of_seeds.append(intervals)
        rows += [
            row((label, str(int(seed)), *_difference(one)))
            for seed, one in zip(ds["seed"].values, intervals, strict=True)
        ]
        if len(intervals) > 1:
            over_seeds = seed_interval(seed_means(differences), confidence=confidence)
            rows.append(row((label, "all", *_difference(over_seeds)), css="total"))
    if not rows:
        return None
    accuracy = has_accuracy(ds)
    caption = _DIFFERENCE.format(
        what="Query accuracy" if accuracy else "Query loss (lower is better)",
        last=int(ds["checkpoint"][-1]),
        level=100 * confidence,
        count=counted(of_seeds),
    )
    unit = "% points" if accuracy else "loss"
    return table(("Learner", "Seed", f"Difference, {unit}", "Interval"), rows, caption=caption)


def counted(of_seeds: Sequence[Sequence[Interval]]) -> str:
    """How many differences [pair][seed] their intervals tell from 0, and in how many pairs all seeds agree in sign."""
    known = [one for intervals in of_seeds for one in intervals if one.num]
    above, below = sum(one.low > 0 for one in known), sum(one.high < 0 for one in known)
    text = f"Of these {len(known)} differences of single seeds {above} lie above 0 by their interval, {below} below"
    signs = [[one.mean > 0 for one in intervals if one.num] for intervals in of_seeds]
    several = [each for each in signs if len(each) > 1]
    if not several:
        return f"{text}; one seed is no evidence on learners."
    return (
        f"{text}; the seeds agree in sign for {sum(len(set(each)) == 1 for each in several)} of {len(several)} pairs."
    )


def speed_table(ds: xr.Dataset, *, confidence: float = 0.95) -> Html | None:
    """One row for each trained learner, one column for each level; None where no learner improves on its start."""
    levels = accuracy_levels(ds)
    if not levels:
        return None
    accuracy, values = has_accuracy(ds), _values(ds)
    unit = " %" if accuracy else ""
    half = np.nanmedian(np.apply_along_axis(_half, values.get_axis_num("evaluation_task"), values.values, confidence))
    caption = _SPEED.format(
        seeds=", ".join(str(int(seed)) for seed in ds["seed"].values),
        dash=DASH,
        half=f"{number(float(half), digits=2)}{unit}",
        level=100 * confidence,
    )
    rows = []
    for name in trained_learners(ds):
        reached = [meta_iterations(ds, name, level) for level in levels]
        rows.append(row((method_label(name), *(", ".join(_iteration(step) for step in steps) for steps in reached))))
    return table(("Learner", *(f"{number(level)}{unit}" for level in levels)), rows, caption=caption)


def accuracy_levels(ds: xr.Dataset) -> list[float]:
    """Three levels between the untrained network and the best mean of a trained learner, to three digits."""
    names = trained_learners(ds)
    if not names or ds.sizes["checkpoint"] < 2 or int(ds["checkpoint"][0]) != 0:
        return []
    values = _values(ds).isel(learner=[learner_names(ds).index(name) for name in names])
    means = values.mean("evaluation_task").mean("seed")
    start = float(means.isel(checkpoint=0).mean())
    best = float(means.max() if has_accuracy(ds) else means.min())
    improves = best > start if has_accuracy(ds) else best < start
    return [float(f"{start + share * (best - start):.3g}") for share in SHARES] if improves else []


def meta_iterations(ds: xr.Dataset, name: str, level: float) -> list[float | None]:
    """For each seed the meta-iteration at which a learner first reaches a level, in % for accuracy; None for never."""
    means = _values(ds).isel(learner=learner_names(ds).index(name)).mean("evaluation_task")
    sign = 1 if has_accuracy(ds) else -1
    steps = ds["checkpoint"].values
    return [crossing(steps, sign * curve, sign * level) for curve in means.transpose("seed", "checkpoint").values]


def crossing(steps: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray, level: float) -> float | None:
    """The step at which a broken line first rises to a level, or None; points that are NaN are left out.

    >>> crossing([0, 10, 20], [20, 40, 50], 30)
    5.0
    """
    points = [(float(step), float(value)) for step, value in zip(steps, values, strict=True) if np.isfinite(value)]
    if points and points[0][1] >= level:
        return points[0][0]
    for (a, low), (b, high) in pairwise(points):
        if high >= level:
            return a + (b - a) * (level - low) / (high - low)
    return None


def _values(ds: xr.Dataset) -> xr.DataArray:
    """Every evaluation, accuracies in %."""
    return evaluated(ds) * (100 if has_accuracy(ds) else 1)


def _half(values: np.ndarray, confidence: float) -> float:
    one = seed_interval(values, confidence=confidence)
    return (one.high - one.low) / 2


def _difference(one: Interval) -> tuple[Html, Html]:
    texts = (number(one.mean, signed=True), interval(one.low, one.high))
    return element("span", texts[0], css="num"), element("span", texts[1], css="num")


def _iteration(step: float | None) -> str:
    return DASH if step is None else f"{step:.0f}"
