"""What a claim compares: two sides paired by seed and task, one effect per seed."""

from dataclasses import dataclass

import numpy as np

from analysis.claims.plan import Plan
from analysis.statistics import seed_means, task_bootstrap

IDENTICAL = "both sides are identical to the last bit; the difference was not put to the test"


@dataclass(frozen=True)
class Comparison:
    """Two sides compared, per seed; effect = trained - baseline over the same units.

    ``effects``, ``trained``, ``baseline``: [seed], NaN where a seed has nothing left. ``scale``: mean |baseline|
    over the paired points. Of ``num_units`` (seed, task) units, ``num_diverged`` were left out because either side
    diverged, and ``num_undefined`` because a measured side has no value (the gradient is zero). ``share``: of the
    points, how many could be compared. ``num_thin``: seeds left out for too few such points. ``obstacle``: words
    for why no verdict is possible whatever the numbers, the short form before a semicolon; or None.
    """

    effects: np.ndarray
    trained: np.ndarray
    baseline: np.ndarray
    scale: float
    bootstrap: tuple[float, float]
    num_tasks: int
    num_units: int
    num_diverged: int
    num_undefined: int = 0
    share: float = 1.0
    num_thin: int = 0
    obstacle: str | None = None


def complete(*sides: np.ndarray, diverged: np.ndarray | None = None) -> np.ndarray:
    """Units [seed, task] that did not diverge, with every value finite on every side; sides [seed, task, ...]."""
    keep = [np.isfinite(side).reshape(*side.shape[:2], -1).all(-1) for side in sides]
    if diverged is not None:
        keep.append(~diverged)
    return np.asarray(np.logical_and.reduce(keep))


def paired(trained: np.ndarray, baseline: np.ndarray, plan: Plan, *, diverged: np.ndarray | None = None) -> Comparison:
    """Task by task differences, averaged over steps, then tasks, one number per seed; sides [seed, task, step].

    A unit enters with all its steps or not at all, so that both sides and all units average the same steps.
    ``diverged``: units [seed, task] lost on either side; any other unit with a NaN counts as undefined.
    """
    keep = complete(trained, baseline, diverged=diverged)
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
        obstacle=IDENTICAL if identical(trained, baseline, keep) else None,
        **left_out(keep, diverged),
    )


def left_out(keep: np.ndarray, diverged: np.ndarray | None) -> dict[str, int]:
    """How many units there are, and why some do not enter; keep, diverged [seed, task]."""
    num_diverged = 0 if diverged is None else int(diverged.sum())
    return {
        "num_units": keep.size,
        "num_diverged": num_diverged,
        "num_undefined": int((~keep).sum()) - num_diverged,
    }


def identical(trained: np.ndarray, baseline: np.ndarray, keep: np.ndarray) -> bool:
    """Whether every kept point has the same value on both sides: then training or SHOT did nothing at all."""
    return bool(keep.any()) and np.array_equal(trained[keep], baseline[keep])


def scale_of(baseline: np.ndarray, keep: np.ndarray) -> float:
    """Mean |baseline| [seed, task, step] over steps, then kept tasks, then seeds: what relative margins refer to."""
    per_seed = seed_means(np.where(keep, np.abs(baseline).mean(axis=-1), np.nan))
    return mean_over_seeds(per_seed)


def mean_over_seeds(per_seed: np.ndarray) -> float:
    """The mean of the finite entries of [seed]; NaN when there are none."""
    finite = per_seed[np.isfinite(per_seed)]
    return float(finite.mean()) if len(finite) else float("nan")
