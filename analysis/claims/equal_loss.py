"""Comparison at equal support loss: does curvature differ by more than the loss it follows?

Cross-entropy curvature shrinks with the support loss itself, so a learner with lower losses has a lower
alpha rho whatever its points are like. Here each trained point (task, inner step) is compared with
baseline points of the same seed and step group at the same log support loss.

How: among the baseline points within a caliper in log loss, take the mean of those at or below the point's
loss and of those at or above it, and interpolate between the two means at the point's own loss. A plain
mean inside the caliper is biased where it matters: at the edge of the overlap all matches lie on one side
(trained losses are lower, so the matches are higher), and what is left of the loss reads as suppression. The
interpolation removes this to first order, fits nothing, never extrapolates, and needs one point on each side;
a point without both has no match. It is left out and counted, and the estimate speaks of the overlap only.
"""

import numpy as np

from analysis.claims.comparison import Comparison, complete, scale_of
from analysis.claims.plan import Plan
from analysis.statistics import percentile_interval, resampled_counts
from hessian_tools.rng import numpy_stream


def matched(
    trained: np.ndarray, baseline: np.ndarray, trained_loss: np.ndarray, baseline_loss: np.ndarray, plan: Plan
) -> Comparison:
    """Differences at equal loss, one per seed; all four [seed, task, step], losses positive.

    Units that diverged on either side are left out of both, as in the raw comparison. The bootstrap resamples
    the tasks of both sides together and matches anew. An obstacle is set where too few points have a match.
    """
    keep = complete(trained, baseline, trained_loss, baseline_loss)
    with np.errstate(divide="ignore"):  # a loss of 0 has no logarithm: never matched, counted as such
        sides = [trained, np.log(trained_loss), baseline, np.log(baseline_loss)]
    estimates, draws, matches = [], [], 0.0
    for seed, kept in enumerate(keep):
        y, x, y0, x0 = (side[seed, kept] for side in sides)
        once = matched_means(x, y, x0, y0, np.ones((len(y), 1)), caliper=plan.equal_loss.caliper)
        estimates.append(once[:2, 0])
        matches += float(once[2, 0]) * y.size
        if np.isfinite(once[0, 0]):
            stream = numpy_stream(plan.bootstrap.seed, "matched bootstrap", seed)
            counts = resampled_counts(len(y), resamples=plan.bootstrap.resamples, stream=stream)
            again = matched_means(x, y, x0, y0, counts, caliper=plan.equal_loss.caliper)
            draws.append(again[0] - again[1])
    level, reference = np.array(estimates).T
    share = matches / max(int(keep.sum()) * trained.shape[-1], 1)
    return Comparison(
        effects=level - reference,
        trained=level,
        baseline=reference,
        scale=scale_of(baseline, keep),
        bootstrap=percentile_interval(np.mean(draws, axis=0) if draws else np.empty(0), confidence=plan.confidence),
        num_tasks=keep.shape[1],
        num_units=keep.size,
        num_diverged=int((~keep).sum()),
        share=share,
        obstacle=_obstacle(share, plan) if keep.any() else None,
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


def _obstacle(share: float, plan: Plan) -> str | None:
    if share >= plan.equal_loss.least_share:
        return None
    return (
        f"the losses hardly overlap: {share:.0%} of the points have a match within {plan.equal_loss.caliper:g} "
        "in log loss; more seeds would not help"
    )
