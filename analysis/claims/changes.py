"""Claims on quantities whose change over meta-training is compared task by task, and on SHOT's distance.

Here g and H are the gradient and the Hessian of the support loss, alpha is the inner step size, and rho = g'Hg / g'g is
the curvature along the gradient. A point is one inner step of one task of one seed.

* "stability": the fraction of points with alpha rho < 2 rises. At such a point, a gradient step lowers the quadratic
  model of the loss.
* "meta-gradient": the full meta-gradient, which differentiates through the inner loop, and the first-order one, which
  treats the inner gradients as constants, approach each other.
* "shot-distance": SHOT (Lee, Yoo, Kwak 2023) compares the end theta_t of T large inner steps (the target) with the end
  theta_r of R small inner steps (the reference). The leading term of an expansion in the step size predicts their
  difference: theta_r - theta_t = (tau^2 / 2) (1/T - 1/R) H g, with H and g at the start of both. tau is the number of
  steps times their size, which is the same for both. The claim is that the prediction holds. It is about a formula and
  not about training, so the cosine of the actual with the predicted difference is compared with a fixed number, and not
  with the untrained network's cosine.
"""

from dataclasses import replace

import numpy as np
import xarray as xr

from analysis.claims.comparison import ask, compare_task_by_task
from analysis.claims.falls import step_groups
from analysis.claims.plan import Plan
from analysis.claims.points import UNTRAINED, diverged, first_and_last, has, points
from analysis.claims.verdict import Verdict, judged
from analysis.schema import alpha_steps, trained_learners, untrained_start, with_seeds_of

THRESHOLD = 2.0  # of alpha rho
# The mean cosine counts as close to 1 if its whole interval lies above this number, and if the interval's upper end
# reaches this number plus the margin.
LEAST_COSINE = 0.8


def stability_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "stability", for each trained learner whose steps are alpha times the gradient."""
    verdicts = []
    for learner, start in _starts(ds):
        if not alpha_steps(ds, learner) or not has(ds, "alpha_rho", learner=learner):
            continue
        trained, untrained, has_diverged = _sides(ds, "alpha_rho", learner, start)
        # 1 where alpha rho is below the threshold and 0 where it is not, so that means are fractions of points.
        below = [np.where(np.isnan(side), np.nan, side < THRESHOLD) for side in (trained, untrained)]
        for steps, rows in step_groups(ds, plan):
            trained_below, untrained_below = (side[:, :, rows] for side in below)
            comparison = compare_task_by_task(trained_below, untrained_below, plan, diverged=has_diverged)
            if comparison.obstacle:  # the only obstacle that can be here is that both sides are identical
                comparison = replace(comparison, obstacle="the same points are below 2 on both sides; so nothing rises")
            words = {"learner": learner, "baseline": UNTRAINED, "steps": steps}
            measure = "the fraction of points with alpha rho below 2"
            question = ask(plan, "stability", "against untrained", "alpha_rho", "positive", measure=measure, **words)
            verdicts.append(judged(plan, question, comparison))
    return verdicts


def meta_gradient_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "meta-gradient", one for each trained learner."""
    name, verdicts = "meta_gradient_cosine", []
    for learner, start in _starts(ds):
        if not has(ds, name, learner=learner) or not has(ds, name, learner=start):
            continue
        trained, untrained, has_diverged = _sides(ds, name, learner, start)
        words = {"learner": learner, "baseline": UNTRAINED, "steps": "all steps"}
        measure = "the cosine of the first-order with the full meta-gradient"
        question = ask(plan, "meta-gradient", "against untrained", name, "positive", measure=measure, **words)
        comparison = compare_task_by_task(trained, untrained, plan, diverged=has_diverged)
        verdicts.append(judged(plan, question, comparison))
    return verdicts


def shot_distance_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "shot-distance", one for each trained learner."""
    name, verdicts = "shot_direction_cosine", []
    for learner, start in _starts(ds):
        if not has(ds, name, learner=learner):
            continue
        trained, _, has_diverged = _sides(ds, name, learner, start)
        against = "as the least value that counts as close to 1"
        words = {"learner": learner, "baseline": f"{LEAST_COSINE:g}", "steps": "all steps", "against": against}
        measure = "the cosine of SHOT's actual with its predicted difference"
        question = ask(plan, "shot-distance", "prediction", name, "positive", measure=measure, **words)
        comparison = compare_task_by_task(trained, np.full_like(trained, LEAST_COSINE), plan, diverged=has_diverged)
        verdicts.append(judged(plan, question, comparison))
    return verdicts


def _starts(ds: xr.Dataset) -> list[tuple[str, str]]:
    """Each trained learner with its untrained start; learners for which the study has no such start are left out."""
    pairs = [(learner, untrained_start(ds, learner)) for learner in trained_learners(ds)]
    return [(learner, start) for learner, start in pairs if start is not None]


def _sides(ds: xr.Dataset, name: str, learner: str, start: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A quantity after and before meta-training [seed, task, step], and the diverged units [seed, task].

    The seeds are those that both learners have. Tasks on which the quantity was measured in no seed are left out,
    because some quantities are measured for only a part of the tasks.
    """
    ds = with_seeds_of(ds, learner, start)
    first, last = first_and_last(ds)
    trained = points(ds, name, learner, checkpoint=last, allow_missing=True)
    untrained = points(ds, name, start, checkpoint=first, allow_missing=True)
    has_diverged = diverged(ds, learner, checkpoint=last) | diverged(ds, start, checkpoint=first)
    # A quantity of a whole inner loop gets an axis of one step.
    trained, untrained = (side[..., None] if side.ndim == 2 else side for side in (trained, untrained))
    measured = np.isfinite(trained).any(axis=(0, 2)) | has_diverged.any(axis=0)  # [task]
    return trained[:, measured], untrained[:, measured], has_diverged[:, measured]
