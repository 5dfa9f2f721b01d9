"""Comparison at equal support loss: does curvature differ by more than the loss that it follows?

The curvature of the cross-entropy shrinks with the support loss itself, so a learner with lower losses has a lower
alpha rho wherever its points lie. Here each trained point (task, inner step) is compared with baseline points of the
same seed and step group that have the same log support loss.

The method: among the baseline points within a caliper in log loss, take the mean of those at or below the point's loss
and the mean of those at or above it, and interpolate between the two at the point's own loss. A plain mean inside the
caliper is biased where it matters. At the edge of the overlap all matches lie on one side (trained losses are lower,
so the matches are higher), and what is left of the difference in loss reads as suppression. The interpolation removes
this bias to first order, fits nothing and never extrapolates. It needs a baseline point on each side; a trained point
without both has no match, is left out and counted. So the comparison holds where the losses overlap and says nothing
of the rest, and points of equal loss may still differ in other ways. A seed where too few points have a match is left
out as a whole, because the few that it has do not represent it.
"""

import numpy as np

from analysis.claims.comparison import IDENTICAL, Comparison, complete_units, identical, left_out, scale_of
from analysis.claims.plan import Plan
from analysis.statistics import percentile_interval, resampled_counts
from hessian_tools.rng import numpy_stream


def matched(
    trained: np.ndarray,
    baseline: np.ndarray,
    trained_loss: np.ndarray,
    baseline_loss: np.ndarray,
    plan: Plan,
    *,
    diverged: np.ndarray | None = None,
) -> Comparison:
    """Differences at equal loss, one number per seed; all four arrays are [seed, task, step], the losses positive.

    Units [seed, task] that diverged on either side are left out of both, as in the raw comparison. The bootstrap
    resamples the tasks of both sides together and matches anew. A seed needs the plan's least share of its points
    matched; where such seeds leave fewer than two, the comparison has an obstacle.
    """
    keep = complete_units(trained, baseline, trained_loss, baseline_loss, diverged=diverged)
    with np.errstate(divide="ignore"):  # a loss of 0 has no logarithm: it is never matched, and counted as such
        sides = [trained, np.log(trained_loss), baseline, np.log(baseline_loss)]
    caliper = plan.equal_loss.caliper
    estimates, shares, draws = [], [], []
    for seed, tasks in enumerate(keep):
        y, x, y0, x0 = (side[seed, tasks] for side in sides)
        value, reference, share = matched_means(x, y, x0, y0, np.ones((len(y), 1)), caliper=caliper)[:, 0]
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
    num_thin = int((keep.any(axis=1) & np.isnan(values)).sum())
    same = identical(trained, baseline, keep) and identical(trained_loss, baseline_loss, keep)
    return Comparison(
        effects=values - references,
        trained=values,
        baseline=references,
        scale=scale_of(baseline, keep),
        bootstrap=percentile_interval(np.mean(draws, axis=0) if draws else np.empty(0), confidence=plan.confidence),
        num_tasks=keep.shape[1],
        share=share,
        num_thin=num_thin,
        obstacle=IDENTICAL if same else _obstacle(share, num_thin, int(np.isfinite(values).sum()), plan),
        **left_out(keep, diverged),
    )


def matched_means(
    x: np.ndarray, y: np.ndarray, x0: np.ndarray, y0: np.ndarray, counts: np.ndarray, *, caliper: float
) -> np.ndarray:
    """The mean of y, the mean of the y0 matched to it, and the share of points with a match: [3, resample].

    Means are taken over the matched points of a task, then over tasks; they are NaN where nothing matches.
    x, y: log loss and value of the trained points [task, step]; x0, y0: the same of the baseline. counts: how often
    each task is drawn, on both sides [task, resample].
    """
    reference = bracketed(x.ravel(), x0, y0, counts, caliper=caliper).reshape(*x.shape, counts.shape[1])
    has_match = np.isfinite(reference)
    num = has_match.sum(axis=1)  # [task, resample]
    weights = counts * (num > 0)
    total = weights.sum(axis=0)
    means = []
    for value in (y[..., None], reference):
        per_task = np.where(has_match, value, 0.0).sum(axis=1) / np.maximum(num, 1)
        means.append(np.where(total > 0, (weights * per_task).sum(axis=0) / np.maximum(total, 1), np.nan))
    share = (counts * num).sum(axis=0) / np.maximum(counts.sum(axis=0) * x.shape[1], 1)
    return np.stack([*means, share])


def bracketed(x: np.ndarray, x0: np.ndarray, y0: np.ndarray, counts: np.ndarray, *, caliper: float) -> np.ndarray:
    """The baseline's value at each log loss x [point], for each resample: [point, resample].

    It is linear between the mean of the neighbours at or below x and the mean of those at or above it, both within
    ``caliper``, and NaN where one of the two is missing. It is exact where y0 is linear in x0 inside the caliper.
    x0, y0: [task, step]; counts: [task, resample].
    """
    with np.errstate(invalid="ignore"):  # -inf minus -inf is NaN: a loss of 0 matches nothing
        gap = x0[None] - x[:, None, None]  # [point, task, step]
    ends = []
    for side in ((gap <= 0) & (gap >= -caliper), (gap >= 0) & (gap <= caliper)):
        num = side.sum(axis=-1) @ counts
        with np.errstate(invalid="ignore"):
            ends.append([np.where(side, v, 0.0).sum(axis=-1) @ counts / num for v in (gap, y0[None])])
    (left, below), (right, above) = ends
    width = right - left
    share = np.where(width > 0, -left / np.where(width > 0, width, 1.0), 0.5)
    return np.asarray(below + share * (above - below))


def _obstacle(share: float, num_thin: int, num_left: int, plan: Plan) -> str | None:
    if num_thin == 0 or num_left >= 2:
        return None
    within = f"a match within {plan.equal_loss.caliper:g} in log loss"
    if num_left:
        return f"the losses overlap in one seed only; elsewhere too few points have {within}"
    return f"the losses hardly overlap: {share:.0%} of the points have {within}; more seeds would not help"
