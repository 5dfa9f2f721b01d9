"""The intervention: if suppression is the mechanism, the accuracy rises when the curvature is lowered from outside.

The doses of one instrument are learners that differ in one number alone: the weight of SHOT, which may be negative, or
the weight of an explicit penalty on alpha |Hg| / |g|. The learner without both has the dose 0. If two learners have the
same dose, the first one is taken.

* "manipulation": does the instrument work, so that a higher dose lowers |Hg| / |g|? For each seed, the logarithm (base
  2) of its mean is fitted by a straight line in the rank of the dose; the effect is the fitted change from the lowest
  to the highest dose.
* "intervention": the slope of the accuracy, over all doses of a seed, against the number of halvings of |Hg| / |g|.
* "association": the same slope without an intervention: over the checkpoints of each seed, and between the seeds at the
  last checkpoint. Over checkpoints, both change with training, so that this association shows no cause.

alpha is the same for all doses, so |Hg| / |g| stands for alpha |Hg| / |g|. The accuracy is that on the evaluation
tasks.
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
from analysis.schema import plain_learners, setting, trained_learners
from analysis.statistics import slope_interval

QUANTITY = "hg_ratio"
INSTRUMENTS = {"dose": "SHOT", "penalty": "the penalty"}
LEAST_DOSES = 3
LEAST_RANGE = 0.26  # halvings: a factor of 1.2 between the smallest and the largest curvature


def dose_series(ds: xr.Dataset, base: str, instrument: str) -> dict[float, str]:
    """The learners by dose of an instrument ("dose" or "penalty"), in rising order; the dose 0 is ``base``."""
    other = "penalty" if instrument == "dose" else "dose"
    doses = {0.0: base}
    for name in trained_learners(ds):
        if setting(ds, "without_intervention", name) == base and setting(ds, other, name) == 0:
            doses.setdefault(float(setting(ds, instrument, name)), name)
    return dict(sorted(doses.items()))


def manipulation_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "manipulation", for each instrument, series of doses and step group."""
    verdicts = []
    for base, instrument, doses in _all_series(ds, least=2):
        for steps, rows in step_groups(ds, plan):
            halvings, keep, lost = _log_curvature(ds, doses, rows)
            rank = np.arange(len(doses)) - (len(doses) - 1) / 2
            fitted = -(rank @ halvings) / (rank @ rank) * (len(doses) - 1)
            first, last = (2 ** -mean_over_seeds(side) for side in (halvings[0], halvings[-1]))
            note = (
                f"the mean goes from {number(first)} at the weight {number(min(doses))} to {number(last)} at the weight"
                f" {number(max(doses))}"
            )
            comparison = compare_seeds(fitted, np.full_like(fitted, np.nan), keep, lost, note=note)
            measure = f"the change of log2 |Hg| / |g| over {len(doses)} weights of {INSTRUMENTS[instrument]}"
            words = {"learner": base, "steps": steps, "measure": measure}
            question = ask(plan, "manipulation", _kind(instrument), QUANTITY, "negative", **words)
            verdicts.append(judged(plan, question, comparison))
    return verdicts


def intervention_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "intervention", for each instrument, series of doses and step group."""
    if not has_accuracy(ds):
        return []
    scores, last = mean_scores(ds), first_and_last(ds)[1] if trained_learners(ds) else 0
    verdicts = []
    for base, instrument, doses in _all_series(ds, least=LEAST_DOSES):
        accuracy = np.stack([scores.sel(learner=name, checkpoint=last).values for name in doses.values()])
        for steps, rows in step_groups(ds, plan):
            halvings, keep, lost = _log_curvature(ds, doses, rows)
            spread = np.ptp(halvings, axis=0)
            obstacle = None
            if np.isfinite(spread).any() and np.nanmean(spread) < LEAST_RANGE:
                obstacle = "the weights hardly move the curvature; so its effect on the accuracy cannot be seen"
            slopes = seed_slopes(halvings, accuracy)
            comparison = compare_seeds(slopes, np.full_like(slopes, np.nan), keep, lost, obstacle=obstacle)
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
        curve, lost = curvature_curve(ds, QUANTITY, learner)
        accuracy = scores.sel(learner=learner).values
        for steps, rows in step_groups(ds, plan):
            values = curve[..., rows].mean(axis=-1)  # [seed, checkpoint, task]
            keep = np.isfinite(values).all(axis=1)
            halvings = np.stack([_halvings(one, keep) for one in np.moveaxis(values, 1, 0)])  # [checkpoint, seed]
            comparisons = []
            if len(halvings) >= LEAST_DOSES:
                slopes = seed_slopes(halvings, accuracy.T)
                note = "both change with training, so that this shows no cause"
                comparisons.append(
                    ("over checkpoints", compare_seeds(slopes, np.full_like(slopes, np.nan), keep, lost, note=note))
                )
            comparisons.append(("between seeds", _between_seeds(halvings[-1], accuracy[:, -1], keep, lost, plan)))
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
    halvings: np.ndarray, accuracy: np.ndarray, keep: np.ndarray, lost: np.ndarray, plan: Plan
) -> Comparison:
    interval = slope_interval(halvings, accuracy, confidence=plan.confidence)
    obstacle = "a slope between seeds needs at least four seeds" if interval.num < 4 else None
    nothing = np.full_like(accuracy, np.nan)
    effects = np.where(np.isfinite(halvings + accuracy), interval.mean, np.nan)
    return compare_seeds(effects, nothing, keep, lost, interval=interval, obstacle=obstacle)


def _all_series(ds: xr.Dataset, *, least: int) -> list[tuple[str, str, Mapping[float, str]]]:
    """Each (base learner, instrument, learners by dose) that has at least ``least`` doses with a curvature."""
    series: list[tuple[str, str, Mapping[float, str]]] = []
    for base in plain_learners(ds):
        for instrument in INSTRUMENTS:
            doses = dose_series(ds, base, instrument)
            if len(doses) >= least and all(has(ds, QUANTITY, learner=name) for name in doses.values()):
                series.append((base, instrument, doses))
    return series


def _log_curvature(
    ds: xr.Dataset, doses: Mapping[float, str], rows: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minus log2 of the mean |Hg| / |g| [dose, seed], the tasks used and the diverged units, both [seed, task]."""
    last = first_and_last(ds)[1]
    values = np.stack([points(ds, QUANTITY, name, checkpoint=last)[..., rows].mean(-1) for name in doses.values()])
    lost = np.logical_or.reduce([diverged(ds, name, checkpoint=last) for name in doses.values()])
    keep = np.isfinite(values).all(axis=0)
    return np.stack([_halvings(one, keep) for one in values]), keep, lost


def _halvings(values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Minus the logarithm (base 2) of the mean over the tasks in ``keep``, both [seed, task]: [seed]."""
    num = keep.sum(axis=1)
    total = np.where(keep, values, 0.0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(-np.log2(np.where(num > 0, total / np.maximum(num, 1), np.nan)))


def _kind(instrument: str) -> str:
    return "weights of SHOT" if instrument == "dose" else "weights of the penalty"
