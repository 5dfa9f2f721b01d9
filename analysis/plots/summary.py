"""The only means the figures draw: over tasks within each seed, then over seeds, with a band that says what it is.

A band is the range of the per-seed means for up to four seeds, and the 95 % Student t interval of their mean
from five on. With few seeds a t interval is wide and says little (t = 12.7 for two), and each seed's line can be seen.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import xarray as xr

from analysis.schema import STATUS_MEANINGS
from analysis.statistics import half_width

MOST_SEEDS_SHOWN = 4
MEASURED = STATUS_MEANINGS.index("measured")
DIVERGED = STATUS_MEANINGS.index("diverged")
TASK_DIMS = ("task", "evaluation_task")


@dataclass(frozen=True)
class Summary:
    """A quantity after averaging over tasks: one value a seed, their mean, and a band over seeds.

    ``low`` and ``high`` are NaN with fewer than two seeds: there is no spread to show.
    """

    per_seed: xr.DataArray
    mean: xr.DataArray
    low: xr.DataArray
    high: xr.DataArray
    num_seeds: int

    def at(self, **indexers: int) -> "Summary":
        """The summary at some positions of its dimensions (as ``isel``); the kind of band stays the study's."""
        per_seed, mean, low, high = (part.isel(indexers) for part in (self.per_seed, self.mean, self.low, self.high))
        return Summary(per_seed, mean, low, high, self.num_seeds)

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest number that a drawing of this shows; (nan, nan) when there is none."""
        few = self.num_seeds <= MOST_SEEDS_SHOWN
        drawn = (self.mean, self.per_seed) if few else (self.mean, self.low, self.high)
        values = np.concatenate([part.values.ravel() for part in drawn])
        finite = values[np.isfinite(values)]
        return (float(finite.min()), float(finite.max())) if finite.size else (float("nan"), float("nan"))


def measured(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Values of a variable where the unit was measured; NaN where it diverged or was not reached."""
    values = ds[name]
    return values.where(ds["status"] == MEASURED) if "task" in values.dims else values


def summarise(values: xr.DataArray) -> Summary:
    """Mean over tasks for each seed, then mean and band over the seeds.

    Tasks and seeds without a value are left out of the means; how many diverged is ``diverged_units``. Summarise
    all learners at once and take parts with ``at``, so that one figure has one kind of band.
    """
    per_seed = mean_over(values, *[dim for dim in TASK_DIMS if dim in values.dims])
    num_seeds = seeds_with_values(per_seed)
    mean = mean_over(per_seed, "seed")
    if num_seeds > MOST_SEEDS_SHOWN:
        half = t_half_width(per_seed)
        return Summary(per_seed, mean, mean - half, mean + half, num_seeds)
    spread = per_seed.notnull().sum("seed") > 1
    low, high = per_seed.min("seed").where(spread), per_seed.max("seed").where(spread)
    return Summary(per_seed, mean, low, high, num_seeds)


def mean_over(values: xr.DataArray, *dims: str) -> xr.DataArray:
    """Mean over what is there; NaN, without numpy's warning, where nothing is."""
    count = values.notnull().sum(list(dims))
    return values.sum(list(dims)) / count.where(count > 0)


def t_half_width(values: xr.DataArray, *, dim: str = "seed", level: float = 0.95) -> xr.DataArray:
    """Half width of the Student t interval of a mean over ``dim``; NaN with fewer than two values."""
    count = values.notnull().sum(dim)
    variance = ((values - mean_over(values, dim)) ** 2).sum(dim) / (count - 1).where(count > 1)
    return xr.apply_ufunc(partial(half_width, confidence=level), variance**0.5, count, vectorize=True)


def band_label(num_seeds: int) -> str:
    """What the band (and the thin lines) of a summary over so many seeds are."""
    if num_seeds < 2:
        return "one seed: no band"
    if num_seeds > MOST_SEEDS_SHOWN:
        return f"band: 95% t interval over {num_seeds} seeds"
    return f"band: range over {num_seeds} seeds; thin: each seed"


def probe_error(stderr: xr.DataArray) -> xr.DataArray:
    """Standard error, from the probes alone, of a mean over tasks within each seed and then over the seeds.

    Every task of every seed has probes of its own (steps, checkpoints and learners share a task's), so errors add
    in squares: Var = sum_s sum_t stderr^2 / (S n_s)^2, which is sum stderr^2 / N^2 where seeds have equally many tasks.
    """
    count = stderr.notnull().sum("task")
    per_seed = (stderr**2).sum("task") / count.where(count > 0) ** 2
    seeds = per_seed.notnull().sum("seed")
    return per_seed.sum("seed") ** 0.5 / seeds.where(seeds > 0)


def seeds_with_values(values: xr.DataArray) -> int:
    """Number of seeds that have any value at all."""
    return int(values.notnull().any([dim for dim in values.dims if dim != "seed"]).sum())


def tasks_per_seed(values: xr.DataArray) -> str:
    """How many tasks stand behind each seed's mean: '64', or '61-64' when it varies, '0' when nothing was measured."""
    counts = values.notnull().sum([dim for dim in TASK_DIMS if dim in values.dims]).values
    counts = counts[counts > 0]
    if counts.size == 0:
        return "0"
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low}-{high}"


def diverged_units(ds: xr.Dataset) -> tuple[xr.DataArray, int]:
    """Diverged units (seed x task) for each learner and checkpoint, and the number of all units tried."""
    status = ds["status"]
    tried = int(((status == DIVERGED) | (status == MEASURED)).sum())
    return (status == DIVERGED).sum(["seed", "task"]), tried


def has_accuracy(ds: xr.Dataset) -> bool:
    """Whether tasks have an accuracy at all: those of regression have none."""
    return bool(np.isfinite(ds["evaluation_accuracy"]).any())


def evaluated(ds: xr.Dataset) -> xr.DataArray:
    """Query accuracy of every evaluation, for regression the query loss; NaN where the inner loop diverged.

    A loss that is not finite tells: outputs that are NaN still have an accuracy, that of always naming one class.
    """
    name = "evaluation_accuracy" if has_accuracy(ds) else "evaluation_loss"
    return ds[name].where(np.isfinite(ds["evaluation_loss"]) & np.isfinite(ds[name]))


def lost_evaluations(ds: xr.Dataset) -> tuple[xr.DataArray, int]:
    """Evaluations that diverged per learner and checkpoint, and the number tried."""
    done = ds["evaluation_done"] == 1
    lost = (evaluated(ds).isnull() & done).sum(["seed", "evaluation_task"])
    return lost, int(done.sum()) * ds.sizes["evaluation_task"]
