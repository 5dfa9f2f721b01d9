"""The answers to a study's three main questions, in one plain sentence each, which are made from its verdicts.

They stand at the top of a report and at the end of a command. Each sentence gives the numbers of one learner and then
counts the comparisons of all. If a question has primary comparisons with numbers, these alone are used, and their
outcomes are those after the correction for their number.
"""

import math
from collections.abc import Collection, Iterable, Sequence

from analysis.claims.findings import answer_of, findings, held_throughout, listed, listed_in_part
from analysis.claims.sentence import baseline, measure, number, plural, where
from analysis.claims.verdict import OUTCOMES, UNIT_NORM, Verdict, final_outcome

# The claims on whether the curvature falls, in the order in which they are told.
FALL = ("suppression-hg", "suppression")
# The claims on whether SHOT lowers it further. The first of them that has comparisons with numbers is told.
SHOT = ("shot-equal-accuracy", "shot")


def summary(verdicts: Sequence[Verdict], learners: Collection[str] | None = None) -> list[str]:
    """Whether the curvature falls, whether above all along the gradient, and whether SHOT lowers it and helps.

    A question without verdicts has no sentence. A study without any of the three gets the first three of its findings.

    learners: those whose curvature counts, which ``analysis.schema.plain_learners`` names: no controls, and none with
        SHOT or a penalty. None stands for all.
    """
    plain = [verdict for verdict in verdicts if learners is None or verdict.learner in learners]
    preferred = [name for v in verdicts if v.claim in SHOT for name in (v.baseline, v.learner)]
    answers = (
        _whether_it_falls(plain, preferred),
        _whether_along_the_gradient(plain, preferred),
        _whether_shot_helps(verdicts, preferred),
    )
    return [answer for answer in answers if answer] or findings(verdicts)[:3]


def _whether_it_falls(verdicts: Sequence[Verdict], preferred: Sequence[str]) -> str:
    of_claims = [verdict for verdict in verdicts if verdict.claim in FALL]
    rows = _compared([verdict for verdict in of_claims if verdict.comparison == "raw"], FALL)
    if not rows:
        return ""
    shown = _of_main_learner(rows, preferred)
    changes = []
    for name in dict.fromkeys(map(measure, shown)):
        steps = [
            f"from {number(row.baseline_value)} to {number(row.trained_value)}{where(row)} ({_in_words(row, 'a rise')})"
            for row in shown
            if measure(row) == name
        ]
        changes.append(f"{name} of {shown[0].learner} goes {listed(steps)}")
    text = f"Does meta-training lower the curvature? {answer_of(rows)}: {'; '.join(changes)}; {_count(rows)}"
    compared = {verdict.comparison for verdict in of_claims}
    further = [f"at {name}" for name in ("equal support loss", UNIT_NORM) if name in compared]
    return f"{text}; {listed(further)} as well, {_throughout(rows, of_claims)}." if further else f"{text}."


def _throughout(rows: list[Verdict], verdicts: Sequence[Verdict]) -> str:
    """The measures and learners of these rows for which all comparisons of their claim support the fall."""
    places = []
    # Learners without one step size have other measures than those with one.
    for claim, learner, name in dict.fromkeys((row.claim, row.learner, measure(row)) for row in rows):
        mine = [verdict for verdict in verdicts if (verdict.claim, verdict.learner) == (claim, learner)]
        places += [f"{name} of {learner} at {steps}" for _, steps in held_throughout(mine)]
    return f"a fall is supported for {listed_in_part(places)}" if places else "no fall is supported"


def _whether_along_the_gradient(verdicts: Sequence[Verdict], preferred: Sequence[str]) -> str:
    rows = _compared(verdicts, ["trajectory"])
    if not rows:
        return ""
    # The largest eigenvalue is the comparison that is understood most easily.
    eigenvalue = [row for row in _with_numbers(rows) if row.comparison == "against the largest eigenvalue"]
    levels = _levels(_of_main_learner(eigenvalue or rows, preferred))
    question = "Does the curvature fall more along the gradient than elsewhere?"
    return f"{question} {answer_of(rows)}: {levels}; {_count(rows, 'with other directions')}."


def _whether_shot_helps(verdicts: Sequence[Verdict], preferred: Sequence[str]) -> str:
    rows = next((rows for claim in SHOT if (rows := _compared(verdicts, [claim]))), [])
    if not rows:
        return ""
    shown = _of_main_learner(rows, preferred)
    matched = f"at {shown[0].comparison} " if shown[0].comparison.startswith("equal ") else ""
    text = f"{answer_of(rows)}: {matched}{_levels(shown, 'higher')}; {_count(rows)}"
    accuracies = _with_numbers(v for v in verdicts if (v.claim, v.learner) == ("shot-accuracy", shown[0].learner))
    if not accuracies:  # as in a regression
        return f"Does SHOT lower the curvature further? {text}."
    aside = "in an exploratory comparison " if accuracies[0].kind != rows[0].kind else ""
    return f"Does SHOT lower the curvature further, and does it help? {text}; {aside}{_levels(accuracies, 'lower')}."


def _compared(verdicts: Sequence[Verdict], claims: Sequence[str]) -> list[Verdict]:
    """The primary verdicts on some claims, or the exploratory ones if only these have numbers; empty without any."""
    rows = [verdict for claim in claims for verdict in verdicts if verdict.claim == claim]
    for kind in ("primary", "exploratory"):
        of_kind = [row for row in rows if row.kind == kind]
        if _with_numbers(of_kind):
            return of_kind
    return []


def _with_numbers(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The verdicts that have a value on both sides. The others had nothing to compare, and are undecided."""
    return [v for v in verdicts if not math.isnan(v.trained_value - v.baseline_value)]


def _of_main_learner(rows: list[Verdict], preferred: Sequence[str]) -> list[Verdict]:
    """The rows with numbers of one learner, and of several kinds of comparison of a claim the first kind.

    preferred: the learners of which the first that has rows is taken: those that SHOT is added to, and those with SHOT.
        Without any of them the first learner of the rows is taken.
    """
    rows = _with_numbers(rows)
    learners = [row.learner for row in rows]
    main = next((name for name in preferred if name in learners), learners[0])
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


def _count(rows: list[Verdict], with_what: str = "") -> str:
    """In how many of the comparisons of all learners the answer is "yes", and in how many "no".

    with_what: what is compared with, if the comparisons are of other kinds, too, than those just told.
    """
    yes, no, undecided = (sum(final_outcome(row) == outcome for row in rows) for outcome in OUTCOMES)
    kind = f"{rows[0].kind} comparison"
    such = f"{plural(len(rows), kind)} {with_what}" if with_what else plural(len(rows), f"such {kind}")
    text = f"of {such}, yes in {yes}, no in {no}, undecided in {undecided}"
    corrected = next((row.num_corrected for row in rows if row.corrected_outcome is not None), 0)
    return f"{text} (all after Holm's correction for {plural(corrected, 'comparison')})" if corrected else text


def _in_words(row: Verdict, opposite: str) -> str:
    """The outcome of a verdict, with a word for a decided difference that goes the other way."""
    sign = -1.0 if row.predicted == "negative" else 1.0
    outcome = final_outcome(row).replace("inconclusive", "undecided")
    return f"{outcome}: {opposite}" if opposite and max(sign * row.low, sign * row.high) < 0 else outcome
