"""Intervals for paired differences: Student t over seeds, a bootstrap over tasks, and how many seeds would decide.

The seed is the unit of replication: seeds are drawn anew in every repetition of a study, tasks only
within a seed. A bootstrap over few seeds covers far less than it says (66 % at 2 seeds for a nominal
95 %), Student t on one number per seed covers 95 % at every number of seeds if these numbers are
near normal. So Student t decides, and the bootstrap shows the share of the tasks alone.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from hessian_tools.rng import numpy_stream

Outcome = Literal["supported", "not supported", "inconclusive"]


@dataclass(frozen=True)
class Interval:
    """A two-sided interval for a mean: bounds, mean and standard deviation (n - 1) over ``num`` finite values.

    With one value the bounds and ``sd`` are NaN; with none ``mean`` is NaN as well.
    """

    low: float
    high: float
    mean: float
    sd: float
    num: int


def seed_means(effects: np.ndarray) -> np.ndarray:
    """One number per seed [seed]: the mean of its finite tasks, NaN where there is none; ``effects`` [seed, task]."""
    finite = np.isfinite(effects)
    total = np.where(finite, effects, 0.0).sum(axis=-1)
    num = finite.sum(axis=-1)
    return np.where(num > 0, total / np.maximum(num, 1), np.nan)


def half_width(sd: float, num: int, *, confidence: float = 0.95) -> float:
    """Half the Student t interval of a mean of ``num`` values (Student 1908); NaN below two values.

    >>> round(half_width(1.0, 4), 4)
    1.5912
    """
    if num < 2:
        return float("nan")
    return float(stdtrit(num - 1, 0.5 + confidence / 2) * sd / np.sqrt(num))


def seed_interval(effects: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Student t interval of the mean of one paired effect per seed [seed]; NaN entries are left out.

    Assumes independent seeds and nearly normal per-seed means; no assumption about the tasks inside a seed.
    """
    _check_confidence(confidence)
    values = np.asarray(effects, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    num = len(values)
    mean = float(values.mean()) if num else float("nan")
    sd = float(values.std(ddof=1)) if num > 1 else float("nan")
    half = half_width(sd, num, confidence=confidence)
    return Interval(mean - half, mean + half, mean, sd, num)


def resampled_counts(num: int, *, resamples: int, stream: np.random.RandomState) -> np.ndarray:
    """How often each of ``num`` items is drawn in each bootstrap resample [item, resample] (Efron 1979)."""
    return stream.multinomial(num, np.full(num, 1.0 / num), size=resamples).T.astype(np.float64)


def task_bootstrap(
    effects: np.ndarray, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over seeds of the task means; ``effects`` [seed, task], NaN left out.

    Tasks are resampled within each seed, independently, since each seed has its own; the seeds stay
    fixed. It says how well these seeds were measured, nothing about other seeds: no interval for a claim.
    NaN bounds when no seed has a finite task. Reproducible from ``seed``.
    """
    _check_confidence(confidence)
    means = []
    for index, row in enumerate(np.atleast_2d(np.asarray(effects, dtype=np.float64))):
        finite = row[np.isfinite(row)]
        if len(finite):
            stream = numpy_stream(seed, "task bootstrap", index)
            counts = resampled_counts(len(finite), resamples=resamples, stream=stream)
            means.append(finite @ counts / len(finite))
    if not means:
        return float("nan"), float("nan")
    return percentile_interval(np.mean(means, axis=0), confidence=confidence)


def percentile_interval(values: np.ndarray, *, confidence: float = 0.95) -> tuple[float, float]:
    """The central ``confidence`` share of the finite values; NaN bounds when there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def decide(low: float, high: float, *, margin: float) -> Outcome:
    """What an interval says of a claim whose direction is positive; ``margin`` is the smallest effect of interest.

    * not supported: the whole interval lies below the margin. The effect is absent, opposite, or too small
      to matter; an interval inside (0, margin) belongs here, since many seeds make any trifle differ from 0.
    * supported: the interval excludes 0 on the claimed side, and the margin is not excluded.
    * inconclusive: all else, NaN bounds (fewer than two seeds) included.

    Absence needs the margin: an interval that merely contains 0 shows too few seeds, not that nothing is
    there. Presence is asked against 0 and not against the margin, so "supported" says that the direction
    is sure and a size of interest possible; read the interval for the size.
    """
    if high < margin:
        return "not supported"
    return "supported" if low > 0 else "inconclusive"


def seeds_to_decide(
    mean: float, sd: float, *, margin: float, confidence: float = 0.95, most: int = 10_000
) -> int | None:
    """The smallest number of seeds at which ``decide`` would decide if ``mean`` and ``sd`` stayed as they are.

    ``mean`` has the claimed direction as positive. None if ``most`` seeds would not do, or if ``sd`` is NaN
    (one seed shows no spread). About half of the studies of that size decide, since their own means scatter around
    this one: plan for more. A guide only: with few seeds ``sd`` itself is known to a factor of two or worse.
    """
    _check_confidence(confidence)

    def decided(num: int) -> bool:
        half = half_width(sd, num, confidence=confidence)
        return decide(mean - half, mean + half, margin=margin) != "inconclusive"

    if most < 2 or not decided(most):
        return None
    low, high = 1, most  # bisection: the interval shrinks around a fixed mean, so once decided stays decided
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
