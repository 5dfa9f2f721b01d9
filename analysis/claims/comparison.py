"""What a claim compares: points read from a study, paired by seed and task, one effect per seed."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from analysis.claims.plan import Plan
from analysis.schema import STATUS_MEANINGS, learner_code, learner_names
from analysis.statistics import seed_means, task_bootstrap

UNTRAINED = "untrained"


class NotMeasuredError(ValueError):
    """A study that has not been measured in full; the message says what to run."""


@dataclass(frozen=True)
class Comparison:
    """Two sides compared, per seed; effect = trained - baseline over the same units.

    ``effects``, ``trained``, ``baseline``: [seed], NaN where a seed has nothing left. ``scale``: mean |baseline|
    over the paired points. ``num_diverged`` counts the (seed, task) units left out of ``num_units`` because
    either side diverged or is not finite. ``share``: of the points, how many could be compared. ``obstacle``:
    words for why no verdict is possible whatever the numbers, or None.
    """

    effects: np.ndarray
    trained: np.ndarray
    baseline: np.ndarray
    scale: float
    bootstrap: tuple[float, float]
    num_tasks: int
    num_units: int
    num_diverged: int
    share: float = 1.0
    obstacle: str | None = None


def trained_learners(ds: xr.Dataset) -> list[str]:
    """Every learner of the study but the untrained network."""
    return [name for name in learner_names(ds) if name != UNTRAINED]


def first_and_last(ds: xr.Dataset) -> tuple[int, int]:
    """Checkpoint 0, the untrained network with each seed's start, and the last one; NotMeasuredError without both."""
    checkpoints = sorted(int(value) for value in ds["checkpoint"].values)
    if checkpoints[0] != 0 or len(checkpoints) < 2:
        has = ", ".join(map(str, checkpoints))
        raise NotMeasuredError(
            f"measure the study first: a claim needs checkpoint 0 and a later one; this study has {has}"
        )
    return 0, checkpoints[-1]


def points(ds: xr.Dataset, variable: str, learner: str, *, checkpoint: int) -> np.ndarray:
    """The values of a learner at a checkpoint [seed, task, ...], NaN for units that diverged.

    NotMeasuredError if any unit has not been measured: a verdict on a part of a study would be another study.
    """
    one = ds[[variable, "status"]].sel(learner=learner_code(ds, learner), checkpoint=checkpoint)
    one = one.transpose("seed", "task", ...)
    status = one["status"].values
    missing = np.argwhere(status == STATUS_MEANINGS.index("not_measured"))
    if len(missing):
        seeds = sorted({int(ds["seed"].values[row]) for row, _ in missing})
        raise NotMeasuredError(
            f"measure the study first: {learner} at checkpoint {checkpoint} lacks {len(missing)} of {status.size} "
            f"units (seed {', '.join(map(str, seeds))}); `hessian-tools measure` goes on where it stopped"
        )
    values = one[variable].values.astype(np.float64)  # a copy: the study is never written to
    values[status == STATUS_MEANINGS.index("diverged")] = np.nan
    return values


def complete(*sides: np.ndarray) -> np.ndarray:
    """Units [seed, task] with every value finite on every side; sides [seed, task, ...]."""
    finite = [np.isfinite(side).reshape(*side.shape[:2], -1).all(-1) for side in sides]
    return np.asarray(np.logical_and.reduce(finite))


def paired(trained: np.ndarray, baseline: np.ndarray, plan: Plan) -> Comparison:
    """Task by task differences, averaged over steps, then tasks, one number per seed; sides [seed, task, step].

    A unit enters with all its steps or not at all, so that both sides and all units average the same steps.
    """
    keep = complete(trained, baseline)
    means = [np.where(keep, side.mean(axis=-1), np.nan) for side in (trained, baseline)]
    return Comparison(
        effects=seed_means(means[0] - means[1]),
        trained=seed_means(means[0]),
        baseline=seed_means(means[1]),
        scale=scale_of(baseline, keep),
        bootstrap=task_bootstrap(
            means[0] - means[1],
            confidence=plan.confidence,
            resamples=plan.bootstrap.resamples,
            seed=plan.bootstrap.seed,
        ),
        num_tasks=keep.shape[1],
        num_units=keep.size,
        num_diverged=int((~keep).sum()),
    )


def scale_of(baseline: np.ndarray, keep: np.ndarray) -> float:
    """Mean |baseline| [seed, task, step] over steps, then kept tasks, then seeds: what relative margins refer to."""
    per_seed = seed_means(np.where(keep, np.abs(baseline).mean(axis=-1), np.nan))
    return mean_over_seeds(per_seed)


def mean_over_seeds(per_seed: np.ndarray) -> float:
    """The mean of the finite entries of [seed]; NaN when there are none."""
    finite = per_seed[np.isfinite(per_seed)]
    return float(finite.mean()) if len(finite) else float("nan")
