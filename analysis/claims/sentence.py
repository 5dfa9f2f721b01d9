"""The words of a verdict: outcome, levels and interval first, then what was left out and what would decide."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.claims.comparison import UNTRAINED, Comparison
from analysis.statistics import Interval, Outcome

if TYPE_CHECKING:  # verdict.py imports this file
    from analysis.claims.verdict import Question

NAMES = {"alpha_rho": "alpha rho", "alignment": "the alignment A"}


def sentence(
    question: "Question",
    comparison: Comparison,
    interval: Interval,
    numbers: Mapping[str, float],
    outcome: Outcome,
    seeds_needed: int | None,
    confidence: float,
) -> str:
    """One paragraph for researchers; every number it names is in the verdict as well."""
    if comparison.num_diverged == comparison.num_units:
        return f"Inconclusive: all {comparison.num_units} units diverged, nothing is left to compare."
    if interval.num == 0:
        return f"Inconclusive: {comparison.obstacle or 'nothing is left to compare'}."
    parts = [_levels(question, interval, numbers, confidence)]
    head = f"{outcome.capitalize()} with {plural(interval.num, 'seed')}: "
    if comparison.obstacle:
        head = f"Inconclusive: {comparison.obstacle}. "
    elif outcome == "inconclusive":
        head += _needed(interval, seeds_needed) + "; "
    elif outcome == "not supported":
        parts.append(_why_not(question, interval, numbers))
    if outcome != "inconclusive" and interval.num == 2:
        parts.append("two seeds can agree by luck, so add some before relying on it")
    return head + "; ".join([*parts, *_left_out(question, comparison, interval)]) + "."


def plural(num: int, noun: str) -> str:
    """
    >>> plural(1, "seed"), plural(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"


def _levels(question: "Question", interval: Interval, numbers: Mapping[str, float], confidence: float) -> str:
    where = f"over {question.steps}" if question.steps == "all steps" else f"at {question.steps}"
    text = f"{NAMES.get(question.quantity, question.quantity)} of {question.learner} {where} "
    if question.comparison == "against orthogonal":
        text += f"is {numbers['trained_value']:.3g} (orthogonal gradients: 0)"
    else:
        baseline = "the untrained network" if question.baseline == UNTRAINED else question.baseline
        at = ", at equal support loss" if question.comparison == "equal support loss" else ""
        text += f"is {numbers['trained_value']:.3g} against {numbers['baseline_value']:.3g} of {baseline}{at}"
    text += f", a difference of {interval.mean:+.3g}"
    if interval.num > 1:
        text += f" ({100 * confidence:g} % interval over seeds {interval.low:+.3g} to {interval.high:+.3g})"
    return text + f", smallest effect of interest {numbers['margin']:.3g}"


def _needed(interval: Interval, seeds_needed: int | None) -> str:
    if interval.num < 2:
        return "one seed shows no spread between seeds, at least 2 are needed"
    if seeds_needed is None:
        return "not even 10 000 seeds would decide if mean and spread stay as they are"
    return f"about {plural(seeds_needed, 'seed')} would decide if mean and spread stay as they are"


def _why_not(question: "Question", interval: Interval, numbers: Mapping[str, float]) -> str:
    sign = -1.0 if question.predicted == "negative" else 1.0
    ends = sorted((sign * interval.low, sign * interval.high))
    if ends[1] < 0:
        return "the difference is opposite to the claim"
    if ends[0] > 0:
        return "the difference has the claimed sign but is smaller than the smallest effect of interest"
    return "an effect of the smallest size of interest is excluded"


def _left_out(question: "Question", comparison: Comparison, interval: Interval) -> list[str]:
    parts = []
    if question.comparison == "equal support loss" and not comparison.obstacle:
        parts.append(f"{comparison.share:.0%} of the points have a match at their loss")
    if comparison.num_diverged:
        units = plural(comparison.num_units, "unit")
        parts.append(f"{comparison.num_diverged} of {units} (seed, task) diverged, left out of both sides")
    lost = len(comparison.effects) - interval.num
    if lost:
        parts.append(f"{plural(lost, 'seed')} left out: nothing to compare")
    return parts
