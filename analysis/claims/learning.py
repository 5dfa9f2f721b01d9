"""Claims on what SHOT does for learning: does it raise the accuracy, and is a given accuracy reached sooner with it?

SHOT (Lee, Yoo, Kwak 2023) is the penalty on the distance between the ends of few large and of many small inner steps.

* "shot-accuracy": SHOT raises the accuracy on the evaluation tasks at the last checkpoint, task by task.
* "shot-speed": SHOT reaches a given accuracy in fewer meta-iterations. The accuracy is fixed for a pair of learners: it
  lies at 90 % of the way from the untrained accuracy to the smaller of the two mean final accuracies, so that neither
  learner is favoured. The meta-iteration at which it is first reached is interpolated linearly between checkpoints. A
  learner that never reaches the accuracy in a seed is censored there: all that is known is that it needs more
  meta-iterations than the whole training, whose number is used in place of the unknown one. This understates the
  difference, whichever learner is faster. A seed in which both learners are censored says nothing and is left out. If a
  learner is censored in more than half of the seeds, there is no verdict.
"""

import numpy as np
import xarray as xr

from analysis.claims.comparison import ask, compare_seeds, compare_task_by_task, mean_over_seeds
from analysis.claims.equal_accuracy import mean_scores
from analysis.claims.plan import Plan
from analysis.claims.points import first_and_last, shot_pairs
from analysis.claims.sentence import plural
from analysis.claims.verdict import Verdict, judged
from analysis.evaluation import evaluation_scores, has_accuracy
from analysis.schema import has_seed

SHARE_OF_GAIN = 0.9  # the accuracy whose reaching is timed, as a fraction of the gain over the untrained network


def shot_accuracy_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "shot-accuracy", one for each learner with SHOT."""
    if not has_accuracy(ds):
        return []
    scores, verdicts = evaluation_scores(ds), []
    for learner, without in shot_pairs(ds):
        last, present = first_and_last(ds)[1], has_seed(ds, learner, without)
        if not present.any():
            continue
        trained, plain = (
            scores.isel(seed=present)
            .sel(learner=one, checkpoint=last)
            .transpose("seed", "evaluation_task")
            .values[..., None]
            for one in (learner, without)
        )
        has_diverged = np.isnan(trained + plain)[..., 0]  # the score is NaN where the inner loop diverged
        words = {"learner": learner, "baseline": without, "against": f"for {without}"}
        measure = "the accuracy on the evaluation tasks"
        question = ask(plan, "shot-accuracy", "accuracy", "evaluation_accuracy", "positive", measure=measure, **words)
        verdicts.append(judged(plan, question, compare_task_by_task(trained, plain, plan, diverged=has_diverged)))
    return verdicts


def shot_speed_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "shot-speed", one for each learner with SHOT.

    The effect is in doublings of the number of meta-iterations (here called the time) to the accuracy.
    """
    if not has_accuracy(ds):
        return []
    scores = mean_scores(ds)
    checkpoints = ds["checkpoint"].values.astype(np.float64)
    verdicts = []
    for learner, without in shot_pairs(ds):
        present = has_seed(ds, learner, without)
        if not present.any():
            continue
        curves = [scores.isel(seed=present).sel(learner=one).values for one in (learner, without)]
        untrained = sum(mean_over_seeds(curve[:, 0]) for curve in curves) / 2
        ends = min(mean_over_seeds(curve[:, -1]) for curve in curves)
        level = untrained + SHARE_OF_GAIN * (ends - untrained)
        times = [reached(curve, level, checkpoints) for curve in curves]
        censored = [np.isnan(time) & np.isfinite(curve).all(axis=1) for time, curve in zip(times, curves, strict=True)]
        known = np.isfinite(curves[0] + curves[1]).all(axis=1) & ~(censored[0] & censored[1])
        logs = [
            np.where(known, np.log2(np.where(is_censored, checkpoints[-1], time)), np.nan)
            for is_censored, time in zip(censored, times, strict=True)
        ]
        obstacle = None
        if not ends > untrained:
            obstacle = "a learner is not better than the untrained network; so there is no accuracy to reach"
        elif max(is_censored.mean() for is_censored in censored) > 0.5:
            obstacle = "too few seeds reach the accuracy; train longer"
        num_censored = [int(is_censored.sum()) for is_censored in censored]
        note = f"the accuracy to reach is {100 * level:.1f} %"
        if any(num_censored):
            with_shot, without_shot = (plural(num, "seed") for num in num_censored)
            note += f", which {with_shot} with and {without_shot} without SHOT"
            note += " never reached: they count as if they had at the last checkpoint"
        keep = np.isfinite(logs[0] + logs[1])[:, None]  # a seed has one time, so it counts as one task
        comparison = compare_seeds(logs[0], logs[1], keep, np.zeros_like(keep), obstacle=obstacle, note=note)
        words = {"learner": learner, "baseline": without, "against": f"for {without}"}
        measure = "the logarithm (base 2) of the meta-iterations to the accuracy"
        question = ask(plan, "shot-speed", "time", "evaluation_accuracy", "negative", measure=measure, **words)
        verdicts.append(judged(plan, question, comparison))
    return verdicts


def reached(curve: np.ndarray, level: float, checkpoints: np.ndarray) -> np.ndarray:
    """The meta-iteration [seed] at which a curve [seed, checkpoint] first reaches the level; NaN if it never does."""
    times = np.full(len(curve), np.nan)
    for index in range(curve.shape[1] - 1, 0, -1):  # an earlier passage overwrites a later one
        low, high = curve[:, index - 1], curve[:, index]
        passes = (low < level) & (high >= level)
        weight = np.where(passes, level - low, 0.0) / np.where(passes, high - low, 1.0)
        at = checkpoints[index - 1] + weight * (checkpoints[index] - checkpoints[index - 1])
        times = np.where(passes, at, times)
    return times
