"""Intervals for paired differences: Student t over seeds, a bootstrap over tasks, and how many seeds would decide.

The seed is the unit of replication: seeds are drawn anew in every repetition of a study, tasks only within a seed. A
bootstrap over few seeds covers far less than its nominal rate (66 % at 2 seeds for a nominal 95 %). Student t on one
number per seed covers 95 % at every number of seeds if these numbers are nearly normal. So Student t decides, and the
bootstrap shows how much of the uncertainty comes from the tasks alone.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hessian_tools.intervals import check_confidence, student_t
from hessian_tools.rng import numpy_stream

MAX_SEEDS = 10_000  # more seeds than any study will have
Outcome = Literal["supported", "not supported", "inconclusive"]


@dataclass(frozen=True)
class Interval:
    """A two-sided interval for a mean: its bounds, the mean and the standard deviation (n - 1) of ``num`` values.

    With one value the bounds and ``sd`` are NaN; with none ``mean`` is NaN as well.
    """

    low: float
    high: float
    mean: float
    sd: float
    num: int


def seed_means(effects: np.ndarray) -> np.ndarray:
    """One number per seed [seed]: the mean of its finite tasks [seed, task], or NaN where there is none."""
    finite = np.isfinite(effects)
    total = np.where(finite, effects, 0.0).sum(axis=-1)
    num = finite.sum(axis=-1)
    return np.where(num > 0, total / np.maximum(num, 1), np.nan)


def half_width(sd: float, num: int, *, confidence: float = 0.95) -> float:
    """Half the width of the Student t interval of a mean, from the standard deviation of ``num`` values.

    NaN below two values.

    >>> round(half_width(1.0, 4), 4)
    1.5912
    """
    return float(student_t(int(num), confidence) * sd / np.sqrt(num)) if num > 1 else float("nan")


def seed_interval(effects: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """The Student t interval for the mean of one paired effect per seed [seed]; NaN entries are left out.

    It assumes independent seeds and nearly normal means of each seed, and nothing about the tasks within a seed.
    """
    check_confidence(confidence)
    values = np.asarray(effects, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    num = len(values)
    mean = float(values.mean()) if num else float("nan")
    sd = float(values.std(ddof=1)) if num > 1 else float("nan")
    half = half_width(sd, num, confidence=confidence)
    return Interval(mean - half, mean + half, mean, sd, num)


def resampled_counts(num: int, *, resamples: int, stream: np.random.RandomState) -> np.ndarray:
    """How often each of ``num`` items is drawn in each resample of a bootstrap [item, resample] (Efron 1979)."""
    return stream.multinomial(num, np.full(num, 1.0 / num), size=resamples).T.astype(np.float64)


def task_bootstrap(
    effects: np.ndarray, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval for the mean over seeds of the task means; ``effects`` [seed, task], NaN left out.

    Tasks are resampled within each seed, independently, since each seed has tasks of its own; the seeds stay fixed.
    So the interval tells how well these seeds were measured and nothing about other seeds: it supports no claim.
    The bounds are NaN when no seed has a finite task. The result is reproducible from ``seed``.
    """
    check_confidence(confidence)
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
    """The bounds of the central ``confidence`` share of the finite values; NaN when there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def decide(low: float, high: float, *, margin: float) -> Outcome:
    """What an interval says about a claim whose direction is positive; ``margin`` is the smallest effect of interest.

    * not supported: the whole interval lies below the margin. The effect is absent, opposite, or too small to matter.
      An interval inside (0, margin) belongs here, since with many seeds any trifle differs from 0.
    * supported: the interval excludes 0 on the claimed side, and the margin is not excluded.
    * inconclusive: everything else, NaN bounds (fewer than two seeds) included.

    To call an effect absent takes the margin: an interval that merely contains 0 shows that there are too few seeds,
    not that there is no effect. To call it present takes only 0, so "supported" says that the direction is sure and
    that a size of interest is possible; read the interval for the size.
    """
    if high < margin:
        return "not supported"
    return "supported" if low > 0 else "inconclusive"


def seeds_to_decide(
    mean: float, sd: float, *, margin: float, confidence: float = 0.95, max_seeds: int = MAX_SEEDS
) -> int | None:
    """The smallest number of seeds at which ``decide`` would decide if ``mean`` and ``sd`` stayed as they are.

    ``mean`` has the claimed direction as positive. None if ``max_seeds`` seeds would not do, or if ``sd`` is NaN (one
    seed shows no spread). About half of the studies of that size decide, since their own means scatter around this
    one, so plan for more. It is only a guide: with few seeds ``sd`` itself is known to a factor of two or worse.
    """
    check_confidence(confidence)

    def decided(num: int) -> bool:
        half = half_width(sd, num, confidence=confidence)
        return decide(mean - half, mean + half, margin=margin) != "inconclusive"

    if max_seeds < 2 or not decided(max_seeds):
        return None
    # Bisection works because the interval shrinks around a fixed mean: once decided, it stays decided.
    low, high = 1, max_seeds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
