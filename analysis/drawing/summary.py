"""Averages for figures: over the tasks of each seed, then over the seeds, with a band over the seeds.

Every mean in a figure is computed here. With up to four seeds, the band is the range of the seeds' means, and each seed
is drawn as a thin line as well. With five or more, the band is the 95 % Student t interval of the mean over seeds. With
few seeds, such an interval would be so wide that it says little (t = 12.7 for two seeds), while a few thin lines can
still be told apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from analysis.evaluation import evaluation_scores
from analysis.schema import DIVERGED, MEASURED
from analysis.statistics import mean_over, student_half_width

MAX_SEEDS_SHOWN = 4
"""The largest number of seeds that are drawn as thin lines and whose range is the band."""
TASK_DIMS = ("task", "evaluation_task")
"""The dimensions of the tasks with curvature, and of the further tasks, where only loss and accuracy are measured."""


@dataclass(frozen=True)
class Summary:
    """A quantity averaged over tasks: one value per seed, the mean of these values, and a band over the seeds.

    ``low`` and ``high`` are the ends of the band; they are NaN with fewer than two seeds, which have no spread.
    """

    per_seed: xr.DataArray
    mean: xr.DataArray
    low: xr.DataArray
    high: xr.DataArray
    num_seeds: int

    def at(self, **positions: int) -> "Summary":
        """The summary at given positions along its dimensions, as ``isel`` takes them, with the same kind of band."""
        return self._each(lambda part: part.isel(positions))

    def where(self, mask: xr.DataArray) -> "Summary":
        """The summary with NaN where ``mask`` is False, with the same kind of band."""
        return self._each(lambda part: part.where(mask))

    def select(self, learners: list[str]) -> "Summary":
        """The summary of the named learners, in this order, with the same kind of band."""
        return self._each(lambda part: part.sel(learner=learners))

    def _each(self, change: Callable[[xr.DataArray], xr.DataArray]) -> "Summary":
        per_seed, mean, low, high = map(change, (self.per_seed, self.mean, self.low, self.high))
        return Summary(per_seed, mean, low, high, self.num_seeds)

    @property
    def span(self) -> tuple[float, float]:
        """The smallest and the largest number in a drawing of this summary; (nan, nan) if no number is finite."""
        shows_seeds = self.num_seeds <= MAX_SEEDS_SHOWN
        parts = (self.mean, self.per_seed) if shows_seeds else (self.mean, self.low, self.high)
        values = np.concatenate([part.values.ravel() for part in parts])
        finite = values[np.isfinite(values)]
        return (float(finite.min()), float(finite.max())) if finite.size else (float("nan"), float("nan"))


def summarise(values: xr.DataArray) -> Summary:
    """Average over the tasks of each seed, then over the seeds, and compute the band over the seeds.

    Tasks and seeds without a value are left out. Summarise all learners of a figure at once and select from the result
    with ``Summary.at``: the kind of band depends on the number of seeds, so all learners then have the same kind.
    """
    per_seed = mean_over(values, *[dim for dim in TASK_DIMS if dim in values.dims])
    num_seeds = seeds_with_values(per_seed)
    mean = mean_over(per_seed, "seed")
    if num_seeds > MAX_SEEDS_SHOWN:
        half = t_half_width(per_seed)
        return Summary(per_seed, mean, mean - half, mean + half, num_seeds)
    has_spread = per_seed.notnull().sum("seed") > 1
    low, high = per_seed.min("seed").where(has_spread), per_seed.max("seed").where(has_spread)
    return Summary(per_seed, mean, low, high, num_seeds)


def t_half_width(per_seed: xr.DataArray) -> xr.DataArray:
    """Half the width of the 95 % Student t interval of the mean over seeds; NaN with fewer than two values."""
    count = per_seed.notnull().sum("seed")
    variance = ((per_seed - mean_over(per_seed, "seed")) ** 2).sum("seed") / (count - 1).where(count > 1)
    return xr.apply_ufunc(student_half_width, variance**0.5, count, vectorize=True)


def probe_error(stderr: xr.DataArray) -> xr.DataArray:
    """The standard error, from the random probes alone, of a mean over the tasks of each seed and then over the seeds.

    stderr: the standard error of the mean over probes, for each seed, task and whatever other dimensions there are.

    Each task of each seed has its own probes, which are the same at all inner steps and checkpoints and for all
    learners. So the errors of different tasks are independent, and their variances add up:
    Var = sum_s sum_t stderr^2 / (S n_s)^2 for S seeds with n_s tasks each.
    """
    count = stderr.notnull().sum("task")
    per_seed = (stderr**2).sum("task") / count.where(count > 0) ** 2
    seeds = per_seed.notnull().sum("seed")
    return per_seed.sum("seed") ** 0.5 / seeds.where(seeds > 0)


# ---- what was measured


def measured(ds: xr.Dataset, name: str) -> xr.DataArray:
    """The values of a variable; NaN where the unit (seed, task) diverged or was not measured."""
    values = ds[name]
    return values.where(ds["status"] == MEASURED) if "task" in values.dims else values


def diverged_units(ds: xr.Dataset) -> tuple[xr.DataArray, int]:
    """The number of diverged units (seed, task) for each learner and checkpoint, and the number of all units tried."""
    status = ds["status"]
    num_tried = int(((status == DIVERGED) | (status == MEASURED)).sum())
    return (status == DIVERGED).sum(["seed", "task"]), num_tried


def lost_evaluations(ds: xr.Dataset) -> tuple[xr.DataArray, int]:
    """The number of evaluations that diverged for each learner and checkpoint, and the number of all evaluations."""
    done = ds["evaluation_done"] == 1
    lost = (evaluation_scores(ds).isnull() & done).sum(["seed", "evaluation_task"])
    return lost, int(done.sum()) * ds.sizes["evaluation_task"]


def seeds_with_values(values: xr.DataArray) -> int:
    """The number of seeds that have at least one value."""
    return int(values.notnull().any([dim for dim in values.dims if dim != "seed"]).sum())


def seed_counts(values: xr.DataArray) -> str:
    """The number of seeds that a mean over seeds has: '10', or '5-10' if learners have different numbers of seeds."""
    if "learner" not in values.dims:
        return str(seeds_with_values(values))
    has_value = values.notnull().any([dim for dim in values.dims if dim not in ("learner", "seed")])
    return _span_of(has_value.sum("seed"))


def tasks_per_seed(values: xr.DataArray) -> str:
    """The number of tasks in each seed's mean: '64', '61-64' if it varies, or '0' if nothing was measured."""
    return _span_of(values.notnull().sum([dim for dim in TASK_DIMS if dim in values.dims]))


def _span_of(counts: xr.DataArray) -> str:
    """The smallest and the largest count above 0 as a text, such as '61-64', or '64' if they are equal."""
    # Without a dimension of tasks, a count is True or False.
    positive = counts.values[counts.values > 0].astype(int)
    return "-".join(str(count) for count in dict.fromkeys((positive.min(), positive.max()))) if positive.size else "0"
