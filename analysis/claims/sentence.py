"""The sentence of a verdict: the outcome, both values and the interval, then what was left out of the comparison.

A unit is one task of one seed.
"""

import math
import re
from typing import TYPE_CHECKING

from analysis.claims.comparison import Comparison
from analysis.statistics import MAX_SEEDS, mean_interval

if TYPE_CHECKING:
    from analysis.claims.verdict import Verdict

# Quantities in words; any other quantity without words of its own (``Verdict.measure``) is called by its name. For the
# inner gradient g and the Hessian H, rho = g'Hg / g'g is the curvature along g, and |Hg| / |g| the relative size of the
# Hessian-gradient product. alpha is the inner step size. "At unit filter norm" means in coordinates in which filters
# that a normalisation follows have unit norm, so that weights that grow do not lower the number. The alignment A is 0
# for orthogonal inner gradients and 1 for equal ones.
NAMES = {
    "alpha_rho": "alpha rho",
    "rho": "rho",
    "rho_normalised": "rho at unit filter norm",
    "alpha_hg_ratio": "alpha |Hg| / |g|",
    "hg_ratio": "|Hg| / |g|",
    "hg_ratio_normalised": "|Hg| / |g| at unit filter norm",
    "alignment": "the alignment A",
}
MINUS = "\N{MINUS SIGN}"
_UNCHANGED = "if the mean and the spread over seeds stay as they are"


def sentence(verdict: "Verdict", comparison: Comparison, confidence: float) -> str:
    """Return one paragraph for researchers on a verdict, whose field ``sentence`` is still empty."""
    if comparison.num_diverged == comparison.num_units:
        return f"Inconclusive: all {comparison.num_units} units diverged, so that nothing is left to compare."
    if math.isnan(verdict.effect):
        why = comparison.obstacle or "nothing is left to compare"
        return f"Inconclusive: {'; '.join([why, *_units_left_out(comparison)])}."
    parts = [_levels(verdict, confidence)]
    head = f"{verdict.outcome.capitalize()} with {plural(verdict.num_seeds, 'seed')}: "
    if comparison.obstacle:
        head = f"Inconclusive: {comparison.obstacle}; "
    elif verdict.outcome == "inconclusive":
        head += (_unmet(verdict, comparison) or _needed(verdict)) + "; "
    elif verdict.outcome == "not supported":
        parts.append(_why_not(verdict, comparison, confidence))
    if verdict.outcome != "inconclusive" and verdict.num_seeds == 2:
        parts.append("two seeds can agree by luck, so add seeds before relying on this outcome")
    return head + "; ".join([*parts, *_left_out(verdict, comparison)]) + "."


def after_correction(verdict: "Verdict") -> str:
    """The sentence of a supported verdict, with a new beginning that says whether the correction leaves it supported.

    The correction is Holm's, for the number of comparisons (``analysis.claims.correction``). A sentence of another
    form, which a claim of the user's own may have, stays as it is.
    """
    beginning = f"Supported with {plural(verdict.num_seeds, 'seed')}: "
    if verdict.corrected_outcome == "inconclusive":
        beginning = (
            f"Supported with {plural(verdict.num_seeds, 'seed')} without the correction for the number of comparisons, "
            f"but not after it{_seeds_to_pass(verdict)}: "
        )
    # The verdicts of a study are corrected when they are made. ``analysis.compare`` corrects them again, together with
    # those of its other studies. The optional part matches the words that the first correction has put there.
    return re.sub(r"^Supported with \d+ seeds?( without [^:]*)?: ", lambda _: beginning, verdict.sentence)


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


def measure(verdict: "Verdict") -> str:
    """The quantity of a verdict in words."""
    return verdict.measure or NAMES.get(verdict.quantity, verdict.quantity)


def baseline(verdict: "Verdict") -> str:
    """The baseline of a verdict in words that follow a value, such as "for the untrained network"."""
    if verdict.comparison == "against orthogonal":
        return "for orthogonal gradients"
    return verdict.against or f"for {'the untrained network' if against_untrained(verdict) else verdict.baseline}"


def against_untrained(verdict: "Verdict") -> bool:
    """True if the baseline is the network before training, and not a learner that is called "untrained"."""
    return verdict.claim in ("suppression", "suppression-hg") or verdict.comparison == "against untrained"


def where(verdict: "Verdict") -> str:
    """The inner steps in words that follow the learner's name; "" for a quantity without inner steps."""
    if not verdict.steps:
        return ""
    return f" over {verdict.steps}" if verdict.steps == "all steps" else f" at {verdict.steps}"


def _levels(verdict: "Verdict", confidence: float) -> str:
    """The clause that states both values, their difference with its interval, and the margin."""
    subject = f"{measure(verdict)} of {verdict.learner}{where(verdict)}"
    if math.isnan(verdict.trained_value):
        text = f"{subject} is {number(verdict.effect, signed=True)}"
    else:
        zero = verdict.comparison == "against orthogonal"
        other = "0" if zero else number(verdict.baseline_value)
        at = f", at {verdict.comparison}" if verdict.comparison.startswith("equal ") else ""
        text = f"{subject} is {number(verdict.trained_value)} against {other} {baseline(verdict)}{at}"
        text += f", a difference of {number(verdict.effect, signed=True)}"
    if math.isfinite(verdict.low):
        ends = f"{number(verdict.low, signed=True)} to {number(verdict.high, signed=True)}"
        text += f" ({100 * confidence:g} % interval over seeds: {ends})"
    return text + f", while the smallest effect of interest is {number(verdict.margin)}"


def _unmet(verdict: "Verdict", comparison: Comparison) -> str:
    """The clause on what else the claim requires, if only that makes the verdict inconclusive; "" otherwise.

    ``comparison.required`` holds values [seed] whose mean must be above 0, too. An interval that lies on the claimed
    side of 0 always decides the comparison itself. If the verdict, which is inconclusive, has such an interval, then
    the mean of the required values is not known to be above 0.
    """
    sign = -1.0 if verdict.predicted == "negative" else 1.0
    if comparison.required is None or not min(sign * verdict.low, sign * verdict.high) > 0:
        return ""
    return f"the claim also requires that {comparison.requirement}, which is not sure"


def _seeds_to_pass(verdict: "Verdict") -> str:
    """The words on how many seeds the verdict would need to stay supported; "" where that number is not known.

    ``verdict.seeds_to_decide`` is the number at which the verdict passes if the mean and the spread over seeds stay as
    they are. The means of studies with so many seeds scatter around that mean, so only about half of them pass. Holm's
    correction compares all p-values with each other, so those of the other comparisons must stay as they are, too.
    """
    if verdict.seeds_to_decide is None:
        return ""
    return (
        f", which about {plural(verdict.seeds_to_decide, 'seed')} would pass in about half of such studies, "
        f"{_UNCHANGED}, and so do the other comparisons"
    )


def _needed(verdict: "Verdict") -> str:
    """The clause that says how many seeds would decide an inconclusive verdict.

    That is the number with which the interval decides if the mean and the spread over seeds stay as they are. The means
    of studies with so many seeds scatter around that mean, so only about half of them decide.
    """
    if verdict.num_seeds < 2:
        return "one seed shows no spread between seeds, so that at least 2 are needed"
    if verdict.seeds_to_decide is None:
        num = f"{MAX_SEEDS:,}".replace(",", " ")
        return f"not even {num} seeds would decide {_UNCHANGED}"
    return f"about {plural(verdict.seeds_to_decide, 'seed')} would decide in about half of such studies, {_UNCHANGED}"


def _why_not(verdict: "Verdict", comparison: Comparison, confidence: float) -> str:
    """The clause that says why a claim is not supported, for a verdict with this outcome."""
    if comparison.required is not None:
        requirement = mean_interval(comparison.required, confidence=confidence)
        if requirement.high < 0:
            return f"the claim also requires that {comparison.requirement}, which is not so"
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
    parts += [comparison.note] if comparison.note else []
    parts += _units_left_out(comparison)
    if comparison.num_unmatched_seeds:
        num = comparison.num_unmatched_seeds
        why = "too few points have a match"
        if verdict.comparison == "equal accuracy":
            why = "one learner was never as inaccurate as the other"
        parts.append(f"{plural(num, 'seed')} {_was(num)} left out because {why}")
    num_empty = len(comparison.effects) - verdict.num_seeds - comparison.num_unmatched_seeds
    if num_empty:
        parts.append(f"{plural(num_empty, 'seed')} {_was(num_empty)} left out because nothing was left to compare")
    return parts


def _units_left_out(comparison: Comparison) -> list[str]:
    """A clause for each reason for which units (one task of one seed) were left out."""
    units = plural(comparison.num_units, "unit")
    reasons = {"of divergence": comparison.num_diverged, "the gradient is zero": comparison.num_undefined}
    return [
        f"{num} of {units} (seed, task) {_was(num)} left out of both sides because {reason}"
        for reason, num in reasons.items()
        if num
    ]


def _was(num: int) -> str:
    return "was" if num == 1 else "were"
