"""A verdict: the answer to one question about one learner, with its effect, intervals, outcome and sentence.

The outcome follows from ``analysis.statistics.decide``, applied to the Student t interval over seeds with the claimed
direction as positive. The bootstrap interval is shown beside that interval but never decides, because it says nothing
about other seeds. An obstacle is a reason why a comparison allows no verdict, such as hardly any overlap in loss, or
two sides that are identical. A comparison with an obstacle is inconclusive, whatever its numbers are.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from typing import Any, Literal

from analysis.claims.comparison import Comparison, Direction, Question, mean_over_seeds
from analysis.claims.plan import EARLIER_STATEMENTS, Plan
from analysis.claims.sentence import measure, sentence
from analysis.statistics import Interval, Outcome, decide, mean_interval, seeds_to_decide
from hessian_tools.curvature.html import interval_html
from hessian_tools.runs.files import json_text

UNIT_NORM = "unit filter norm"
OUTCOMES: tuple[Outcome, ...] = ("supported", "not supported", "inconclusive")
LONGEST_LIST = 40  # verdicts that are listed on a terminal one by one


@dataclass(frozen=True, repr=False)
class Verdict(Question):
    """The answer to a question, in the units of its quantity. A number that does not exist is NaN.

    A unit is one task of one seed, and a point is one inner step of a unit.

    effect: trained minus baseline, also where the claim predicts a negative difference.
    low, high: the Student t interval over seeds; NaN with one seed.
    bootstrap_low, bootstrap_high: the interval from resampled tasks, with the seeds held fixed.
    margin: the smallest effect of interest, in the units of the quantity.
    baseline_value, trained_value: the means of both sides over the units that were compared.
    num_seeds: the number of seeds with at least one unit to compare. num_tasks: the number of tasks of each seed.
    num_diverged: the number of units left out because they diverged.
    num_undefined: the number of further units left out, whose quantity is not defined because a gradient is zero.
    share_compared: the fraction of the points that could be compared.
    seeds_to_decide: the number of seeds at which about half of such studies would decide. It is None if the outcome is
        decided already, if there is one seed (which shows no spread) or an obstacle, or if no number of seeds would do.
        Of a verdict that is supported without the correction and inconclusive after it, it is the number of seeds at
        which the correction would leave it supported.
    obstacle: the reason why no verdict was possible, whatever the numbers are; None if there is none.
    effects: the effect of each seed, of which ``effect`` is the mean; empty where ``effect`` is no mean over seeds.
    p: the two-sided p-value of the t-test that the effect is 0; NaN with an obstacle.
    kind: "primary" for a verdict that is corrected together with the other primary ones, "exploratory" for the others.
    p_corrected: the p-value after Holm's correction; NaN for an exploratory verdict.
    corrected_outcome: the outcome after the correction, which can turn "supported" into "inconclusive" and changes
        nothing else; None for an exploratory verdict. num_corrected: how many primary verdicts were corrected together.
    """

    effect: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    margin: float
    baseline_value: float
    trained_value: float
    num_seeds: int
    num_tasks: int
    num_diverged: int
    share_compared: float
    seeds_to_decide: int | None
    outcome: Outcome
    sentence: str
    num_undefined: int = 0
    obstacle: str | None = None
    effects: tuple[float, ...] = ()
    p: float = math.nan
    kind: Literal["primary", "exploratory"] = "exploratory"
    p_corrected: float = math.nan
    corrected_outcome: Outcome | None = None
    num_corrected: int = 0

    @property
    def short_obstacle(self) -> str:
        """The part of the obstacle before the semicolon; "" if there is none."""
        return (self.obstacle or "").partition(";")[0]

    def __repr__(self) -> str:
        return f"Verdict({self.outcome}: {self.sentence})"

    def _repr_html_(self) -> str:
        says_outcome = self.sentence.lower().startswith(self.outcome)
        text = self.sentence if says_outcome else f"{self.outcome}: {self.sentence}"
        if self.corrected_outcome not in (None, self.outcome):
            text += f" After the correction for {self.num_corrected} comparisons it is {self.corrected_outcome}."
        return interval_html(self.effect, self.low, self.high, (-self.margin, self.margin), text)


def final_outcome(verdict: Verdict) -> Outcome:
    """The outcome that counts: the one after the correction for many comparisons, if the verdict was corrected."""
    return verdict.corrected_outcome or verdict.outcome


def counted(verdicts: Sequence[Verdict]) -> str:
    """How many verdicts have each outcome, such as "3 supported, 1 inconclusive"; "" without verdicts."""
    counts = Counter(map(final_outcome, verdicts))
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])


def conclude(question: Question, comparison: Comparison, *, margin: float, confidence: float) -> Verdict:
    """Return the verdict on a comparison.

    margin: the smallest effect of interest, above 0, in the units of the quantity.
    confidence: the confidence of the interval over seeds.
    Raises ValueError for a negative margin.
    """
    if margin < 0:
        raise ValueError(f"margin={margin!r} is the smallest effect of interest, without a sign; give a number above 0")
    interval = comparison.interval or mean_interval(comparison.effects, confidence=confidence)
    outcome, num_needed = _outcome(question.predicted, interval, comparison.obstacle, margin, confidence)
    p = math.nan if comparison.obstacle else interval.p
    if comparison.required is not None:
        required = mean_interval(comparison.required, confidence=confidence)
        p = max(p, required.p)  # both tests must reject (an intersection-union test; Berger 1982)
        if outcome == "supported" and not required.low > 0:
            # A requirement that fails for certain refutes the claim; one that is uncertain leaves it open.
            outcome = "not supported" if required.high < 0 else "inconclusive"
            # What is required has no smallest effect of interest; it only must be above 0.
            num_needed = seeds_to_decide(required.mean, required.sd, margin=1e-9, confidence=confidence)
    verdict = Verdict(
        **asdict(question),
        effect=interval.mean,
        low=interval.low,
        high=interval.high,
        bootstrap_low=comparison.bootstrap[0],
        bootstrap_high=comparison.bootstrap[1],
        margin=margin,
        baseline_value=mean_over_seeds(comparison.baseline),
        trained_value=mean_over_seeds(comparison.trained),
        num_seeds=interval.num,
        num_tasks=comparison.num_tasks,
        num_diverged=comparison.num_diverged,
        share_compared=comparison.share,
        seeds_to_decide=num_needed,
        outcome=outcome,
        sentence="",
        num_undefined=comparison.num_undefined,
        obstacle=comparison.obstacle,
        effects=() if comparison.interval else tuple(float(effect) for effect in comparison.effects),
        p=p,
    )
    return replace(verdict, sentence=sentence(verdict, comparison, confidence))


def judged(plan: Plan, question: Question, comparison: Comparison) -> Verdict:
    """Return the verdict on a comparison whose margin in the plan is in the units of the quantity."""
    return conclude(question, comparison, margin=plan.margin(question.claim), confidence=plan.confidence)


def _outcome(
    predicted: Direction, interval: Interval, obstacle: str | None, margin: float, confidence: float
) -> tuple[Outcome, int | None]:
    """Return the outcome and, if it is inconclusive, the number of seeds that would decide (None if none would)."""
    if obstacle is not None:
        return "inconclusive", None
    low, high, mean = interval.low, interval.high, interval.mean
    if predicted == "negative":  # the rule takes the claimed direction as positive
        low, high, mean = -high, -low, -mean
    outcome = decide(low, high, margin=margin)
    if outcome != "inconclusive":
        return outcome, None
    return outcome, seeds_to_decide(mean, interval.sd, margin=margin, confidence=confidence)


def verdicts_to_json(verdicts: Sequence[Verdict], **facts: str) -> str:
    """The verdicts as JSON text, preceded by ``facts`` such as digests; a number that is not finite becomes null.

    The text ends with its checksum, which ``hessian_tools.runs.files.read_json`` compares.
    """
    rows = [_null(asdict(verdict)) for verdict in verdicts]
    return json_text(facts | {"verdicts": rows})


def verdicts_from_json(text: str) -> list[Verdict]:
    """Read the verdicts that ``verdicts_to_json`` wrote, now or in version 0.1; a null number becomes NaN again."""
    floats = {field.name for field in fields(Verdict) if field.type is float}
    rows: list[dict[str, Any]] = json.loads(text)["verdicts"]
    for row in rows:
        row.update({key: math.nan for key in floats & set(row) if row[key] is None})
        row["effects"] = tuple(math.nan if effect is None else effect for effect in row.get("effects", ()))
    return [Verdict(**row) for row in rows]


def _null(value: Any) -> Any:
    """A value for JSON, with None in place of each number that is not finite, also within mappings and tuples."""
    if isinstance(value, dict):
        return {key: _null(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def verdict_lines(verdicts: Sequence[Verdict], *, longest: int = LONGEST_LIST) -> Iterator[str]:
    """Yield the verdicts as aligned lines for a terminal; the full sentences are in the report.

    Each claim has a heading, followed by one line for each comparison with the outcome, the learner and the baseline,
    the effect and its interval over seeds. The line of a primary verdict also has the p-value after Holm's correction,
    and the outcome after the correction where it differs. The heading names the quantities. A line is about rho in
    place of alpha rho if it is at unit filter norm, or if the learner's steps are not alpha times the gradient.

    longest: if there are more verdicts, exploratory ones are counted, and only the primary ones have lines.
    """
    for title, group in groupby(verdicts, key=lambda v: v.title):
        rows = list(group)
        quantity = " or ".join(dict.fromkeys(measure(v) for v in rows if v.comparison != UNIT_NORM))
        other = "; rho at unit filter norm" if any(v.quantity == "rho_normalised" for v in rows) else ""
        minus = ", learner minus baseline" if any(math.isfinite(v.baseline_value) for v in rows) else ""
        yield f"{title[:1].upper()}{title[1:]}?  ({quantity}{other}{minus}, [interval over seeds])"
        shown = [v for v in rows if len(verdicts) <= longest or v.kind == "primary"]
        # The columns of several claims line up, unless a line is longer than 54 characters.
        width = max([54, *(len(_sides(v)) for v in shown)])
        for v in shown:
            yield f"  {v.outcome:<14} {_sides(v):<{width}} {_effect(v)}{_correction(v)}{_remark(v)}"
        if len(shown) < len(rows):
            yield f"  exploratory: {counted([v for v in rows if v not in shown])} (in the report)"


def _sides(v: Verdict) -> str:
    """The learner and the baseline of a verdict, the inner steps and the kind of comparison, for its line."""
    if v.comparison == "against orthogonal":
        return f"{v.learner} against orthogonal gradients"
    steps = "" if v.steps in ("all steps", "") else f", {v.steps}"
    if v.claim in EARLIER_STATEMENTS:  # a line on a claim of version 0.1 names no quantity
        kind = {UNIT_NORM: ", unit filter norm", "equal support loss": ", equal loss"}.get(v.comparison, "")
        return f"{v.learner} against {v.baseline}{steps}{kind}"
    against = f" against {v.baseline}" if v.baseline and not v.comparison.startswith("against") else ""
    return f"{v.learner}{against}{steps}, {v.comparison}, {v.quantity.replace('_', ' ')}"


def _correction(v: Verdict) -> str:
    """The p-value after Holm's correction, and the outcome where the correction changes it; "" if there is none."""
    if math.isnan(v.p_corrected):
        return ""
    changed = f" ({v.corrected_outcome})" if v.corrected_outcome != v.outcome else ""
    return f"  Holm p {v.p_corrected:.2g}{changed}"


def _effect(v: Verdict) -> str:
    if math.isnan(v.effect):
        return "nothing to compare"
    return f"{v.effect:+.3g}" + ("" if math.isnan(v.low) else f" [{v.low:+.3g}, {v.high:+.3g}]")


def _remark(v: Verdict) -> str:
    """The obstacle of a verdict or, if it is inconclusive without one, how many seeds would decide; "" otherwise.

    Of a verdict that is inconclusive after the correction alone, it is how many seeds would pass the correction.
    """
    if v.obstacle:
        return f"  {v.short_obstacle}"
    if v.outcome == "supported" and v.seeds_to_decide is not None:
        return f"  about {v.seeds_to_decide} seeds would pass the correction"
    if v.outcome != "inconclusive" or math.isnan(v.effect):
        return ""
    if v.num_seeds < 2:
        return "  no spread without a second seed"
    return f"  about {v.seeds_to_decide} seeds would decide" if v.seeds_to_decide else "  more seeds would not decide"
