"""Claims that compare relative falls: by which fraction of its untrained value has meta-training lowered a quantity?

A relative fall is 1 - trained / untrained, where both are means over the tasks of one seed and over the inner steps of
a step group (inner steps that the plan of the claims judges together). The untrained network is the learner's own
start. A relative fall has no unit, so falls of different quantities and of learners with different inner step sizes can
be compared. The ratio of two means is biased by about the squared relative error of its denominator; the jackknife over
tasks (Quenouille 1956) removes this bias to first order.

* "trajectory": along the inner trajectory the curvature falls more than elsewhere. The curvature there is
  rho = g'Hg / g'g, with the gradient g and the Hessian H of the support loss. rho is compared with the same quotient
  for gradients that are rotated at random within each parameter tensor, and with the eigenvalue of largest magnitude.
  Along random directions v, the quotient v'Hv / v'v has a mean near 0 and may change its sign, so that it has no
  relative fall. |Hg| / |g| is therefore compared with the root mean square of |Hv| / |v| over random directions v,
  which is |H|_F / sqrt(n) for n parameters and is never near 0.
* "weight-growth": the fall of rho is not explained by growing weights.
* "first-order": the fall is smaller for learners whose outer gradient contains no Hessian.
* "head-and-body": the fall is larger in the part of the network that a learner adapts.
* "supervised": the fall is larger than that of a control, such as a network with ordinary supervised training.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from analysis.claims.comparison import Comparison, Direction, ask, compare_seeds, complete_units, mean_over_seeds
from analysis.claims.plan import Plan
from analysis.claims.points import UNTRAINED, diverged, first_and_last, has, points
from analysis.claims.verdict import Verdict, judged
from analysis.schema import plain_learners, setting, trained_learners, untrained_start

RESOLVED = 3.0  # a mean counts as different from 0 if it is at least this many standard errors away
# The quantities as the sentences of the verdicts call them.
WORDS = {"rho": "rho", "hg_ratio": "|Hg| / |g|", "rho_head": "rho of the head", "rho_body": "rho of the body"}


@dataclass(frozen=True)
class Change:
    """A quantity of one learner before and after meta-training.

    untrained, trained: its means over the inner steps of a step group [seed, task]; NaN where it is not defined.
    diverged: True for each unit (one task of one seed) [seed, task] that diverged before or after meta-training.
    """

    untrained: np.ndarray
    trained: np.ndarray
    diverged: np.ndarray

    def fall(self, keep: np.ndarray) -> np.ndarray:
        """The relative fall [seed] over the tasks in ``keep`` [seed, task], as a jackknife estimate."""
        untrained, trained = (np.where(keep, side, 0.0) for side in (self.untrained, self.trained))
        untrained_sum, trained_sum = untrained.sum(axis=1), trained.sum(axis=1)
        num = keep.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            plain = 1 - trained_sum / untrained_sum
            # [seed, task]: the fall where this task is left out, for which there must be another task.
            without_one = 1 - (trained_sum[:, None] - trained) / (untrained_sum[:, None] - untrained)
            mean = np.where(keep, without_one, 0.0).sum(axis=1) / num
        return np.asarray(np.where(num > 1, num * plain - (num - 1) * mean, np.where(num == 1, plain, np.nan)))

    def resolved(self, keep: np.ndarray) -> bool:
        """True if the untrained mean of every seed differs from 0 by ``RESOLVED`` standard errors over tasks."""
        num = np.maximum(keep.sum(axis=1), 1)
        mean = np.where(keep, self.untrained, 0.0).sum(axis=1) / num
        square = np.where(keep, self.untrained - mean[:, None], 0.0) ** 2
        error = np.sqrt(square.sum(axis=1) / np.maximum(num - 1, 1) / num)
        return bool((np.abs(mean) >= RESOLVED * error).all())


def change(ds: xr.Dataset, name: str, learner: str, rows: slice, *, magnitude: bool = False) -> Change | None:
    """The change of a quantity over meta-training; None where it was not measured or there is no untrained start.

    rows: the inner steps that are averaged. magnitude: True for the absolute value of each point.
    """
    start = untrained_start(ds, learner)
    if start is None or not has(ds, name, learner=learner) or not has(ds, name, learner=start):
        return None
    first, last = first_and_last(ds)
    means, has_diverged = [], []
    for one, checkpoint in ((start, first), (learner, last)):
        values = points(ds, name, one, checkpoint=checkpoint, allow_missing=True)
        # Only eigenvalues have a fourth axis. Its first entry is the eigenvalue of largest magnitude.
        values = values[..., 0] if values.ndim == 4 else values
        values = values[:, :, rows]
        means.append((np.abs(values) if magnitude else values).mean(axis=-1))
        has_diverged.append(diverged(ds, one, checkpoint=checkpoint))
    return Change(means[0], means[1], has_diverged[0] | has_diverged[1])


def step_groups(ds: xr.Dataset, plan: Plan) -> Iterator[tuple[str, slice]]:
    """The name of each step group of the plan and its rows of the axis ``inner_step``."""
    for steps, group in plan.step_groups.items():
        yield steps, group.rows(ds.sizes["inner_step"] - 1)


def compare_falls(one: Change, other: Change, *, must_fall: bool) -> Comparison:
    """Compare the relative falls of two changes, over the tasks that both have.

    must_fall: True if the claim also requires that the first quantity falls at all.
    """
    keep = complete_units(one.untrained, one.trained, other.untrained, other.trained)
    falls = one.fall(keep), other.fall(keep)
    obstacle = None
    if not (one.resolved(keep) and other.resolved(keep)):
        obstacle = "an untrained mean is not clearly different from 0; so it has no relative fall"
    return compare_seeds(
        *falls,
        keep,
        one.diverged | other.diverged,
        obstacle=obstacle,
        required=falls[0] if must_fall else None,
        requirement="the quantity itself falls",
    )


def trajectory_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "trajectory": up to three comparisons for each trained learner and step group."""
    # Each row holds a quantity along the trajectory, the quantity elsewhere with whose fall its fall is compared, the
    # name of the comparison, and the baseline in words.
    comparisons = (
        ("rho", "rho_rotated", "against rotated gradients", "along rotated gradients"),
        ("rho", "eigenvalue", "against the largest eigenvalue", "for the eigenvalue of largest magnitude"),
        ("hg_ratio", "frobenius", "against random directions", "for |Hv| / |v| along random directions v"),
    )
    verdicts = []
    for learner in trained_learners(ds):
        for steps, rows in step_groups(ds, plan):
            for name, other, comparison, against in comparisons:
                along = change(ds, name, learner, rows)
                elsewhere = change(ds, other, learner, rows, magnitude=other == "eigenvalue")
                if along is None or elsewhere is None:
                    continue
                words = {"learner": learner, "baseline": UNTRAINED, "steps": steps, "against": against}
                measure = f"the relative fall of {WORDS[name]}"
                question = ask(plan, "trajectory", comparison, name, "positive", measure=measure, **words)
                verdicts.append(judged(plan, question, compare_falls(along, elsewhere, must_fall=True)))
    return verdicts


def growth_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "weight-growth", one for each trained learner and step group.

    Filters that a normalisation layer follows can be scaled to unit norm, and rho then does not change if they grow.
    The raw fall is that of log |rho| as it was measured. The effect is the fall of log |rho| at unit filter norm minus
    half of the raw fall. It is above 0 if growing weights explain less than half of the raw fall. Unlike the share of
    the raw fall that they explain, it needs no division by the raw fall, which may be near 0.
    """
    verdicts = []
    for learner in trained_learners(ds):
        for steps, rows in step_groups(ds, plan):
            raw = change(ds, "rho", learner, rows, magnitude=True)
            unit = change(ds, "rho_normalised", learner, rows, magnitude=True)
            if raw is None or unit is None:
                continue
            keep = complete_units(raw.untrained, raw.trained, unit.untrained, unit.trained)
            fall, remaining = (_log_fall(one, keep) for one in (raw, unit))
            raw_fall = mean_over_seeds(fall)
            share = 1 - mean_over_seeds(remaining) / raw_fall if raw_fall else np.nan
            words = {"learner": learner, "baseline": UNTRAINED, "steps": steps, "against": "for half of the raw fall"}
            measure = "the fall of log |rho| at unit filter norm"
            name = "share at unit filter norm"  # of the comparison
            question = ask(plan, "weight-growth", name, "rho", "positive", measure=measure, **words)
            comparison = compare_seeds(
                remaining,
                fall / 2,
                keep,
                raw.diverged,
                required=fall,
                requirement="rho falls at all",
                note=f"growing weights explain {100 * share:.0f} % of the fall" if np.isfinite(share) else "",
            )
            verdicts.append(judged(plan, question, comparison))
    return verdicts


def first_order_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "first-order", for each first-order learner and its second-order counterpart."""
    plain = plain_learners(ds)
    # A family is a set of learners that differ in nothing but first_order, SHOT and the penalty on the curvature.
    pairs = [
        (first_order, full)
        for first_order in plain
        for full in plain
        if setting(ds, "family", first_order) == setting(ds, "family", full)
        and setting(ds, "first_order", first_order)
        and not setting(ds, "first_order", full)
    ]
    return [
        verdict
        for pair in pairs
        for name in ("rho", "hg_ratio")
        for verdict in _learner_verdicts(ds, plan, "first-order", name, pair, "negative")
    ]


def head_and_body_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "head-and-body": ANIL's head and BOIL's body, each against the same part of MAML."""
    plain = plain_learners(ds)
    verdicts = []
    for algorithm, name in (("anil", "rho_head"), ("boil", "rho_body")):
        for learner in plain:
            for other in plain:
                same = setting(ds, "first_order", learner) == setting(ds, "first_order", other)
                algorithms = setting(ds, "algorithm", learner), setting(ds, "algorithm", other)
                if same and algorithms == (algorithm, "maml"):
                    verdicts += _learner_verdicts(ds, plan, "head-and-body", name, (learner, other), "positive")
    return verdicts


def supervised_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on "supervised": each learner that adapts the whole network, against each trained control."""
    # These algorithms adapt only a part of the network, or latent codes. Their curvature along the gradient is that of
    # this part and cannot be compared with that of a control which adapts the whole network.
    partial = ("anil", "boil", "leo")
    controls = [name for name in trained_learners(ds) if setting(ds, "control", name)]
    controls = [name for name in controls if setting(ds, "algorithm", name) not in partial]
    learners = [name for name in plain_learners(ds) if setting(ds, "algorithm", name) not in partial]
    return [
        verdict
        for learner in learners
        for control in controls
        for name in ("rho", "hg_ratio")
        for verdict in _learner_verdicts(ds, plan, "supervised", name, (learner, control), "positive")
    ]


def _learner_verdicts(
    ds: xr.Dataset, plan: Plan, claim: str, name: str, pair: tuple[str, str], predicted: Direction
) -> list[Verdict]:
    """The verdicts on the relative fall of a quantity in one learner against that in another, for each step group."""
    learner, other = pair
    verdicts = []
    for steps, rows in step_groups(ds, plan):
        one, baseline = (change(ds, name, each, rows) for each in pair)
        if one is None or baseline is None:
            continue
        words = {"learner": learner, "baseline": other, "steps": steps, "against": f"for {other}"}
        measure = f"the relative fall of {WORDS[name]}"
        question = ask(plan, claim, "relative falls", name, predicted, measure=measure, **words)
        must_fall = predicted == "positive"
        verdicts.append(judged(plan, question, compare_falls(one, baseline, must_fall=must_fall)))
    return verdicts


def _log_fall(one: Change, keep: np.ndarray) -> np.ndarray:
    """The fall of the logarithm of the mean over the tasks in ``keep`` [seed, task]: [seed]."""
    # The number of tasks cancels, so that sums take the place of means.
    before, after = (np.where(keep, side, 0.0).sum(axis=1) for side in (one.untrained, one.trained))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(before / after))
