"""What a study found, in one plain sentence for each claim, made from its verdicts."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from analysis.claims.sentence import NAMES, number, plural
from analysis.claims.verdict import Verdict
from analysis.statistics import Outcome

PLAIN = ("raw", "against untrained")  # comparisons without matching or rescaling


def findings(verdicts: Sequence[Verdict]) -> list[str]:
    """One sentence for each claim: how many comparisons have each outcome, and the numbers of a typical comparison."""
    return [_finding(list(rows)) for _, rows in groupby(verdicts, key=lambda verdict: verdict.claim)]


def _finding(verdicts: list[Verdict]) -> str:
    counts = Counter(verdict.outcome for verdict in verdicts)
    total = plural(len(verdicts), "comparison")
    order: tuple[Outcome, ...] = ("supported", "not supported", "inconclusive")
    parts = [
        f"{outcome.replace('inconclusive', 'undecided')} in {counts[outcome]}" for outcome in order if counts[outcome]
    ]
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"Of {total} on whether {verdicts[0].title}, the claim is {listed}{_example(verdicts, counts)}."


def _example(verdicts: list[Verdict], counts: Counter[Outcome]) -> str:
    """The numbers of the first plain comparison that has the most frequent outcome.

    If no plain comparison has that outcome, they are those of the first plain one; if there is none at all, "".
    """
    plain = [verdict for verdict in verdicts if verdict.comparison in PLAIN and not math.isnan(verdict.effect)]
    if not plain:
        return ""
    usual = counts.most_common(1)[0][0]
    verdict = next((verdict for verdict in plain if verdict.outcome == usual), plain[0])
    name = NAMES.get(verdict.quantity, verdict.quantity)
    where = "" if verdict.steps == "all steps" else f" at {verdict.steps}"
    baseline = verdict.baseline if verdict.claim == "shot" else "the untrained network"
    values = f"{number(verdict.trained_value)} against {number(verdict.baseline_value)} for {baseline}"
    return f"; for instance, {name} of {verdict.learner}{where} is {values} ({verdict.outcome})"
