"""Verdicts as a few aligned lines for a terminal; the full sentences are in the report."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from analysis.claims.verdict import Verdict


def verdict_lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """One heading per claim, one line per comparison: outcome, who against whom, effect and 95 % interval."""
    for title, rows in groupby(verdicts, key=lambda v: v.title):
        yield f"{title[:1].upper()}{title[1:]}?"
        for v in rows:
            who = f"{v.learner} against {v.baseline}, {v.steps}, {v.comparison}"
            interval = f"[{v.low:+.3g}, {v.high:+.3g}]"
            yield f"  {v.outcome:<14} {who:<62} {v.quantity} {v.effect:+.3g} {interval}{_wanted(v)}".rstrip()


def _wanted(v: Verdict) -> str:
    if v.outcome != "inconclusive":
        return ""
    if v.num_seeds < 2:
        return "  no spread without a second seed"
    return f"  about {v.seeds_to_decide} seeds would decide" if v.seeds_to_decide else "  more seeds would not decide"
