"""Intervals for paired differences: Student t over seeds, a bootstrap over tasks, and how many seeds would decide.

The seed is the unit of replication, because a repetition of a study would draw new seeds, and tasks are drawn within a
seed. A bootstrap over few seeds covers the true mean far less often than it promises (66 % of the time with 2 seeds,
for a nominal 95 %). A Student t interval from one number per seed covers it 95 % of the time at every number of seeds
if these numbers are nearly normal. So the Student t interval decides, and the bootstrap shows how much of the
uncertainty comes from the tasks alone.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from scipy.special import stdtr

from hessian_tools.intervals import check_confidence, student_t
from hessian_tools.rng import numpy_stream

MAX_SEEDS = 10_000  # more seeds than any study will have
Outcome = Literal["supported", "not supported", "inconclusive"]


@dataclass(frozen=True)
class Interval:
    """A two-sided interval for a mean: its bounds, and the mean and the standard deviation of the ``num`` values.

    The standard deviation ``sd`` has the divisor num - 1. ``p`` is the two-sided p-value of Student's t-test that the
    mean is 0, NaN where the interval has no bounds. With one value, the bounds and ``sd`` are NaN; with
    none, ``mean`` is NaN as well.
    """

    low: float
    high: float
    mean: float
    sd: float
    num: int
    p: float = math.nan

    @property
    def half_width(self) -> float:
        """Half the distance between the bounds; NaN without bounds."""
        return (self.high - self.low) / 2


def seed_means(effects: np.ndarray) -> np.ndarray:
    """For each seed, the mean of its finite effects; NaN for a seed that has none.

    effects: [seed, task]. The result is [seed].
    """
    finite = np.isfinite(effects)
    total = np.where(finite, effects, 0.0).sum(axis=-1)
    num = finite.sum(axis=-1)
    return np.where(num > 0, total / np.maximum(num, 1), np.nan)


def mean_over(values: xr.DataArray, *dims: str) -> xr.DataArray:
    """The mean over ``dims`` of the values that are not NaN; NaN where there are none, without numpy's warning."""
    count = values.notnull().sum(list(dims))
    return values.sum(list(dims)) / count.where(count > 0)


def student_half_width(sd: float, num: int, *, confidence: float = 0.95) -> float:
    """Half the width of the Student t interval of a mean, from the standard deviation of ``num`` values.

    It is NaN if there are fewer than two values.

    >>> round(student_half_width(1.0, 4), 4)
    1.5912
    """
    return float(student_t(int(num), confidence) * sd / np.sqrt(num)) if num > 1 else float("nan")


def mean_interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """The Student t interval for the mean of ``values``, which are independent and nearly normal; NaN is left out.

    Values are usually one paired effect per seed. An interval from them assumes nothing about the tasks within a seed.
    """
    check_confidence(confidence)
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    num = len(values)
    mean = float(values.mean()) if num else float("nan")
    sd = float(values.std(ddof=1)) if num > 1 else float("nan")
    half = student_half_width(sd, num, confidence=confidence)
    return Interval(mean - half, mean + half, mean, sd, num, t_test(mean, sd / np.sqrt(max(num, 1)), num - 1))


def t_test(estimate: float, standard_error: float, degrees: int) -> float:
    """The two-sided p-value of Student's t-test that the estimated number is 0; NaN without a standard error.

    It is 0 if the estimate is not 0 and has no spread at all.

    >>> round(t_test(2.131, 1.0, 15), 3)
    0.05
    """
    if degrees < 1 or not standard_error > 0:
        return 0.0 if degrees >= 1 and standard_error == 0 and estimate != 0 else math.nan
    return float(2 * stdtr(degrees, -abs(estimate) / standard_error))


def slope_interval(x: np.ndarray, y: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """The Student t interval for the slope of y on x by least squares, with num - 2 degrees of freedom.

    x, y: one value for each seed; pairs with a NaN are left out, and ``num`` pairs remain. With fewer than three pairs,
    or where x does not vary, all numbers but ``num`` are NaN. ``sd`` is the standard error times the square root of
    ``num``, so that ``seeds_to_decide`` can take it for a standard deviation over seeds.
    """
    both = np.isfinite(x) & np.isfinite(y)
    x, y, num = x[both], y[both], int(both.sum())
    if num < 3 or np.ptp(x) == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan, num)
    dx = x - x.mean()
    slope = float(dx @ y / (dx @ dx))
    residual = y - y.mean() - slope * dx
    error = float(np.sqrt(residual @ residual / (num - 2) / (dx @ dx)))
    half = student_t(num - 1, confidence) * error  # student_t takes one more than the degrees of freedom
    return Interval(slope - half, slope + half, slope, error * num**0.5, num, t_test(slope, error, num - 2))


def holm(p_values: np.ndarray) -> np.ndarray:
    """The p-values corrected for their number by Holm's step-down method (Holm 1979); NaN stays NaN and is not counted.

    Rejecting where the corrected value is below 5 % keeps the probability of any false rejection below 5 %, however the
    tests depend on each other.

    >>> holm(np.array([0.01, 0.04, 0.03, np.nan])).round(3).tolist()
    [0.03, 0.06, 0.06, nan]
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(p_values.shape, math.nan)
    order = np.argsort(p_values)[: int(np.isfinite(p_values).sum())]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return corrected


def resampled_counts(num: int, *, resamples: int, stream: np.random.RandomState) -> np.ndarray:
    """Draw how often each of ``num`` items occurs in each resample of a bootstrap: [item, resample] (Efron 1979)."""
    return stream.multinomial(num, np.full(num, 1.0 / num), size=resamples).T.astype(np.float64)


def task_bootstrap(
    effects: np.ndarray, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The bootstrap's percentile interval for the mean over seeds of the task means.

    effects: one value for each task [seed, task]; NaN is left out.
    seed: the seed of the random draws; the same seed gives the same result.

    Tasks are resampled within each seed, independently of the other seeds, because each seed has tasks of its own. The
    seeds stay fixed. So the interval tells how well these seeds were measured and nothing about other seeds: it
    supports no claim. The bounds are NaN when no seed has a finite effect.
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
    """The bounds of the central fraction ``confidence`` of the finite values; NaN when there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def decide(low: float, high: float, *, margin: float) -> Outcome:
    """Decide from an interval about a claim that predicts a positive effect.

    low, high: the ends of the interval. margin: the smallest effect of interest, above 0.

    * not supported: the whole interval lies below the margin. The effect is absent, opposite, or too small to matter.
      An interval inside (0, margin) belongs here, because with enough seeds even a negligible effect differs from 0.
    * supported: the whole interval lies above 0, and at least its upper end reaches the margin.
    * inconclusive: everything else, including NaN bounds (fewer than two seeds).

    An effect is called absent by comparison with the margin, not with 0: an interval that contains 0 and reaches the
    margin shows that there are too few seeds, not that there is no effect. An effect is called present if the interval
    lies above 0, even if it also contains values below the margin. So "supported" says that the direction is sure and
    that a size of interest is possible; the interval tells the size.
    """
    if high < margin:
        return "not supported"
    return "supported" if low > 0 else "inconclusive"


def seeds_to_decide(
    mean: float, sd: float, *, margin: float, confidence: float = 0.95, max_seeds: int = MAX_SEEDS
) -> int | None:
    """The smallest number of seeds at which ``decide`` would decide if ``mean`` and ``sd`` stayed as they are.

    mean, sd: the mean over seeds, with the claimed direction as positive, and the standard deviation over seeds.
    Returns None if ``max_seeds`` seeds would not do, or if ``sd`` is NaN (one seed shows no spread).

    Only about half of the studies with this number of seeds would decide, because their means scatter around ``mean``;
    so plan for more. The number is only a guide: from few seeds, ``sd`` itself is known to a factor of two or worse.
    """
    check_confidence(confidence)

    def decided(num: int) -> bool:
        half = student_half_width(sd, num, confidence=confidence)
        return decide(mean - half, mean + half, margin=margin) != "inconclusive"

    if max_seeds < 2 or not decided(max_seeds):
        return None
    # Bisection works because the interval shrinks around a fixed mean: what some number of seeds decides is decided by
    # more seeds, too. The range ends before ``max_seeds``, which is the result if no smaller number decides.
    return bisect_left(range(max_seeds), True, lo=2, key=decided)
