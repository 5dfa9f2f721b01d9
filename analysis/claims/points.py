"""The values of a study that claims compare: missing ones are refused, and NaN stands only where no number exists."""

import numpy as np
import xarray as xr

from analysis.schema import STATUS_MEANINGS, ZERO_GRADIENT

# How a verdict names its baseline where that is the learner's own checkpoint 0, whatever a control is called.
UNTRAINED = "untrained"

# These are ratios to squared inner gradients, so they do not exist where a gradient is zero.
_RATIOS = ("alpha_rho", "rho", "rho_normalised", "alignment")


class NotMeasuredError(ValueError):
    """The study has not been measured in full, or numbers of it were lost; the message says what to do."""


def first_and_last(ds: xr.Dataset) -> tuple[int, int]:
    """Checkpoint 0, which is each seed's untrained network, and the last one; NotMeasuredError without both."""
    checkpoints = sorted(int(value) for value in ds["checkpoint"].values)
    if checkpoints[0] != 0 or len(checkpoints) < 2:
        held = ", ".join(map(str, checkpoints))
        raise NotMeasuredError(
            f"measure the study first: a claim needs checkpoint 0 and a later one; this study has {held}"
        )
    return 0, checkpoints[-1]


def diverged(ds: xr.Dataset, learner: str, *, checkpoint: int) -> np.ndarray:
    """Whether each unit [seed, task] of a learner diverged before or at a checkpoint, by its status."""
    status = _at(ds[["status"]], learner, checkpoint)["status"].values
    return np.asarray(status == STATUS_MEANINGS.index("diverged"))


def points(ds: xr.Dataset, variable: str, learner: str, *, checkpoint: int) -> np.ndarray:
    """The values of a learner at a checkpoint [seed, task, ...].

    A unit that diverged is NaN throughout. Single values are NaN where the variable is a ratio to a gradient that is
    zero (for the alignment: where all inner gradients are zero, or there is only one). Raises NotMeasuredError if any
    unit has not been measured, since a verdict on a part of a study would be about another study, and if a unit that
    is marked as measured lacks any other number.
    """
    one = _at(ds[["status", "grad_norm", variable]], learner, checkpoint)
    _refuse_unmeasured(one, learner, checkpoint)
    values = one[variable].values.astype(np.float64)  # a copy: the study is never written to
    diverged_units = one["status"].values == STATUS_MEANINGS.index("diverged")
    values[diverged_units] = np.nan
    lost = ~np.isfinite(values) & ~_undefined(one, variable)
    lost[diverged_units] = False
    if lost.any():
        _refuse_lost(one, variable, learner, checkpoint, lost)
    return values


def _at(ds: xr.Dataset, learner: str, checkpoint: int) -> xr.Dataset:
    return ds.sel(learner=learner, checkpoint=checkpoint).transpose("seed", "task", ...)


def _undefined(one: xr.Dataset, variable: str) -> np.ndarray:
    """Where a measured unit may lack a number, in the shape of the variable."""
    if variable not in _RATIOS:
        return np.zeros(one[variable].shape, dtype=bool)
    zero = one["grad_norm"].values < ZERO_GRADIENT
    if variable != "alignment":
        return np.asarray(zero)
    inner = zero[..., :-1]  # the alignment has no part at the adapted point, where no step is taken
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
