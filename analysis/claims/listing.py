"""Verdicts as a few aligned lines for a terminal; the full sentences are in the report."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import isnan

from analysis.claims.verdict import Verdict


def verdict_lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """One heading per claim, one line per comparison: outcome, who against whom, effect and 95 % interval."""
    for title, rows in groupby(verdicts, key=lambda v: v.title):
        found = list(rows)
        quantity = found[0].quantity.replace("_", " ")
        yield f"{title[:1].upper()}{title[1:]}?  ({quantity}, learner minus baseline, [interval over seeds])"
        for v in found:
            yield f"  {v.outcome:<14} {_who(v):<54} {_effect(v)}{_wanted(v)}"


def _who(v: Verdict) -> str:
    if v.comparison == "against orthogonal":
        return f"{v.learner} against orthogonal gradients"
    where = "" if v.steps == "all steps" else f", {v.steps}"
    return f"{v.learner} against {v.baseline}{where}" + (", equal loss" if v.comparison == "equal support loss" else "")


def _effect(v: Verdict) -> str:
    if isnan(v.effect):
        return "nothing to compare"
    return f"{v.effect:+.3g}" + ("" if isnan(v.low) else f" [{v.low:+.3g}, {v.high:+.3g}]")


def _wanted(v: Verdict) -> str:
    if v.outcome != "inconclusive" or isnan(v.effect):
        return ""
    if v.share_compared < 0.5:
        return f"  losses overlap in {v.share_compared:.0%} of the points"
    if v.num_seeds < 2:
        return "  no spread without a second seed"
    return f"  about {v.seeds_to_decide} seeds would decide" if v.seeds_to_decide else "  more seeds would not decide"
