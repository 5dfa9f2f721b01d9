"""The question that a claim asks, and the comparison that answers it.

A comparison has two sides, a learner and its baseline. They are paired by seed and task, and their differences are
reduced to one effect for each seed.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from analysis.claims.plan import Plan
from analysis.statistics import Interval, seed_means, task_bootstrap
from hessian_tools.validation import check_choice

Direction = Literal["negative", "positive"]

SIDES_IDENTICAL = "both sides are identical to the last bit; so there is no difference to test"


@dataclass(frozen=True)
class Question:
    """A question: how a quantity of a learner differs from that of a baseline, at some steps of the inner loop.

    claim, title: the claim's name, and its statement as a part of a longer sentence.
    steps: the name of a step group of the plan (inner steps that are judged together), or "all steps". It is "" where
        the quantity has no inner steps, such as the accuracy.
    comparison: what kind of comparison it is, such as "raw" or "equal support loss".
    units: the unit of the quantity, "1" if it has none.
    predicted: the sign of the effect (learner minus baseline) that the claim predicts.
    measure: the quantity in words; "" if the name of ``quantity`` has words of its own (``NAMES`` in ``sentence.py``).
    against: the baseline in words, such as "along rotated gradients"; "" for a learner, the untrained network or 0.
    """

    claim: str
    title: str
    learner: str
    baseline: str
    steps: str
    comparison: str
    quantity: str
    units: str
    predicted: Direction
    measure: str = field(default="", kw_only=True)
    against: str = field(default="", kw_only=True)


def ask(
    plan: Plan, claim: str, comparison: str, quantity: str, predicted: Direction, *, learner: str, **words: str
) -> Question:
    """A question of a claim.

    words: other fields of a Question. Their defaults are the claim's statement in the plan for ``title``, "1" for
    ``units``, and "" for the others. Raises ValueError if ``predicted`` is neither "negative" nor "positive".
    """
    check_choice("predicted", predicted, get_args(Direction))
    title = words.pop("title", None) or plan.title(claim)
    given = {"baseline": "", "steps": "", "units": "1"} | words
    return Question(
        claim=claim,
        title=title,
        learner=learner,
        comparison=comparison,
        quantity=quantity,
        predicted=predicted,
        **given,
    )


@dataclass(frozen=True)
class Comparison:
    """A comparison of a trained learner with its baseline, one number for each seed.

    A unit is one task of one seed. A point is one inner step of a unit. A unit diverged if its meta-training, its inner
    loop or its curvature left the finite numbers, or if a loss of its inner loop exploded.

    trained, baseline: the means of the two sides over the same units [seed]. effects: trained minus baseline [seed].
        All three are NaN for a seed of which no unit is left.
    scale: the mean of |baseline| over the paired points. Where the plan gives a margin as a fraction, it is a fraction
        of this mean.
    bootstrap: the bounds of the interval from resampled tasks; NaN where there is none.
    num_tasks: the number of tasks of each seed. num_units: the number of all units.
    num_diverged: the number of units left out because at least one side diverged.
    num_undefined: the number of further units left out because the quantity is not defined on at least one side, where
        the gradient is zero.
    share: the fraction of the points that could be compared.
    num_unmatched_seeds: the number of seeds left out because too few of their points could be compared.
    obstacle: the reason why no verdict is possible, whatever the numbers are; None if one is possible. The part before
        the semicolon is its short form.
    required: values [seed] whose mean must also be above 0, by the same interval, for the claim to be supported; None
        if nothing else is required. requirement: what they mean, such as "the curvature falls at all".
    interval: the interval that decides, where it is not the one of the mean of ``effects``.
    note: a further clause for the sentence of the verdict.
    """

    effects: np.ndarray
    trained: np.ndarray
    baseline: np.ndarray
    scale: float
    bootstrap: tuple[float, float]
    num_tasks: int
    num_units: int
    num_diverged: int
    num_undefined: int = 0
    share: float = 1.0
    num_unmatched_seeds: int = 0
    obstacle: str | None = None
    required: np.ndarray | None = None
    requirement: str = ""
    interval: Interval | None = None
    note: str = ""


def compare_seeds(
    trained: np.ndarray, baseline: np.ndarray, keep: np.ndarray, diverged: np.ndarray, **fields: Any
) -> Comparison:
    """Compare two numbers of each seed [seed] that were computed from the units in ``keep`` [seed, task].

    The result has no bootstrap interval. If the claim is about one number and not about a difference, give NaN as
    ``baseline`` and the number as ``trained``.
    diverged: True for each unit that diverged on at least one side. fields: other fields of the Comparison.

    Units that are neither in ``keep`` nor diverged are not counted, because some quantities are measured for only a
    part of the tasks. ``num_tasks`` is then the largest number of tasks that a seed has.
    """
    no_baseline = bool(np.isnan(baseline).all())
    return Comparison(
        effects=trained if no_baseline else trained - baseline,
        trained=np.full_like(trained, np.nan) if no_baseline else trained,
        baseline=baseline,
        scale=float("nan"),
        bootstrap=(float("nan"), float("nan")),
        num_tasks=int(keep.sum(axis=1).max()),
        num_units=int((keep | diverged).sum()),
        num_diverged=int((diverged & ~keep).sum()),
        **fields,
    )


def complete_units(*sides: np.ndarray, diverged: np.ndarray | None = None) -> np.ndarray:
    """True for each unit [seed, task] that did not diverge and has finite values on all ``sides`` [seed, task, ...]."""
    keep = [np.isfinite(side).reshape(*side.shape[:2], -1).all(-1) for side in sides]
    if diverged is not None:
        keep.append(~diverged)
    return np.asarray(np.logical_and.reduce(keep))


def compare_task_by_task(
    trained: np.ndarray, baseline: np.ndarray, plan: Plan, *, diverged: np.ndarray | None = None
) -> Comparison:
    """Compare two sides task by task: average the differences over steps, then over tasks, to one number per seed.

    trained, baseline: the values of the two sides [seed, task, step].
    diverged: True for each unit [seed, task] that diverged on at least one side. Other units with a NaN count as
        undefined.

    A unit is used with all of its steps or not at all, so that both sides and all units average the same steps.
    """
    keep = complete_units(trained, baseline, diverged=diverged)
    trained_means, baseline_means = (np.where(keep, side.mean(axis=-1), np.nan) for side in (trained, baseline))
    difference = trained_means - baseline_means
    return Comparison(
        effects=seed_means(difference),
        trained=seed_means(trained_means),
        baseline=seed_means(baseline_means),
        scale=mean_abs_baseline(baseline, keep),
        bootstrap=task_bootstrap(
            difference, confidence=plan.confidence, resamples=plan.bootstrap.resamples, seed=plan.bootstrap.seed
        ),
        num_tasks=keep.shape[1],
        obstacle=SIDES_IDENTICAL if identical(trained, baseline, keep) else None,
        **count_left_out(keep, diverged),
    )


def count_left_out(keep: np.ndarray, diverged: np.ndarray | None) -> dict[str, Any]:
    """Count all units and, for each reason, the units that are left out; the keys are fields of a Comparison.

    keep: True for each unit [seed, task] that is compared. diverged: True for each unit that diverged.
    """
    num_diverged = 0 if diverged is None else int(diverged.sum())
    num_undefined = int((~keep).sum()) - num_diverged
    return {"num_units": keep.size, "num_diverged": num_diverged, "num_undefined": num_undefined}


def identical(trained: np.ndarray, baseline: np.ndarray, keep: np.ndarray) -> bool:
    """True if both sides [seed, task, step] are equal at every point of the units in ``keep`` [seed, task].

    Training (or SHOT, in the claim on SHOT) then changed nothing at all.
    """
    return bool(keep.any()) and np.array_equal(trained[keep], baseline[keep])


def mean_abs_baseline(baseline: np.ndarray, keep: np.ndarray) -> float:
    """The mean of |baseline| [seed, task, step] over steps, then over the units in ``keep``, then over seeds."""
    per_seed = seed_means(np.where(keep, np.abs(baseline).mean(axis=-1), np.nan))
    return mean_over_seeds(per_seed)


def mean_over_seeds(per_seed: np.ndarray) -> float:
    """The mean of the finite entries of an array [seed]; NaN when there are none."""
    finite = per_seed[np.isfinite(per_seed)]
    return float(finite.mean()) if len(finite) else float("nan")
