"""Reads from a study's Dataset the values that the claims compare.

A study with missing values is refused. A returned value is NaN only where the quantity is not defined, where training
or the inner loop diverged, or where the learner has no such seed by the study's settings. A comparison of two learners
reads its values from ``analysis.schema.with_seeds_of(ds, learner, other)``, which has the seeds of both sides. A unit
is one task of one seed.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from analysis import schema
from analysis.schema import DIVERGED, NO_SUCH_SEED, NOT_MEASURED, ZERO_GRADIENT, learner_names

# Verdicts use this name when the baseline is the untrained network, whatever name the study gives to its untrained
# control.
UNTRAINED = "untrained"

# These quantities are divided by the norm of inner gradients or by its square, so they are undefined where the gradient
# is zero.
_RATIOS = ("alpha_rho", "rho", "rho_normalised", "hg_ratio", "alpha_hg_ratio", "hg_ratio_normalised", "alignment")


class NotMeasuredError(ValueError):
    """Raised if a part of a study is not measured, or if measured numbers are missing; the message says what to do."""


def first_and_last(ds: xr.Dataset) -> tuple[int, int]:
    """Return 0 (the checkpoint of each seed's untrained network) and the last checkpoint.

    Raises NotMeasuredError if the study does not have both.
    """
    checkpoints = sorted(int(value) for value in ds["checkpoint"].values)
    if checkpoints[0] != 0 or len(checkpoints) < 2:
        held = ", ".join(map(str, checkpoints))
        raise NotMeasuredError(
            f"measure the study first: a claim needs checkpoint 0 and a later one; this study has {held}"
        )
    return 0, checkpoints[-1]


def shot_pairs(ds: xr.Dataset) -> list[tuple[str, str]]:
    """Every pair (learner with SHOT, the same learner without SHOT), without learners of a negative weight.

    A negative weight asks for more curvature, so these learners belong to the claims on the intervention alone.
    """
    return [pair for pair in schema.shot_pairs(ds) if schema.setting(ds, "dose", pair[0]) >= 0]


def diverged(ds: xr.Dataset, learner: str, *, checkpoint: int) -> np.ndarray:
    """True for each unit [seed, task] of a learner at a checkpoint whose status is "diverged"."""
    return np.asarray(_at(ds, learner, checkpoint, "status")["status"] == DIVERGED)


def has(ds: xr.Dataset, *variables: str, learner: str | None = None) -> bool:
    """True if each of the variables has at least one finite number, in the whole study or for one learner."""
    at = {} if learner is None else {"learner": learner_names(ds).index(learner)}
    return all(name in ds and bool(np.isfinite(ds.variables[name].isel(at).values).any()) for name in variables)


def points(ds: xr.Dataset, variable: str, learner: str, *, checkpoint: int, allow_missing: bool = False) -> np.ndarray:
    """Return the values of a learner at a checkpoint [seed, task, ...].

    All values of a unit that diverged are NaN, and so are those of a seed that the learner does not have. A quantity
    that is divided by the norm of a gradient, or by its square, is NaN where that gradient is zero. The alignment of a
    task's inner gradients (see ``analysis/claims/alignment.py``) is NaN where all of them are zero, or where there is
    only one.

    Raises NotMeasuredError if any unit has not been measured: a verdict speaks of the whole study, and cannot rest on a
    part of it. Raises it also if a unit that is marked as measured lacks a number that should exist, unless
    ``allow_missing`` is true: some variables are measured for a part of the tasks alone.
    """
    one = _at(ds, learner, checkpoint, "status", "grad_norm", "seed", "task", variable)
    _refuse_unmeasured(one, learner, checkpoint)
    values = one[variable].astype(np.float64)  # a copy: the study is never written to
    without_values = np.isin(one["status"], (DIVERGED, NO_SUCH_SEED))
    values[without_values] = np.nan
    missing = ~np.isfinite(values) & ~_undefined(one, variable)
    missing[without_values] = False
    if missing.any() and not allow_missing:
        _refuse_missing(one, variable, learner, checkpoint, missing)
    return values


def _at(ds: xr.Dataset, learner: str, checkpoint: int, *names: str) -> dict[str, np.ndarray]:
    """Variables of a learner at a checkpoint, by name; the dimensions seed and task come first where they exist."""
    # Selection from the whole Dataset would also select from each coordinate along ``learner``, which is slow.
    at = {"learner": learner_names(ds).index(learner), "checkpoint": ds.get_index("checkpoint").get_loc(checkpoint)}
    variables = {name: ds.variables[name] for name in names}
    return {
        name: variable.isel({dim: at[dim] for dim in at if dim in variable.dims})
        .transpose("seed", "task", ..., missing_dims="ignore")
        .values
        for name, variable in variables.items()
    }


def _undefined(one: Mapping[str, np.ndarray], variable: str) -> np.ndarray:
    """True for each value of the variable that may be undefined although its unit was measured."""
    if variable not in _RATIOS:
        return np.zeros(one[variable].shape, dtype=bool)
    zero = one["grad_norm"] < ZERO_GRADIENT
    if variable != "alignment":
        return np.asarray(zero)
    # No step is taken from the last point, the adapted one, so its gradient does not enter the alignment.
    inner = zero[..., :-1]
    return np.asarray(inner.all(axis=-1) | (inner.shape[-1] == 1))


def _refuse_unmeasured(one: Mapping[str, np.ndarray], learner: str, checkpoint: int) -> None:
    """Raise NotMeasuredError if the status of any unit of the learner says that it is not measured."""
    status = one["status"]
    missing = np.argwhere(status == NOT_MEASURED)  # the positions (seed, task)
    if len(missing):
        seeds = sorted({int(one["seed"][row]) for row, _ in missing})
        raise NotMeasuredError(
            f"measure the study first: {learner} at checkpoint {checkpoint} lacks {len(missing)} of {status.size} "
            f"units (a unit is one task of one seed; seed {', '.join(map(str, seeds))}); "
            "`hessian-tools measure` goes on where it stopped"
        )


def _refuse_missing(
    one: Mapping[str, np.ndarray], variable: str, learner: str, checkpoint: int, missing: np.ndarray
) -> None:
    """Raise the error that names the first missing value; ``missing`` [seed, task, ...] is True for each of them."""
    seed, task = np.argwhere(missing)[0][:2]
    raise NotMeasuredError(
        f"{learner} at checkpoint {checkpoint} is marked measured but holds no number for {variable} "
        f"(seed {int(one['seed'][seed])}, task {int(one['task'][task])}; {int(missing.sum())} of "
        f"{missing.size} values); move the run's measurements.zarr elsewhere and measure again"
    )
