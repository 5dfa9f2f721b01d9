"""The only means that figures draw: over tasks within each seed, then over seeds, with a band over the seeds.

Up to four seeds, the band is the range of the seeds' means, and each seed is drawn as a thin line. From five seeds on,
it is the 95 % Student t interval of their mean. With few seeds such an interval is wide and says little (t = 12.7 for
two seeds), while each seed's line can still be seen.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from analysis.schema import STATUS_MEANINGS
from analysis.statistics import half_width

MAX_SEEDS_SHOWN = 4
MEASURED = STATUS_MEANINGS.index("measured")
DIVERGED = STATUS_MEANINGS.index("diverged")
TASK_DIMS = ("task", "evaluation_task")


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
        """The summary at some positions of its dimensions, as ``isel`` takes them; the kind of band stays."""
        per_seed, mean, low, high = (part.isel(positions) for part in (self.per_seed, self.mean, self.low, self.high))
        return Summary(per_seed, mean, low, high, self.num_seeds)

    @property
    def span(self) -> tuple[float, float]:
        """The smallest and the largest number that a drawing of this shows; (nan, nan) if it shows none."""
        few = self.num_seeds <= MAX_SEEDS_SHOWN
        parts = (self.mean, self.per_seed) if few else (self.mean, self.low, self.high)
        values = np.concatenate([part.values.ravel() for part in parts])
        finite = values[np.isfinite(values)]
        return (float(finite.min()), float(finite.max())) if finite.size else (float("nan"), float("nan"))


def summarise(values: xr.DataArray) -> Summary:
    """Average over tasks for each seed, then over the seeds, and give the band over the seeds.

    Tasks and seeds without a value are left out; ``diverged_units`` counts the units that diverged. Summarise all
    learners at once and take parts with ``at``, so that one figure has one kind of band.
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


def mean_over(values: xr.DataArray, *dims: str) -> xr.DataArray:
    """Mean of the values that are not NaN; NaN, without numpy's warning, where there are none."""
    count = values.notnull().sum(list(dims))
    return values.sum(list(dims)) / count.where(count > 0)


def t_half_width(per_seed: xr.DataArray) -> xr.DataArray:
    """Half the width of the 95 % Student t interval of a mean over seeds; NaN with fewer than two values."""
    count = per_seed.notnull().sum("seed")
    variance = ((per_seed - mean_over(per_seed, "seed")) ** 2).sum("seed") / (count - 1).where(count > 1)
    return xr.apply_ufunc(half_width, variance**0.5, count, vectorize=True)


def probe_error(stderr: xr.DataArray) -> xr.DataArray:
    """Standard error, from the random probes alone, of a mean over tasks within each seed and then over the seeds.

    Every task of every seed has probes of its own, which its steps, checkpoints and learners share. So the errors of
    tasks are independent and add in squares: Var = sum_s sum_t stderr^2 / (S n_s)^2 for S seeds with n_s tasks each.
    """
    count = stderr.notnull().sum("task")
    per_seed = (stderr**2).sum("task") / count.where(count > 0) ** 2
    seeds = per_seed.notnull().sum("seed")
    return per_seed.sum("seed") ** 0.5 / seeds.where(seeds > 0)


# ---- what was measured


def measured(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Values of a variable where the unit was measured; NaN where it diverged or was not reached."""
    values = ds[name]
    return values.where(ds["status"] == MEASURED) if "task" in values.dims else values


def diverged_units(ds: xr.Dataset) -> tuple[xr.DataArray, int]:
    """Number of diverged units (seed x task) for each learner and checkpoint, and number of all units tried."""
    status = ds["status"]
    tried = int(((status == DIVERGED) | (status == MEASURED)).sum())
    return (status == DIVERGED).sum(["seed", "task"]), tried


def has_accuracy(ds: xr.Dataset) -> bool:
    """Whether the tasks have an accuracy; those of a regression have none."""
    return bool(np.isfinite(ds["evaluation_accuracy"]).any())


def evaluated(ds: xr.Dataset) -> xr.DataArray:
    """Query accuracy (for regression, query loss) of every evaluation; NaN where the inner loop diverged."""
    name = "evaluation_accuracy" if has_accuracy(ds) else "evaluation_loss"
    # The loss shows the divergence. Outputs that are NaN still have an accuracy, as if one class were always named.
    return ds[name].where(np.isfinite(ds["evaluation_loss"]) & np.isfinite(ds[name]))


def lost_evaluations(ds: xr.Dataset) -> tuple[xr.DataArray, int]:
    """Number of evaluations that diverged for each learner and checkpoint, and number of all that were tried."""
    done = ds["evaluation_done"] == 1
    lost = (evaluated(ds).isnull() & done).sum(["seed", "evaluation_task"])
    return lost, int(done.sum()) * ds.sizes["evaluation_task"]


def seeds_with_values(values: xr.DataArray) -> int:
    """Number of seeds that have any value at all."""
    return int(values.notnull().any([dim for dim in values.dims if dim != "seed"]).sum())


def tasks_per_seed(values: xr.DataArray) -> str:
    """How many tasks stand behind each seed's mean: '64', '61-64' if it varies, '0' if nothing was measured."""
    counts = values.notnull().sum([dim for dim in TASK_DIMS if dim in values.dims]).values
    counts = counts[counts > 0]
    if counts.size == 0:
        return "0"
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low}-{high}"
