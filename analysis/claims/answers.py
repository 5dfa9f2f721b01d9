"""The answers to a study's three main questions, in one plain sentence each, which are made from its verdicts.

They stand at the top of a report and at the end of a command. Each sentence gives the numbers of one learner and then
counts the comparisons of all. If a study has primary comparisons, these alone are used, and their outcomes are those
after the correction for their number.
"""

import math
from collections.abc import Sequence

from analysis.claims.findings import findings, held_throughout, listed, listed_in_part
from analysis.claims.sentence import baseline, measure, number, plural, where
from analysis.claims.verdict import OUTCOMES, Verdict, final_outcome

FALL = ("suppression-hg", "suppression")
SHOT = ("shot-equal-accuracy", "shot")


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """Whether the curvature falls, whether above all along the gradient, and whether SHOT lowers it and helps.

    A question without verdicts has no sentence. A study without any of the three gets the first three of its findings.
    """
    answers = (_whether_it_falls(verdicts), _whether_along_the_gradient(verdicts), _whether_shot_helps(verdicts))
    return [answer for answer in answers if answer] or findings(verdicts)[:3]


def _whether_it_falls(verdicts: Sequence[Verdict]) -> str:
    rows = [row for row in _compared(verdicts, FALL) if row.comparison == "raw"]
    if not rows:
        return ""
    shown = _of_main_learner(rows, verdicts)
    changes = []
    for name in dict.fromkeys(map(measure, shown)):
        steps = [
            f"from {number(row.baseline_value)} to {number(row.trained_value)}{where(row)} ({_in_words(row, 'a rise')})"
            for row in shown
            if measure(row) == name
        ]
        changes.append(f"{name} of {shown[0].learner} goes {listed(steps)}")
    text = f"Does meta-training lower the curvature? {_capital('; '.join(changes))}; {_count(rows)}"
    if any(verdict.comparison == "equal support loss" for verdict in verdicts):
        text += f"; at equal support loss and at unit filter norm as well, {_throughout(rows, verdicts)}"
    corrected = next((row.num_corrected for row in rows if row.corrected_outcome is not None), 0)
    if corrected:
        text += f" (all outcomes are those after Holm's correction for {plural(corrected, 'comparison')})"
    return f"{text}."


def _throughout(rows: list[Verdict], verdicts: Sequence[Verdict]) -> str:
    """The measures and learners of these rows for which all comparisons of their claim support the fall."""
    places = []
    # Learners without one step size have other measures than those with one.
    for claim, learner, name in dict.fromkeys((row.claim, row.learner, measure(row)) for row in rows):
        mine = [verdict for verdict in verdicts if (verdict.claim, verdict.learner) == (claim, learner)]
        places += [f"{name} of {learner} at {steps}" for _, steps in held_throughout(mine)]
    return f"a fall is supported for {listed_in_part(places)}" if places else "no fall is supported"


def _whether_along_the_gradient(verdicts: Sequence[Verdict]) -> str:
    rows = _compared(verdicts, ["trajectory"])
    if not rows:
        return ""
    # The largest eigenvalue is the comparison that is understood most easily.
    eigenvalue = [row for row in rows if row.comparison == "against the largest eigenvalue"]
    levels = _levels(_of_main_learner(eigenvalue or rows, verdicts))
    return f"Does it fall more along the gradient than elsewhere? {_capital(levels)}; {_count(rows)}."


def _whether_shot_helps(verdicts: Sequence[Verdict]) -> str:
    rows = next((rows for claim in SHOT if (rows := _compared(verdicts, [claim]))), [])
    if not rows:
        return ""
    shown = _of_main_learner(rows, verdicts)
    matched = f"at {shown[0].comparison} " if shown[0].comparison.startswith("equal ") else ""
    text = (
        f"Does SHOT lower it further, and does it help? {_capital(matched + _levels(shown, 'higher'))}; {_count(rows)}"
    )
    accuracies = [row for row in _compared(verdicts, ["shot-accuracy"]) if row.learner == shown[0].learner]
    return f"{text}; {_levels(accuracies, 'lower')}." if accuracies else f"{text}."


def _compared(verdicts: Sequence[Verdict], claims: Sequence[str]) -> list[Verdict]:
    """The verdicts with numbers on some claims: the primary ones, or all of them if none is primary."""
    rows = [v for claim in claims for v in verdicts if v.claim == claim and not math.isnan(v.trained_value)]
    return [row for row in rows if row.kind == "primary"] or rows


def _of_main_learner(rows: list[Verdict], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The rows of one learner, and of several kinds of comparison of a claim the first kind.

    It is the first learner that SHOT is added to, or the learner with SHOT. Without SHOT it is the first of all.
    """
    shot = [name for v in verdicts if v.claim in SHOT for name in (v.baseline, v.learner)]
    learners = [row.learner for row in rows]
    main = next((name for name in shot if name in learners), learners[0])
    mine = [row for row in rows if row.learner == main]
    kinds = {row.claim: (row.comparison, row.quantity) for row in reversed(mine)}
    return [row for row in mine if (row.comparison, row.quantity) == kinds[row.claim]]


def _levels(rows: Sequence[Verdict], opposite: str = "") -> str:
    """The values of verdicts on one measure, those of their baselines, and the outcomes."""
    steps = [
        f"is {number(row.trained_value)} against {number(row.baseline_value)} {baseline(row)}{where(row)} "
        f"({_in_words(row, opposite)})"
        for row in rows
    ]
    return f"{measure(rows[0])} of {rows[0].learner} {listed(steps)}"


def _count(rows: list[Verdict]) -> str:
    """In how many of the comparisons of all learners the answer is "yes", and in how many "no"."""
    yes, no, undecided = (sum(final_outcome(row) == outcome for row in rows) for outcome in OUTCOMES)
    return (
        f"of {plural(len(rows), f'such {rows[0].kind} comparison')}, yes in {yes}, no in {no}, undecided in {undecided}"
    )


def _in_words(row: Verdict, opposite: str) -> str:
    """The outcome of a verdict, with a word for a decided difference that goes the other way."""
    sign = -1.0 if row.predicted == "negative" else 1.0
    outcome = final_outcome(row).replace("inconclusive", "undecided")
    return f"{outcome}: {opposite}" if opposite and max(sign * row.low, sign * row.high) < 0 else outcome


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
