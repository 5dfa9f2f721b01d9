"""Verdicts as a few aligned lines for a terminal; the full sentences are in the report."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import isnan

from analysis.claims.verdict import Verdict

UNIT_NORM = "unit filter norm"
AT = {UNIT_NORM: ", unit filter norm", "equal support loss": ", equal loss"}


def verdict_lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """One heading per claim, one line per comparison: outcome, who against whom, effect and 95 % interval.

    The effect is one of the quantity in the heading; a row at unit filter norm is about rho, not alpha rho, and so is
    one of a learner whose steps are not alpha times the gradient.
    """
    for title, rows in groupby(verdicts, key=lambda v: v.title):
        found = list(rows)
        quantity = " or ".join(dict.fromkeys(v.quantity.replace("_", " ") for v in found if v.comparison != UNIT_NORM))
        other = "; rho at unit filter norm" if any(v.comparison == UNIT_NORM for v in found) else ""
        yield f"{title[:1].upper()}{title[1:]}?  ({quantity}{other}, learner minus baseline, [interval over seeds])"
        width = max(54, *(len(_who(v)) for v in found))
        for v in found:
            yield f"  {v.outcome:<14} {_who(v):<{width}} {_effect(v)}{_wanted(v)}"


def _who(v: Verdict) -> str:
    if v.comparison == "against orthogonal":
        return f"{v.learner} against orthogonal gradients"
    where = "" if v.steps == "all steps" else f", {v.steps}"
    return f"{v.learner} against {v.baseline}{where}{AT.get(v.comparison, '')}"


def _effect(v: Verdict) -> str:
    if isnan(v.effect):
        return "nothing to compare"
    return f"{v.effect:+.3g}" + ("" if isnan(v.low) else f" [{v.low:+.3g}, {v.high:+.3g}]")


def _wanted(v: Verdict) -> str:
    if v.obstacle:
        return "  " + v.obstacle.partition(";")[0]
    if v.outcome != "inconclusive" or isnan(v.effect):
        return ""
    if v.num_seeds < 2:
        return "  no spread without a second seed"
    return f"  about {v.seeds_to_decide} seeds would decide" if v.seeds_to_decide else "  more seeds would not decide"
