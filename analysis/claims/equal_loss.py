"""Comparison at equal support loss: is curvature still lower where the support losses of both sides are equal?

The curvature of the cross-entropy shrinks together with the support loss. So a learner with lower support losses has a
lower alpha rho for that reason alone, where rho = g'Hg / g'g is the curvature along the inner gradient g and alpha the
inner learning rate. Here a point is one inner step of one task. Each point of the trained learner is compared with
points of the baseline that have nearly the same logarithm of the support loss (the log loss) and the same seed. Both
points must lie in one step group: a range of inner steps that the plan of the claims (``analysis.claims.plan``) judges
together.

The method: among the baseline points whose log loss differs by at most a caliper, take the mean of those at or below
the trained point's loss and the mean of those at or above it, and interpolate between the two means at the trained
point's own loss. A plain mean of all baseline points inside the caliper would be biased at the edge of the overlap.
There, all of them have higher losses than the trained point, and the curvature that is higher because the loss is
higher would be mistaken for suppression by training. The interpolation removes this bias to first order, fits nothing
and never extrapolates.

The interpolation needs a baseline point on each side. A trained point without both has no match: it is left out and
counted. So the comparison holds where the losses of the two sides overlap, and it says nothing about the other points.
Points of equal loss may still differ in other ways. A seed in which too few points have a match is left out as a whole,
because those few points do not represent it.
"""

import numpy as np

from analysis.claims.comparison import (
    SIDES_IDENTICAL,
    Comparison,
    complete_units,
    count_left_out,
    identical,
    mean_abs_baseline,
)
from analysis.claims.plan import Plan
from analysis.statistics import percentile_interval, resampled_counts
from hessian_tools.rng import numpy_stream


def compare_at_equal_loss(
    trained: np.ndarray,
    baseline: np.ndarray,
    trained_loss: np.ndarray,
    baseline_loss: np.ndarray,
    plan: Plan,
    *,
    diverged: np.ndarray | None = None,
) -> Comparison:
    """Compare two sides at equal loss, with one number per seed; all four arrays are [seed, task, step].

    trained, baseline: the values of the two sides. trained_loss, baseline_loss: their support losses, 0 or more.
    diverged: True for each unit (one task of one seed) [seed, task] that diverged on at least one side. Such a unit is
        left out of both sides, as in ``compare_task_by_task``.

    Each resample of the bootstrap has the same tasks on both sides, and its points are matched anew. A seed is left out
    if the fraction of its points that have a match is below the plan's ``least_share``. If that leaves fewer than two
    seeds, the comparison has an obstacle, so that it is inconclusive.
    """
    keep = complete_units(trained, baseline, trained_loss, baseline_loss, diverged=diverged)
    # The logarithm of a loss of 0 is -inf. Such a point never has a match, and counts as a point without one.
    with np.errstate(divide="ignore"):
        sides = [trained, np.log(trained_loss), baseline, np.log(baseline_loss)]
    caliper = plan.equal_loss.caliper
    # estimates: both means of each seed. draws: for each seed that is compared, its effect in each resample.
    estimates, shares, draws = [], [], []
    for seed, tasks in enumerate(keep):
        y, x, y0, x0 = (side[seed, tasks] for side in sides)  # value and log loss: trained, then baseline
        each_task_once = np.ones((len(y), 1))
        value, reference, share = matched_means(x, y, x0, y0, each_task_once, caliper=caliper)[:, 0]
        shares.append(share)
        if share < plan.equal_loss.least_share:
            estimates.append((np.nan, np.nan))
            continue
        estimates.append((value, reference))
        stream = numpy_stream(plan.bootstrap.seed, "matched bootstrap", seed)
        counts = resampled_counts(len(y), resamples=plan.bootstrap.resamples, stream=stream)
        resampled = matched_means(x, y, x0, y0, counts, caliper=caliper)
        draws.append(resampled[0] - resampled[1])
    values, references = np.array(estimates).T
    share = float(np.array(shares) @ keep.sum(axis=1)) / max(int(keep.sum()), 1)
    num_unmatched_seeds = int((keep.any(axis=1) & np.isnan(values)).sum())
    num_seeds_left = int(np.isfinite(values).sum())
    same = identical(trained, baseline, keep) and identical(trained_loss, baseline_loss, keep)
    return Comparison(
        effects=values - references,
        trained=values,
        baseline=references,
        scale=mean_abs_baseline(baseline, keep),
        bootstrap=percentile_interval(np.mean(draws, axis=0) if draws else np.empty(0), confidence=plan.confidence),
        num_tasks=keep.shape[1],
        share=share,
        num_unmatched_seeds=num_unmatched_seeds,
        obstacle=SIDES_IDENTICAL if same else _obstacle(share, num_unmatched_seeds, num_seeds_left, plan),
        **count_left_out(keep, diverged),
    )


def matched_means(
    x: np.ndarray, y: np.ndarray, x0: np.ndarray, y0: np.ndarray, counts: np.ndarray, *, caliper: float
) -> np.ndarray:
    """Return the mean of y, the mean of the baseline matched to it, and the share of matched points: [3, resample].

    Means are taken over the matched points of a task, then over tasks; they are NaN where no point has a match.

    x, y: the log losses and the values of the trained points [task, step].
    x0, y0: the log losses and the values of the baseline points [task, step].
    counts: how often each task is drawn in each resample, the same for both sides [task, resample].
    """
    reference = interpolate_baseline(x.ravel(), x0, y0, counts, caliper=caliper).reshape(*x.shape, counts.shape[1])
    has_match = np.isfinite(reference)
    num = has_match.sum(axis=1)  # [task, resample]
    weights = counts * (num > 0)
    total = weights.sum(axis=0)
    means = []
    for value in (y[..., None], reference):
        per_task = np.where(has_match, value, 0.0).sum(axis=1) / np.maximum(num, 1)
        means.append(np.where(total > 0, (weights * per_task).sum(axis=0) / np.maximum(total, 1), np.nan))
    # The division by at least 1 changes nothing where there are points; without any, the share is 0.
    share = (counts * num).sum(axis=0) / np.maximum(counts.sum(axis=0) * x.shape[1], 1)
    return np.stack([*means, share])


def interpolate_baseline(
    x: np.ndarray, x0: np.ndarray, y0: np.ndarray, counts: np.ndarray, *, caliper: float
) -> np.ndarray:
    """Interpolate the baseline's value at each log loss x [point], for each resample: [point, resample].

    The value is interpolated linearly between two means: that of the baseline points at or below x, and that of those
    at or above x, both within ``caliper``. It is NaN where one of the two groups is empty. It is exact where y0 is a
    linear function of x0 inside the caliper.

    x0, y0: the log losses and the values of the baseline points [task, step].
    counts: how often each task is drawn in each resample [task, resample].
    """
    with np.errstate(invalid="ignore"):  # -inf minus -inf is NaN, so that two losses of 0 do not match each other
        gap = x0[None] - x[:, None, None]  # [point, task, step]
    ends = []
    for side in ((gap <= 0) & (gap >= -caliper), (gap >= 0) & (gap <= caliper)):
        num = side.sum(axis=-1) @ counts
        with np.errstate(invalid="ignore"):  # an empty group has the mean 0 / 0 = NaN, which marks a missing side
            ends.append([np.where(side, v, 0.0).sum(axis=-1) @ counts / num for v in (gap, y0[None])])
    (left, below), (right, above) = ends
    width = right - left
    # Where all points of both groups have exactly the loss x, the two means are equal, so that the weight is arbitrary.
    weight = np.where(width > 0, -left / np.where(width > 0, width, 1.0), 0.5)
    return np.asarray(below + weight * (above - below))


def _obstacle(share: float, num_unmatched_seeds: int, num_seeds_left: int, plan: Plan) -> str | None:
    """The reason why too few seeds are left for a verdict.

    None if at least two seeds are left, or if no seed was left out for want of matches.
    """
    if num_unmatched_seeds == 0 or num_seeds_left >= 2:
        return None
    within = f"a match within {plan.equal_loss.caliper:g} in log loss"
    if num_seeds_left:
        return f"the losses overlap in one seed only; in the other seeds, too few points have {within}"
    return f"the losses hardly overlap: {share:.0%} of the points have {within}; more seeds would not help"
