"""SHOT at equal accuracy: is the curvature still lower where both learners are equally accurate?

A learner that has learned more, or less, may have another curvature for that reason alone. So a learner with SHOT is
compared with the same learner without SHOT at the smaller of their two final accuracies. The accuracies are those on
the evaluation tasks, which are other tasks than those on which curvature is measured; otherwise a checkpoint could be
chosen because its noise happens to make it accurate and flat. For regression, the query loss takes the place of the
accuracy.

For each seed, the learner with the smaller final accuracy is taken at its last checkpoint. The other learner is taken
where its accuracy last rose through that value: its curvature is interpolated linearly in accuracy between the two
neighbouring checkpoints. Both sides are treated alike, so that two equal learners differ by 0 on average. A seed is
left out if the other learner's accuracy was above that value at every checkpoint.

The matching is coarse where checkpoints are few. A straight line between two checkpoints lies above a curve that
flattens, so that the interpolated learner seems to have more curvature. The more accurate learner is the interpolated
one: with few checkpoints, this speaks against SHOT where SHOT learns more, and for it where it learns less.
"""

import numpy as np
import xarray as xr

from analysis.claims.comparison import ask, compare_seeds, mean_over_seeds
from analysis.claims.falls import step_groups
from analysis.claims.plan import Plan
from analysis.claims.points import diverged, points, shot_pairs
from analysis.claims.verdict import Verdict, conclude
from analysis.evaluation import evaluation_scores, has_accuracy
from analysis.schema import alpha_steps
from analysis.statistics import mean_over, seed_means

CLAIM = "shot-equal-accuracy"


def equal_accuracy_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts for every pair with and without SHOT and step group, on alpha rho and on alpha |Hg| / |g|.

    A step group is a set of inner steps that the plan judges together. g and H are the gradient and the Hessian of the
    support loss, rho = g'Hg / g'g, and alpha is the inner step size. If the steps of one of the two learners are not
    alpha times the gradient, the verdicts are on rho and |Hg| / |g|.
    """
    # The query loss of regression gets a minus sign, so that a higher score is better in either case.
    scores = (1.0 if has_accuracy(ds) else -1.0) * mean_scores(ds)
    verdicts = []
    for learner, without in shot_pairs(ds):
        pair = (learner, without)
        scaled = all(alpha_steps(ds, one) for one in pair)
        for name in ("alpha_rho", "alpha_hg_ratio") if scaled else ("rho", "hg_ratio"):
            if name not in ds or not np.isfinite(ds[name].sel(learner=list(pair))).any():
                continue
            curves, divergences = zip(*(curvature_curve(ds, name, one) for one in pair), strict=True)
            has_diverged = divergences[0] | divergences[1]
            for steps, rows in step_groups(ds, plan):
                means = [curve[:, :, :, rows].mean(axis=-1) for curve in curves]  # [seed, checkpoint, task]
                keep = np.isfinite(means[0]).all(axis=1) & np.isfinite(means[1]).all(axis=1)
                per_seed = [seed_means(np.where(keep[:, None], mean, np.nan)) for mean in means]  # [seed, checkpoint]
                values = at_equal_score(*per_seed, *(scores.sel(learner=one).values for one in pair))
                num_unmatched = int((keep.any(axis=1) & ~np.isfinite(values[0] - values[1])).sum())
                comparison = compare_seeds(*values, keep, has_diverged, num_unmatched_seeds=num_unmatched)
                question = ask(
                    plan, CLAIM, "equal accuracy", name, "negative", learner=learner, baseline=without, steps=steps
                )
                # The plan's margin is a fraction of the mean of the learner without SHOT.
                margin = plan.margin(CLAIM) * abs(mean_over_seeds(values[1]))
                verdicts.append(conclude(question, comparison, margin=margin, confidence=plan.confidence))
    return verdicts


def mean_scores(ds: xr.Dataset) -> xr.DataArray:
    """The mean accuracy (for regression, the mean query loss) on the evaluation tasks: (learner, seed, checkpoint)."""
    return mean_over(evaluation_scores(ds), "evaluation_task").transpose("learner", "seed", "checkpoint")


def curvature_curve(ds: xr.Dataset, name: str, learner: str) -> tuple[np.ndarray, np.ndarray]:
    """A quantity of a learner at its checkpoints [seed, checkpoint, task, step], and the diverged units [seed, task].

    A unit counts as diverged if it did at any checkpoint.
    """
    checkpoints = [int(checkpoint) for checkpoint in ds["checkpoint"].values]
    values = [points(ds, name, learner, checkpoint=one, allow_missing=True) for one in checkpoints]
    has_diverged = [diverged(ds, learner, checkpoint=one) for one in checkpoints]
    return np.stack(values, axis=1), np.logical_or.reduce(has_diverged)


def at_equal_score(
    one: np.ndarray, other: np.ndarray, one_score: np.ndarray, other_score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The values of two learners [seed] at the smaller of their final scores; all arguments are [seed, checkpoint].

    Both are NaN for a seed in which the better learner's score was above that score at every checkpoint.
    """
    level = np.minimum(one_score[:, -1], other_score[:, -1])
    pair = np.array([_where_last(*side, level) for side in ((one, one_score), (other, other_score))])
    matched = np.isfinite(pair).all(axis=0)
    return np.where(matched, pair[0], np.nan), np.where(matched, pair[1], np.nan)


def _where_last(values: np.ndarray, score: np.ndarray, level: np.ndarray) -> np.ndarray:
    """The values [seed] where the score last rose through the level [seed], interpolated between checkpoints.

    Where the score ends exactly at the level, these are the last values.
    """
    at_level = np.full_like(values[:, -1], np.nan)
    for index in range(score.shape[1] - 1):  # a later passage overwrites an earlier one
        low, high = score[:, index], score[:, index + 1]
        passes = (low <= level) & (high > level)
        weight = np.where(passes, level - low, 0.0) / np.where(passes, high - low, 1.0)
        between = values[:, index] + weight * (values[:, index + 1] - values[:, index])
        at_level = np.where(passes, between, at_level)
    return np.asarray(np.where(score[:, -1] == level, values[:, -1], at_level))
