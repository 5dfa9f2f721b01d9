"""Two tables of a report: SHOT's effect on accuracy, and how many meta-iterations learners need for a given accuracy.

SHOT is the penalty on the distance between the ends of few large and of many small inner steps (Lee, Yoo, Kwak 2023).
Both tables use the evaluations on held-out tasks at the checkpoints. For regression, they show the query loss in place
of the accuracy; a lower loss is better.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from analysis.drawing.style import method_label
from analysis.evaluation import has_accuracy, percent_scores
from analysis.report.page import DASH, Html, element, interval, number, row, table
from analysis.schema import shot_pairs, shows_training, trained_learners, with_seeds_of
from analysis.statistics import Interval, mean_interval, seed_means

# The levels of the second table, as fractions of the way from the untrained network to the best mean of the study.
LEVEL_FRACTIONS = (0.25, 0.5, 0.75)
# The captions of the two tables.
_DIFFERENCE = (
    "{what} of the learner with SHOT minus that of the same learner without SHOT, after {last} meta-iterations. A row "
    "of a single seed shows the mean of the differences over the held-out tasks, paired task by task, and a "
    "{percent:g} % Student t interval over these tasks. A row of all seeds shows the mean of the seeds' means and the "
    "interval over the seeds. {count}"
)
_SPEED = (
    "The meta-iteration at which the mean over held-out tasks first reaches each level, by linear interpolation "
    "between checkpoints. A cell has one number for each of the learner's seeds, in their order ({seeds}); {dash} "
    "means that the level is not reached. The levels lie a quarter, half and three quarters of the way from the "
    "untrained network to the best mean of this study. A mean can reach a level by chance: {chance}."
)


def learning_section(ds: xr.Dataset, *, confidence: float = 0.95) -> list[Html]:
    """The two tables with their headings, each only if the study has data for it; none if no learner is trained."""
    parts = []
    if (differences := shot_table(ds, confidence=confidence)) is not None:
        parts += [element("h3", "SHOT against the same learner without it"), differences]
    if (speed := speed_table(ds, confidence=confidence)) is not None:
        parts += [element("h3", f"Meta-iterations to a given {'accuracy' if has_accuracy(ds) else 'loss'}"), speed]
    return parts


def shot_differences(ds: xr.Dataset, with_shot: str, without: str) -> np.ndarray:
    """The score of the learner with SHOT minus that of the one without, at the last checkpoint [seed, task].

    The seeds are those that both learners have.

    A score is an accuracy in %, or for regression a loss. A difference is NaN where the inner loop of at least one of
    the two learners diverged.
    """
    last = percent_scores(with_seeds_of(ds, with_shot, without)).isel(checkpoint=-1)
    last = last.transpose("learner", "seed", "evaluation_task")
    return last.sel(learner=with_shot).values - last.sel(learner=without).values


def shot_table(ds: xr.Dataset, *, confidence: float = 0.95) -> Html | None:
    """Make the table of SHOT's effect; None if the study has no pair of learners to compare.

    Each pair has a row for each seed and, if there are several seeds, a row for all of them.
    """
    rows, intervals_of_pairs = [], []
    for with_shot, without in shot_pairs(ds):
        differences = shot_differences(ds, with_shot, without)
        if not np.isfinite(differences).any():
            continue
        label = f"{method_label(with_shot)} against {method_label(without)}"
        intervals = [mean_interval(tasks, confidence=confidence) for tasks in differences]  # one for each seed
        intervals_of_pairs.append(intervals)
        rows += [
            row((label, str(int(seed)), *_difference_cells(over_tasks)))
            for seed, over_tasks in zip(with_seeds_of(ds, with_shot, without)["seed"].values, intervals, strict=True)
        ]
        if len(intervals) > 1:
            over_seeds = mean_interval(seed_means(differences), confidence=confidence)
            rows.append(row((label, "all", *_difference_cells(over_seeds)), css="total"))
    if not rows:
        return None
    accuracy = has_accuracy(ds)
    caption = _DIFFERENCE.format(
        what="Query accuracy" if accuracy else "Query loss (lower is better)",
        last=int(ds["checkpoint"][-1]),
        percent=100 * confidence,
        count=count_sentence(intervals_of_pairs),
    )
    unit = "% points" if accuracy else "loss"
    return table(("Learner", "Seed", f"Difference, {unit}", "Interval"), rows, caption=caption)


def count_sentence(intervals_of_pairs: Sequence[Sequence[Interval]]) -> str:
    """The sentence that counts in how many seeds, and in how many pairs of learners, SHOT made a difference.

    intervals_of_pairs: for each pair of learners, the interval of each seed's difference [pair][seed]. An interval that
        rests on no value is left out.

    The sentence counts the intervals that lie wholly above and wholly below 0, and the pairs of learners for which the
    differences of all seeds have the same sign.
    """
    pairs = [[of_seed for of_seed in of_pair if of_seed.num] for of_pair in intervals_of_pairs]
    intervals = [of_seed for of_pair in pairs for of_seed in of_pair]
    above, below = sum(of_seed.low > 0 for of_seed in intervals), sum(of_seed.high < 0 for of_seed in intervals)
    text = (
        f"Of the intervals of these {len(intervals)} differences of single seeds, {above} lie wholly above 0 and "
        f"{below} wholly below"
    )
    # For each pair with several seeds, the signs that occur: one element where all seeds agree, two where they do not.
    signs = [{of_seed.mean > 0 for of_seed in of_pair} for of_pair in pairs if len(of_pair) > 1]
    if not signs:
        return f"{text}. One seed alone is no evidence about learners."
    num_agreeing = sum(len(signs_of_pair) == 1 for signs_of_pair in signs)
    return f"{text}. All seeds have the same sign in {num_agreeing} of {len(signs)} pairs."


def speed_table(ds: xr.Dataset, *, confidence: float = 0.95) -> Html | None:
    """Make the table of meta-iterations, with a row for each trained learner and a column for each level.

    None if no learner is better than the untrained network.
    """
    levels = accuracy_levels(ds)
    if not levels:
        return None
    accuracy, values = has_accuracy(ds), percent_scores(ds)
    unit = " %" if accuracy else ""
    task_axis = values.get_axis_num("evaluation_task")
    half_widths = np.apply_along_axis(_half_width, task_axis, values.values, confidence)
    half_widths = half_widths[np.isfinite(half_widths)]
    chance = "each checkpoint has one task, so nothing shows how well its mean is known"
    if len(half_widths):
        half = f"{number(float(np.median(half_widths)), digits=2)}{unit}"
        chance = (
            f"the mean at one checkpoint is known to about ± {half}. This is the median, over all learners, seeds and "
            f"checkpoints, of half the width of the {100 * confidence:g} % interval over tasks"
        )
    seeds = ", ".join(str(int(seed)) for seed in ds["seed"].values)
    caption = _SPEED.format(seeds=seeds, dash=DASH, chance=chance)
    rows = []
    for name in trained_learners(ds):
        reached = [meta_iterations(ds, name, level) for level in levels]
        cells = [", ".join(DASH if step is None else f"{step:.0f}" for step in steps) for steps in reached]
        rows.append(row((method_label(name), *cells)))
    return table(("Learner", *(f"{number(level)}{unit}" for level in levels)), rows, caption=caption)


def accuracy_levels(ds: xr.Dataset) -> list[float]:
    """Three levels between the untrained network and the best mean of a trained learner, rounded to three digits.

    The list is empty if no learner is trained, if there is no checkpoint 0, or if no mean is better than the untrained
    network's.
    """
    if not shows_training(ds):
        return []
    means = percent_scores(ds).sel(learner=trained_learners(ds)).mean("evaluation_task").mean("seed")
    start = float(means.isel(checkpoint=0).mean())
    best = float(means.max() if has_accuracy(ds) else means.min())
    improves = best > start if has_accuracy(ds) else best < start
    return [float(f"{start + part * (best - start):.3g}") for part in LEVEL_FRACTIONS] if improves else []


def meta_iterations(ds: xr.Dataset, name: str, level: float) -> list[float | None]:
    """For each seed of a learner, the meta-iteration at which the mean over tasks first reaches ``level``, or None.

    The level is an accuracy in %, or for regression a loss. None means that the seed never reaches it.
    """
    means = percent_scores(with_seeds_of(ds, name)).sel(learner=name).mean("evaluation_task")
    sign = 1 if has_accuracy(ds) else -1  # losses fall to a level, so their negatives rise to its negative
    steps = ds["checkpoint"].values
    return [crossing(steps, sign * curve, sign * level) for curve in means.transpose("seed", "checkpoint").values]


def crossing(steps: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray, level: float) -> float | None:
    """The step at which a polyline first reaches ``level`` from below; None if it never does.

    Points whose value is NaN are left out, so that the line connects their neighbours.

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


def _half_width(values: np.ndarray, confidence: float) -> float:
    """Half the width of the interval of the mean of one seed's values [task] at one checkpoint."""
    return mean_interval(values, confidence=confidence).half_width


def _difference_cells(difference: Interval) -> tuple[Html, Html]:
    """The cells of a mean difference and of its interval."""
    mean, ends = number(difference.mean, signed=True), interval(difference.low, difference.high)
    return element("span", mean, css="num"), element("span", ends, css="num")
