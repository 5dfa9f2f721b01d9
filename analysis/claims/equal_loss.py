"""Comparison at equal support loss: does curvature differ by more than the loss it follows?

Cross-entropy curvature shrinks with the support loss itself, so a learner with lower losses has a lower
alpha rho whatever its points are like. Here each trained point (task, inner step) is compared with
baseline points of the same seed and step group at the same log support loss.

How: among the baseline points within a caliper in log loss, take the mean of those at or below the point's
loss and of those at or above it, and interpolate between the two means at the point's own loss. A plain
mean inside the caliper is biased where it matters: at the edge of the overlap all matches lie on one side
(trained losses are lower, so the matches are higher), and what is left of the loss reads as suppression. The
interpolation undoes this bias to first order, fits nothing, never extrapolates, and needs one point on each side;
a point without both has no match. It is left out and counted. So this compares where the losses overlap and says
nothing of the rest, and points of equal loss may still differ in other ways. A seed where too few points have a match
is left out as a whole: the few it has are no picture of it.
"""

import numpy as np

from analysis.claims.comparison import IDENTICAL, Comparison, complete, identical, left_out, scale_of
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
    """Differences at equal loss, one per seed; all four [seed, task, step], losses positive.

    Units that diverged on either side [seed, task] are left out of both, as in the raw comparison. The bootstrap
    resamples the tasks of both sides together and matches anew. A seed needs the plan's least share of its points
    matched; an obstacle is set where such seeds leave fewer than two.
    """
    keep = complete(trained, baseline, trained_loss, baseline_loss, diverged=diverged)
    with np.errstate(divide="ignore"):  # a loss of 0 has no logarithm: never matched, counted as such
        sides = [trained, np.log(trained_loss), baseline, np.log(baseline_loss)]
    estimates, shares, draws = [], [], []
    for seed, kept in enumerate(keep):
        y, x, y0, x0 = (side[seed, kept] for side in sides)
        once = matched_means(x, y, x0, y0, np.ones((len(y), 1)), caliper=plan.equal_loss.caliper)
        shares.append(once[2, 0])
        enough = shares[-1] >= plan.equal_loss.least_share
        estimates.append(once[:2, 0] if enough else np.full(2, np.nan))
        if enough:
            stream = numpy_stream(plan.bootstrap.seed, "matched bootstrap", seed)
            counts = resampled_counts(len(y), resamples=plan.bootstrap.resamples, stream=stream)
            again = matched_means(x, y, x0, y0, counts, caliper=plan.equal_loss.caliper)
            draws.append(again[0] - again[1])
    level, reference = np.array(estimates).T
    share = float(np.array(shares) @ keep.sum(axis=1)) / max(int(keep.sum()), 1)
    num_thin = int((keep.any(axis=1) & np.isnan(level)).sum())
    same = identical(trained, baseline, keep) and identical(trained_loss, baseline_loss, keep)
    return Comparison(
        effects=level - reference,
        trained=level,
        baseline=reference,
        scale=scale_of(baseline, keep),
        bootstrap=percentile_interval(np.mean(draws, axis=0) if draws else np.empty(0), confidence=plan.confidence),
        num_tasks=keep.shape[1],
        share=share,
        num_thin=num_thin,
        obstacle=IDENTICAL if same else _obstacle(share, num_thin, int(np.isfinite(level).sum()), plan),
        **left_out(keep, diverged),
    )


def matched_means(
    x: np.ndarray, y: np.ndarray, x0: np.ndarray, y0: np.ndarray, counts: np.ndarray, *, caliper: float
) -> np.ndarray:
    """Mean of y, mean of its matched y0, and share matched [3, resample], over matched points then tasks.

    x, y [task, step]: log loss and value of the trained points; x0, y0 the same for the baseline; ``counts``
    [task, resample]: how often each task is drawn, on both sides. NaN means where nothing matches.
    """
    reference = bracketed(x.ravel(), x0, y0, counts, caliper=caliper).reshape(*x.shape, counts.shape[1])
    found = np.isfinite(reference)
    num = found.sum(axis=1)  # [task, resample]
    weights = counts * (num > 0)
    total = weights.sum(axis=0)
    means = []
    for value in (y[..., None], reference):
        per_task = np.where(found, value, 0.0).sum(axis=1) / np.maximum(num, 1)
        means.append(np.where(total > 0, (weights * per_task).sum(axis=0) / np.maximum(total, 1), np.nan))
    share = (counts * num).sum(axis=0) / np.maximum(counts.sum(axis=0) * x.shape[1], 1)
    return np.stack([*means, share])


def bracketed(x: np.ndarray, x0: np.ndarray, y0: np.ndarray, counts: np.ndarray, *, caliper: float) -> np.ndarray:
    """The baseline value at each log loss x [point], for each resample: [point, resample]; NaN without a bracket.

    Linear between the mean of the neighbours at or below x and the mean of those at or above, both within
    ``caliper``; x0, y0 [task, step], counts [task, resample]. Exact where y0 is linear in x0 inside the caliper.
    """
    with np.errstate(invalid="ignore"):  # -inf minus -inf: a loss of 0 matches nothing
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
