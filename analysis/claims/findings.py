"""What a study found on each claim, in one sentence: an answer, the counts behind it, and an example.

A step group is a set of inner steps that the plan of the claims judges together.
"""

import math
from collections import Counter
from collections.abc import Sequence

from analysis.claims.sentence import baseline, measure, number, plural, where
from analysis.claims.verdict import OUTCOMES, Verdict, final_outcome
from analysis.statistics import Outcome

PLAIN = ("raw", "against untrained")  # comparisons without matching or rescaling
TOO_WEAK = "against orthogonal"  # a comparison that says nothing of training by itself

MOST_PLACES = 4
"""The most entries in a list of learners and steps; where there are more, the last entry says how many."""

ANSWERS: dict[Outcome, str] = {"supported": "yes", "not supported": "no", "inconclusive": "undecided"}


def findings(verdicts: Sequence[Verdict]) -> list[str]:
    """One sentence for each claim: what most comparisons say, how many have each outcome, and a typical comparison.

    If a claim has primary comparisons, the answer follows from these alone, after their correction. The primary claims
    come first, in the order of the verdicts. A comparison that an untrained network may pass as well is not counted,
    unless the claim has no other comparison.
    """
    claims: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        claims.setdefault(verdict.claim, []).append(verdict)
    # False sorts before True, so that exploratory claims come last.
    ordered = sorted(claims.values(), key=lambda rows: all(row.kind == "exploratory" for row in rows))
    return [_finding(rows) for rows in ordered]


def held_throughout(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """Each (learner, step group) for which every comparison of a claim supports it, after Holm's correction if primary.

    A claim on curvature is also compared at unit filter norm and at equal support loss. A fall counts as suppression
    only where these comparisons support it too. Otherwise it may be due to growing weights or to a lower loss.
    """
    places: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        places.setdefault((verdict.learner, verdict.steps), []).append(verdict)
    return [place for place, rows in places.items() if all(final_outcome(row) == "supported" for row in rows)]


def _finding(verdicts: list[Verdict]) -> str:
    """The sentence for the verdicts on one claim."""
    verdicts = [verdict for verdict in verdicts if verdict.comparison != TOO_WEAK] or verdicts
    title = verdicts[0].title
    primary = [verdict for verdict in verdicts if verdict.kind == "primary"]
    exploratory = [verdict for verdict in verdicts if verdict.kind != "primary"]
    judged = primary or exploratory
    text = f"{title[:1].upper()}{title[1:]}? {answer_of(judged)}: {_counted(judged)}{_without_correction(primary)}"
    if primary and exploratory:
        text += f"; {_counted(exploratory)}"
    return f"{text}{_throughout(verdicts)}{_example(verdicts, usual=_most_frequent(judged))}."


def answer_of(verdicts: list[Verdict]) -> str:
    """The answer to a claim's question that the outcomes of its comparisons give, such as "Mostly yes".

    An outcome of more than half of the comparisons gives the answer, with "Mostly" if there are other outcomes.
    Otherwise the answer is "Divided" if all three outcomes occur, and else names both, such as "Yes or undecided".
    """
    counts = Counter(final_outcome(verdict) for verdict in verdicts)
    seen = [ANSWERS[outcome] for outcome in OUTCOMES if counts[outcome]]
    outcome, count = counts.most_common(1)[0]
    if 2 * count > len(verdicts):
        return f"{'Mostly ' if len(seen) > 1 else ''}{ANSWERS[outcome]}".capitalize()
    return "Divided" if len(seen) == len(ANSWERS) else " or ".join(seen).capitalize()


def _counted(verdicts: list[Verdict]) -> str:
    """How many comparisons of one kind there are, and how many have each outcome."""
    counts = Counter(final_outcome(verdict) for verdict in verdicts)
    seen = [outcome for outcome in OUTCOMES if counts[outcome]]
    parts = [f"{outcome.replace('inconclusive', 'undecided')} in {counts[outcome]}" for outcome in seen]
    return f"of {plural(len(verdicts), f'{verdicts[0].kind} comparison')}, it is {listed(parts)}"


def _without_correction(primary: list[Verdict]) -> str:
    """The correction of the primary comparisons, and how many were supported without it; "" where there is none."""
    corrected = [verdict for verdict in primary if verdict.corrected_outcome is not None]
    if not corrected:
        return ""
    supported = sum(verdict.outcome == "supported" for verdict in corrected)
    without = f"; without it, supported in {supported}" if any(v.outcome != final_outcome(v) for v in corrected) else ""
    return f" (after Holm's correction for {plural(corrected[0].num_corrected, 'comparison')}{without})"


def listed(parts: Sequence[str]) -> str:
    """The parts with commas between them, and with "and" before the last."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def listed_in_part(places: Sequence[str]) -> str:
    """The places with commas between them; of many, the last entry says how many are left out."""
    if len(places) <= MOST_PLACES:
        return listed(places)
    return listed([*places[: MOST_PLACES - 1], f"{len(places) - MOST_PLACES + 1} more"])


def _throughout(verdicts: list[Verdict]) -> str:
    """The learners and steps for which all comparisons of a claim support it; "" for a claim without equal losses."""
    if not any(verdict.comparison == "equal support loss" for verdict in verdicts):
        return ""
    places = [f"{learner} at {steps}" for learner, steps in held_throughout(verdicts)]
    if not places:
        return "; for no learner do all comparisons support it"
    return f"; all comparisons support it for {listed_in_part(places)}"


def _most_frequent(verdicts: list[Verdict]) -> Outcome:
    """The outcome that most verdicts have; of several, the one that occurs first."""
    ((outcome, _),) = Counter(map(final_outcome, verdicts)).most_common(1)
    return outcome


def _example(verdicts: list[Verdict], *, usual: Outcome) -> str:
    """The numbers of the first plain comparison that has the usual outcome.

    A primary comparison is preferred, because an exploratory one may be that of a control, such as a network trained on
    shuffled labels. If no plain comparison has that outcome, the numbers are those of the first plain comparison. In a
    claim without plain comparisons, all comparisons count as plain. If nothing could be compared, the text is empty.
    """
    known = [verdict for verdict in verdicts if not math.isnan(verdict.effect)]
    plain = [verdict for verdict in known if verdict.comparison in PLAIN]
    if not any(verdict.comparison in PLAIN for verdict in verdicts):
        plain = known
    plain = [verdict for verdict in plain if verdict.kind == "primary"] or plain
    if not plain:
        return ""
    verdict = next((verdict for verdict in plain if final_outcome(verdict) == usual), plain[0])
    values = number(verdict.effect, signed=True)
    if not math.isnan(verdict.trained_value):
        values = f"{number(verdict.trained_value)} against {number(verdict.baseline_value)} {baseline(verdict)}"
    steps = "" if verdict.steps == "all steps" else where(verdict)
    outcome: str = verdict.outcome
    if final_outcome(verdict) != outcome:
        outcome += f", but {final_outcome(verdict)} after the correction"
    return f"; for instance, {measure(verdict)} of {verdict.learner}{steps} is {values} ({outcome})"
