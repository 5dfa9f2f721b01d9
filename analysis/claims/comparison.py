"""What a claim asks, and what it compares: two sides paired by seed and task, reduced to one effect for each seed."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.claims.plan import Plan
from analysis.statistics import seed_means, task_bootstrap

Claim = Literal["suppression", "shot", "alignment"]
Kind = Literal["raw", "unit filter norm", "equal support loss", "against orthogonal", "against untrained"]
Direction = Literal["negative", "positive"]

IDENTICAL = "both sides are identical to the last bit; the difference was not put to the test"


@dataclass(frozen=True)
class Question:
    """What is asked: a learner against a baseline, where along the inner loop, and of which quantity.

    predicted: the sign of the effect (learner minus baseline) that the claim predicts.
    """

    claim: Claim
    title: str
    learner: str
    baseline: str
    steps: str
    comparison: Kind
    quantity: str
    units: str
    predicted: Direction


@dataclass(frozen=True)
class Comparison:
    """Two sides compared for each seed; the effect is trained minus baseline, over the same units.

    A unit is a (seed, task).

    effects, trained, baseline: [seed], NaN where a seed has nothing left.
    scale: the mean of |baseline| over the paired points, to which relative margins refer.
    bootstrap: the bounds of the interval from resampled tasks.
    num_diverged, num_undefined: how many of the ``num_units`` units were left out because a side diverged, and how
        many others because a measured side has no value, its gradient being zero.
    share: the share of the points that could be compared. num_thin: seeds left out because too few of theirs could.
    obstacle: why no verdict is possible whatever the numbers, the short form before a semicolon; or None.
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


def complete_units(*sides: np.ndarray, diverged: np.ndarray | None = None) -> np.ndarray:
    """The units [seed, task] that did not diverge and have finite values on all sides; sides [seed, task, ...]."""
    keep = [np.isfinite(side).reshape(*side.shape[:2], -1).all(-1) for side in sides]
    if diverged is not None:
        keep.append(~diverged)
    return np.asarray(np.logical_and.reduce(keep))


def paired(trained: np.ndarray, baseline: np.ndarray, plan: Plan, *, diverged: np.ndarray | None = None) -> Comparison:
    """Differences task by task, averaged over steps and then over tasks, one number per seed.

    trained, baseline: [seed, task, step]. diverged: the units [seed, task] that diverged on either side; other units
    with a NaN count as undefined. A unit enters with all of its steps or not at all, so that both sides and all units
    average the same steps.
    """
    keep = complete_units(trained, baseline, diverged=diverged)
    of_trained, of_baseline = (np.where(keep, side.mean(axis=-1), np.nan) for side in (trained, baseline))
    difference, bootstrap = of_trained - of_baseline, plan.bootstrap
    return Comparison(
        effects=seed_means(difference),
        trained=seed_means(of_trained),
        baseline=seed_means(of_baseline),
        scale=scale_of(baseline, keep),
        bootstrap=task_bootstrap(
            difference, confidence=plan.confidence, resamples=bootstrap.resamples, seed=bootstrap.seed
        ),
        num_tasks=keep.shape[1],
        obstacle=IDENTICAL if identical(trained, baseline, keep) else None,
        **left_out(keep, diverged),
    )


def left_out(keep: np.ndarray, diverged: np.ndarray | None) -> dict[str, int]:
    """How many units there are, and for what reason others than ``keep`` are left out; both [seed, task]."""
    num_diverged = 0 if diverged is None else int(diverged.sum())
    num_undefined = int((~keep).sum()) - num_diverged
    return {"num_units": keep.size, "num_diverged": num_diverged, "num_undefined": num_undefined}


def identical(trained: np.ndarray, baseline: np.ndarray, keep: np.ndarray) -> bool:
    """Whether all points that are kept have the same value on both sides: then training or SHOT did nothing at all."""
    return bool(keep.any()) and np.array_equal(trained[keep], baseline[keep])


def scale_of(baseline: np.ndarray, keep: np.ndarray) -> float:
    """The mean of |baseline| [seed, task, step] over steps, then over the units that are kept, then over seeds."""
    per_seed = seed_means(np.where(keep, np.abs(baseline).mean(axis=-1), np.nan))
    return mean_over_seeds(per_seed)


def mean_over_seeds(per_seed: np.ndarray) -> float:
    """The mean of the finite entries of [seed]; NaN when there are none."""
    finite = per_seed[np.isfinite(per_seed)]
    return float(finite.mean()) if len(finite) else float("nan")
