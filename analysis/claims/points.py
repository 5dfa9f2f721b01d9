"""The points of a study that claims compare: missing ones are refused, NaN only where there is no number to have."""

import numpy as np
import xarray as xr

from analysis.schema import STATUS_MEANINGS, ZERO_GRADIENT

UNTRAINED = "untrained"
"""How a verdict names its baseline where that is the learner's own checkpoint 0, whatever a control is called."""

_PER_GRADIENT = ("alpha_rho", "rho", "rho_normalised", "alignment")  # divided by squared inner gradients


class NotMeasuredError(ValueError):
    """A study that has not been measured in full, or whose numbers were lost; the message says what to do."""


def first_and_last(ds: xr.Dataset) -> tuple[int, int]:
    """Checkpoint 0, the untrained network with each seed's start, and the last one; NotMeasuredError without both."""
    checkpoints = sorted(int(value) for value in ds["checkpoint"].values)
    if checkpoints[0] != 0 or len(checkpoints) < 2:
        has = ", ".join(map(str, checkpoints))
        raise NotMeasuredError(
            f"measure the study first: a claim needs checkpoint 0 and a later one; this study has {has}"
        )
    return 0, checkpoints[-1]


def diverged(ds: xr.Dataset, learner: str, *, checkpoint: int) -> np.ndarray:
    """Which units [seed, task] of a learner diverged before or at a checkpoint, by their status."""
    status = _at(ds[["status"]], learner, checkpoint)["status"].values
    return np.asarray(status == STATUS_MEANINGS.index("diverged"))


def points(ds: xr.Dataset, variable: str, learner: str, *, checkpoint: int) -> np.ndarray:
    """The values of a learner at a checkpoint [seed, task, ...].

    NaN in all of a unit that diverged, and where the variable is a ratio to a gradient that is zero (alignment: to
    inner gradients that all are, or to a single one). NotMeasuredError if any unit has not been measured, since a
    verdict on a part of a study would be another study, and if a unit marked measured holds no number elsewhere.
    """
    one = _at(ds[["status", "grad_norm", variable]], learner, checkpoint)
    _refuse_unmeasured(one, learner, checkpoint)
    values = one[variable].values.astype(np.float64)  # a copy: the study is never written to
    gone = one["status"].values == STATUS_MEANINGS.index("diverged")
    values[gone] = np.nan
    lost = ~np.isfinite(values) & ~_undefined(one, variable)
    lost[gone] = False
    if lost.any():
        _refuse_lost(one, variable, learner, checkpoint, lost)
    return values


def _at(ds: xr.Dataset, learner: str, checkpoint: int) -> xr.Dataset:
    return ds.sel(learner=learner, checkpoint=checkpoint).transpose("seed", "task", ...)


def _undefined(one: xr.Dataset, variable: str) -> np.ndarray:
    """Where a measured unit may hold no number, in the shape of the variable."""
    if variable not in _PER_GRADIENT:
        return np.zeros(one[variable].shape, dtype=bool)
    zero = one["grad_norm"].values < ZERO_GRADIENT
    if variable != "alignment":
        return np.asarray(zero)
    inner = zero[..., :-1]  # A is over the gradients that are stepped along: none at the adapted point
    return np.asarray(inner.all(axis=-1) | (inner.shape[-1] == 1))


def _refuse_unmeasured(one: xr.Dataset, learner: str, checkpoint: int) -> None:
    status = one["status"].values
    missing = np.argwhere(status == STATUS_MEANINGS.index("not_measured"))
    if len(missing):
        seeds = sorted({int(one["seed"].values[row]) for row, _ in missing})
        raise NotMeasuredError(
            f"measure the study first: {learner} at checkpoint {checkpoint} lacks {len(missing)} of {status.size} "
            f"units (seed {', '.join(map(str, seeds))}); `hessian-tools measure` goes on where it stopped"
        )


def _refuse_lost(one: xr.Dataset, variable: str, learner: str, checkpoint: int, where: np.ndarray) -> None:
    seed, task = np.argwhere(where)[0][:2]
    raise NotMeasuredError(
        f"{learner} at checkpoint {checkpoint} is marked measured but holds no number for {variable} "
        f"(seed {int(one['seed'].values[seed])}, task {int(one['task'].values[task])}; {int(where.sum())} of "
        f"{where.size} values); remove the run's measurements.zarr and measure again"
    )
