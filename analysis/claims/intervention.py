"""The intervention: if suppression is the mechanism, the accuracy rises when the curvature is lowered from outside.

Two instruments lower the curvature from outside. SHOT penalises the distance between the ends of few large and of many
small inner steps (Lee, Yoo, Kwak 2023). The curvature penalty penalises alpha |Hg| / |g| itself, where g and H are the
gradient and the Hessian of the support loss, and alpha is the inner learning rate. A series of learners differs in one
number alone, the weight of one instrument, which may be negative. The learner with neither instrument has the weight 0.
If two learners have the same weight, the first one is taken. In a study's Dataset, the weight of SHOT is the coordinate
"dose" of a learner, and the weight of the curvature penalty is the coordinate "penalty".

* "manipulation": does the instrument work, so that a larger weight lowers |Hg| / |g|? For each seed, a straight line in
  the rank of the weight is fitted to the logarithm (base 2) of the mean |Hg| / |g|. The effect is the fitted change
  from the smallest to the largest weight.
* "intervention": the slope of the accuracy, over all weights of a seed, against the number of halvings of |Hg| / |g|
  (minus the logarithm, base 2, of its mean over tasks).
* "association": the same slope without an intervention: over the checkpoints of each seed, and between the seeds at the
  last checkpoint. Over checkpoints, accuracy and curvature both change with training, so that this shows no cause.

alpha is the same for all learners of a series, so |Hg| / |g| stands for alpha |Hg| / |g|. The accuracy is that on the
evaluation tasks. The verdicts are made for each step group, a set of inner steps that the plan judges together.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from analysis.claims.comparison import Comparison, ask, compare_seeds, mean_over_seeds
from analysis.claims.equal_accuracy import curvature_curve, mean_scores
from analysis.claims.falls import step_groups
from analysis.claims.plan import Plan
from analysis.claims.points import diverged, first_and_last, has, points
from analysis.claims.sentence import number
from analysis.claims.verdict import Verdict, judged
from analysis.evaluation import has_accuracy
from analysis.schema import learners_by_weight, plain_learners, trained_learners
from analysis.statistics import seed_means, slope_interval

QUANTITY = "hg_ratio"  # |Hg| / |g|
# The coordinate of the Dataset that holds an instrument's weight, and the instrument in words.
INSTRUMENTS = {"dose": "SHOT", "penalty": "the penalty"}
LEAST_POINTS = 3  # the least number of weights, or of checkpoints, for a slope
LEAST_RANGE = 0.26  # halvings: a factor of 1.2 between the smallest and the largest curvature


def manipulation_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "manipulation", for each series of learners and step group."""
    verdicts = []
    for base, instrument, series in _all_series(ds, least=2):
        for steps, rows in step_groups(ds, plan):
            halvings, keep, has_diverged = _halvings_of_series(ds, series, rows)  # halvings: [weight, seed]
            # The slope on the centred ranks, times the number of ranks from the smallest to the largest weight. The
            # minus sign turns halvings into the logarithm (base 2).
            rank = np.arange(len(series)) - (len(series) - 1) / 2
            fitted = -(rank @ halvings) / (rank @ rank) * (len(series) - 1)
            # The (geometric) means of |Hg| / |g| over seeds at both ends of the series.
            first, last = (2 ** -mean_over_seeds(end) for end in (halvings[0], halvings[-1]))
            note = (
                f"the mean goes from {number(first)} at the weight {number(min(series))} to {number(last)} at the"
                f" weight {number(max(series))}"
            )
            comparison = compare_seeds(fitted, _no_baseline(fitted), keep, has_diverged, note=note)
            measure = f"the change of log2 |Hg| / |g| over {len(series)} weights of {INSTRUMENTS[instrument]}"
            words = {"learner": base, "steps": steps, "measure": measure}
            question = ask(plan, "manipulation", _kind(instrument), QUANTITY, "negative", **words)
            verdicts.append(judged(plan, question, comparison))
    return verdicts


def intervention_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "intervention", for each series of learners and step group."""
    if not has_accuracy(ds) or not trained_learners(ds):
        return []
    scores, last = mean_scores(ds), first_and_last(ds)[1]
    verdicts = []
    for base, instrument, series in _all_series(ds, least=LEAST_POINTS):
        accuracy = np.stack([scores.sel(learner=name, checkpoint=last).values for name in series.values()])
        for steps, rows in step_groups(ds, plan):
            halvings, keep, has_diverged = _halvings_of_series(ds, series, rows)
            spread = np.ptp(halvings, axis=0)
            obstacle = None
            if np.isfinite(spread).any() and np.nanmean(spread) < LEAST_RANGE:
                obstacle = "the weights hardly move the curvature; so its effect on the accuracy cannot be seen"
            slopes = seed_slopes(halvings, accuracy)
            comparison = compare_seeds(slopes, _no_baseline(slopes), keep, has_diverged, obstacle=obstacle)
            measure = f"the change of accuracy per halving of |Hg| / |g| by {INSTRUMENTS[instrument]}"
            words = {"learner": base, "steps": steps, "measure": measure}
            question = ask(plan, "intervention", _kind(instrument), QUANTITY, "positive", **words)
            verdicts.append(judged(plan, question, comparison))
    return verdicts


def association_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "association", over checkpoints and between seeds, for each learner and step group."""
    if not has_accuracy(ds) or not has(ds, QUANTITY):
        return []
    scores, verdicts = mean_scores(ds), []
    measure = "the change of accuracy per halving of |Hg| / |g|"
    for learner in plain_learners(ds):
        if not has(ds, QUANTITY, learner=learner):
            continue
        curve, has_diverged = curvature_curve(ds, QUANTITY, learner)
        accuracy = scores.sel(learner=learner).values
        for steps, rows in step_groups(ds, plan):
            values = curve[..., rows].mean(axis=-1)  # [seed, checkpoint, task]
            keep = np.isfinite(values).all(axis=1)
            halvings = np.stack([_halvings(one, keep) for one in np.moveaxis(values, 1, 0)])  # [checkpoint, seed]
            comparisons = []
            if len(halvings) >= LEAST_POINTS:
                slopes = seed_slopes(halvings, accuracy.T)
                note = "both change with training, so that this shows no cause"
                comparisons.append(
                    ("over checkpoints", compare_seeds(slopes, _no_baseline(slopes), keep, has_diverged, note=note))
                )
            between = _between_seeds(halvings[-1], accuracy[:, -1], keep, has_diverged, plan)
            comparisons.append(("between seeds", between))
            for kind, comparison in comparisons:
                question = ask(
                    plan, "association", kind, QUANTITY, "positive", learner=learner, steps=steps, measure=measure
                )
                verdicts.append(judged(plan, question, comparison))
    return verdicts


def seed_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The least-squares slope of y on x for each seed, both [point, seed]; NaN where x does not vary."""
    dx = x - x.mean(axis=0)
    square = (dx**2).sum(axis=0)
    return np.asarray(np.where(square > 0, (dx * y).sum(axis=0) / np.where(square > 0, square, 1.0), np.nan))


def _between_seeds(
    halvings: np.ndarray, accuracy: np.ndarray, keep: np.ndarray, has_diverged: np.ndarray, plan: Plan
) -> Comparison:
    """The slope of the accuracy [seed] on the number of halvings [seed], as a comparison with its own interval."""
    interval = slope_interval(halvings, accuracy, confidence=plan.confidence)
    obstacle = "a slope between seeds needs at least four seeds" if interval.num < 4 else None
    # All seeds share one slope. It stands for the effect of each seed that was used, and the interval decides.
    effects = np.where(np.isfinite(halvings + accuracy), interval.mean, np.nan)
    return compare_seeds(effects, _no_baseline(effects), keep, has_diverged, interval=interval, obstacle=obstacle)


def _no_baseline(effects: np.ndarray) -> np.ndarray:
    """The NaN by which ``compare_seeds`` is told that the effects are numbers of their own, not differences."""
    return np.full_like(effects, np.nan)


def _all_series(ds: xr.Dataset, *, least: int) -> list[tuple[str, str, Mapping[float, str]]]:
    """Each (base learner, instrument, learners by weight) with at least ``least`` weights, all of them measured."""
    all_series: list[tuple[str, str, Mapping[float, str]]] = []
    for base in plain_learners(ds):
        for instrument in INSTRUMENTS:
            series = learners_by_weight(ds, base, instrument)
            if len(series) >= least and all(has(ds, QUANTITY, learner=name) for name in series.values()):
                all_series.append((base, instrument, series))
    return all_series


def _halvings_of_series(
    ds: xr.Dataset, series: Mapping[float, str], rows: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minus log2 of the mean |Hg| / |g| [weight, seed], the tasks used and the diverged ones, both [seed, task]."""
    last = first_and_last(ds)[1]
    values = np.stack([points(ds, QUANTITY, name, checkpoint=last)[..., rows].mean(-1) for name in series.values()])
    has_diverged = np.logical_or.reduce([diverged(ds, name, checkpoint=last) for name in series.values()])
    keep = np.isfinite(values).all(axis=0)
    return np.stack([_halvings(one, keep) for one in values]), keep, has_diverged


def _halvings(values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Minus the logarithm (base 2) of the mean over the tasks in ``keep``, both [seed, task]: [seed]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(-np.log2(seed_means(np.where(keep, values, np.nan))))


def _kind(instrument: str) -> str:
    """The name of the comparisons in the series of an instrument."""
    return "weights of SHOT" if instrument == "dose" else "weights of the penalty"
