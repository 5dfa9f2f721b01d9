"""The sentence of a verdict: the outcome, both values and the interval, then what was left out of the comparison."""

from typing import TYPE_CHECKING

from analysis.claims.comparison import Comparison
from analysis.statistics import MAX_SEEDS

if TYPE_CHECKING:
    from analysis.claims.verdict import Verdict

NAMES = {
    "alpha_rho": "alpha rho",
    "rho": "rho",
    "rho_normalised": "rho at unit filter norm",
    "alignment": "the alignment A",
}
MINUS = "\N{MINUS SIGN}"


def sentence(verdict: "Verdict", comparison: Comparison, confidence: float) -> str:
    """Return one paragraph for researchers on a verdict, whose field ``sentence`` is still empty."""
    if comparison.num_diverged == comparison.num_units:
        return f"Inconclusive: all {comparison.num_units} units diverged, so that nothing is left to compare."
    if verdict.num_seeds == 0:
        why = comparison.obstacle or "nothing is left to compare"
        return f"Inconclusive: {'; '.join([why, *_units_left_out(comparison)])}."
    parts = [_levels(verdict, confidence)]
    head = f"{verdict.outcome.capitalize()} with {plural(verdict.num_seeds, 'seed')}: "
    if comparison.obstacle:
        head = f"Inconclusive: {comparison.obstacle}. "
    elif verdict.outcome == "inconclusive":
        head += _needed(verdict) + "; "
    elif verdict.outcome == "not supported":
        parts.append(_why_not(verdict))
    if verdict.outcome != "inconclusive" and verdict.num_seeds == 2:
        parts.append("two seeds can agree by luck, so add seeds before relying on this outcome")
    return head + "; ".join([*parts, *_left_out(verdict, comparison)]) + "."


def plural(num: int, noun: str) -> str:
    """A number with its noun.

    >>> plural(1, "seed"), plural(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"


def number(value: float, *, signed: bool = False) -> str:
    """A value to three significant digits, with a real minus sign.

    >>> number(-0.01234) == MINUS + "0.0123", number(2, signed=True)
    (True, '+2')
    """
    return (f"{value:+.3g}" if signed else f"{value:.3g}").replace("-", MINUS)


def _levels(verdict: "Verdict", confidence: float) -> str:
    """The clause that states both values, their difference with its interval, and the margin."""
    where = f"over {verdict.steps}" if verdict.steps == "all steps" else f"at {verdict.steps}"
    text = f"{NAMES.get(verdict.quantity, verdict.quantity)} of {verdict.learner} {where} "
    if verdict.comparison == "against orthogonal":
        text += f"is {number(verdict.trained_value)} against 0 for orthogonal gradients"
    else:
        baseline = verdict.baseline if verdict.claim == "shot" else "the untrained network"
        at = ", at equal support loss" if verdict.comparison == "equal support loss" else ""
        text += f"is {number(verdict.trained_value)} against {number(verdict.baseline_value)} for {baseline}{at}"
    text += f", a difference of {number(verdict.effect, signed=True)}"
    if verdict.num_seeds > 1:
        ends = f"{number(verdict.low, signed=True)} to {number(verdict.high, signed=True)}"
        text += f" ({100 * confidence:g} % interval over seeds: {ends})"
    return text + f", while the smallest effect of interest is {number(verdict.margin)}"


def _needed(verdict: "Verdict") -> str:
    """The clause that says how many seeds would decide an inconclusive verdict."""
    if verdict.num_seeds < 2:
        return "one seed shows no spread between seeds, so that at least 2 are needed"
    if verdict.seeds_to_decide is None:
        num = f"{MAX_SEEDS:,}".replace(",", " ")
        return f"not even {num} seeds would decide if the mean and the spread over seeds stay as they are"
    seeds = plural(verdict.seeds_to_decide, "seed")
    condition = "if the mean and the spread over seeds stay as they are"
    return f"about {seeds} would decide in about half of such studies, {condition}"


def _why_not(verdict: "Verdict") -> str:
    """The clause that says why a claim is not supported."""
    sign = -1.0 if verdict.predicted == "negative" else 1.0
    ends = sorted((sign * verdict.low, sign * verdict.high))
    if ends[1] < 0:
        return "the difference has the sign opposite to the claim"
    if ends[0] > 0:
        return "the difference has the claimed sign but is smaller than the smallest effect of interest"
    return "the interval excludes the smallest effect of interest"


def _left_out(verdict: "Verdict", comparison: Comparison) -> list[str]:
    """The clauses on the points, units (one task of one seed) and seeds that were left out of the comparison."""
    parts = []
    if verdict.comparison == "equal support loss" and not comparison.obstacle:
        parts.append(f"{comparison.share:.0%} of the points have a match at equal loss")
    parts += _units_left_out(comparison)
    if comparison.num_unmatched_seeds:
        num = comparison.num_unmatched_seeds
        parts.append(f"{plural(num, 'seed')} {_was(num)} left out because too few points have a match")
    num_empty = len(comparison.effects) - verdict.num_seeds - comparison.num_unmatched_seeds
    if num_empty:
        parts.append(f"{plural(num_empty, 'seed')} {_was(num_empty)} left out because nothing was left to compare")
    return parts


def _units_left_out(comparison: Comparison) -> list[str]:
    units = plural(comparison.num_units, "unit")
    reasons = {"of divergence": comparison.num_diverged, "the gradient is zero": comparison.num_undefined}
    return [
        f"{num} of {units} (seed, task) {_was(num)} left out of both sides because {reason}"
        for reason, num in reasons.items()
        if num
    ]


def _was(num: int) -> str:
    return "was" if num == 1 else "were"
