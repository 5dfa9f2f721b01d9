"""A verdict: one claim about one learner, its effect with intervals, an outcome by rule, and a sentence.

The rule is ``analysis.statistics.decide``, applied to the Student t interval over seeds with the claimed
direction as positive. The bootstrap interval stands beside it and never decides: it knows nothing of
other seeds. A row with an obstacle (hardly any overlap in loss, identical sides) is inconclusive by that alone.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from analysis.claims.comparison import Comparison, mean_over_seeds
from analysis.claims.sentence import sentence
from analysis.statistics import Interval, Outcome, decide, seed_interval, seeds_to_decide

Claim = Literal["suppression", "shot", "alignment"]
Kind = Literal["raw", "unit filter norm", "equal support loss", "against orthogonal", "against untrained"]
Direction = Literal["negative", "positive"]


@dataclass(frozen=True)
class Question:
    """What is asked: learner against baseline, where along the inner loop, of which quantity, predicted which way."""

    claim: Claim
    title: str
    learner: str
    baseline: str
    steps: str
    comparison: Kind
    quantity: str
    units: str
    predicted: Direction


@dataclass(frozen=True)
class Verdict(Question):
    """The answer, in the units of the quantity; ``effect`` is trained minus baseline, with its own sign.

    ``low``, ``high``: Student t over seeds; ``bootstrap_*``: tasks resampled, conditional on these seeds. ``margin``:
    smallest effect of interest, absolute. ``baseline_value``, ``trained_value``: means over the units compared.
    ``num_seeds``: with something to compare; ``num_tasks``: per seed; ``num_diverged``: (seed, task) units left out;
    ``num_undefined``: further ones, measured but without a value, since their gradient is zero. ``share_compared``: of
    the points. ``seeds_to_decide``: where about half of such studies would decide; None once decided, with one seed (no
    spread to reckon from), with an obstacle, or where no number of seeds would do. ``obstacle``: why no verdict was
    possible whatever the numbers, or None.
    NaN where a number does not exist, such as an interval from one seed.
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


def conclude(question: Question, comparison: Comparison, *, margin: float, confidence: float) -> Verdict:
    """The verdict on a comparison: interval over seeds, outcome by the rule, words; ``margin`` > 0, absolute."""
    interval = seed_interval(comparison.effects, confidence=confidence)
    outcome, num = _outcome(question.predicted, interval, comparison.obstacle, margin, confidence)
    numbers = {
        "effect": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "bootstrap_low": comparison.bootstrap[0],
        "bootstrap_high": comparison.bootstrap[1],
        "margin": margin,
        "baseline_value": mean_over_seeds(comparison.baseline),
        "trained_value": mean_over_seeds(comparison.trained),
    }
    words = sentence(question, comparison, interval, numbers, outcome, num, confidence)
    known: dict[str, Any] = asdict(question) | numbers
    return Verdict(
        **known,
        num_seeds=interval.num,
        num_tasks=comparison.num_tasks,
        num_diverged=comparison.num_diverged,
        share_compared=comparison.share,
        seeds_to_decide=num,
        outcome=outcome,
        sentence=words,
        num_undefined=comparison.num_undefined,
        obstacle=comparison.obstacle,
    )


def _outcome(
    predicted: Direction, interval: Interval, obstacle: str | None, margin: float, confidence: float
) -> tuple[Outcome, int | None]:
    """The outcome, and the number of seeds that would decide where it is inconclusive."""
    if obstacle is not None:
        return "inconclusive", None
    flip = predicted == "negative"  # the rule has the claimed direction as positive
    low, high, mean = interval.low, interval.high, interval.mean
    if flip:
        low, high, mean = -high, -low, -mean
    outcome = decide(low, high, margin=margin)
    if outcome != "inconclusive":
        return outcome, None
    return outcome, seeds_to_decide(mean, interval.sd, margin=margin, confidence=confidence)


def verdicts_to_json(verdicts: Sequence[Verdict], **facts: str) -> str:
    """The verdicts as JSON text, after facts about what they rest on; a number that does not exist is null."""
    rows = [{key: _null(value) for key, value in asdict(verdict).items()} for verdict in verdicts]
    return json.dumps(facts | {"verdicts": rows}, indent=1, allow_nan=False) + "\n"


def verdicts_from_json(text: str) -> list[Verdict]:
    """The verdicts written by ``verdicts_to_json``; null becomes NaN again."""
    floats = {field.name for field in fields(Verdict) if field.type is float}
    rows: list[dict[str, Any]] = json.loads(text)["verdicts"]
    for row in rows:
        row.update({key: math.nan for key in floats if row[key] is None})
    return [Verdict(**row) for row in rows]


def _null(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
