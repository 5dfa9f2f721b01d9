"""Holm's correction for the number of primary verdicts, in one study or in several studies together.

A study makes many comparisons, and of twenty without any effect about one has an interval that excludes 0. The primary
verdicts are therefore corrected together by Holm's method (Holm 1979), which keeps the probability of even one false
"supported" below 1 minus the confidence, however the comparisons depend on each other. A verdict that was supported
and does not survive the correction is inconclusive. The other outcomes stay: they do not rest on rejecting an effect
of 0. Verdicts with an obstacle test nothing and are not counted. The outcome without the correction is kept beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from analysis.claims.verdict import Verdict
from analysis.statistics import Outcome
from analysis.statistics import holm as corrected_p


def holm(
    studies: Sequence[tuple[str, Sequence[Verdict]]], *, confidence: float = 0.95
) -> list[tuple[str, list[Verdict]]]:
    """Correct the primary verdicts of all studies together, and return the studies with the corrected verdicts.

    studies: the name and the verdicts of each study; an earlier correction of them is replaced.
    confidence: that of the intervals; a p-value counts as small if it is below 1 - confidence.
    """
    primary = [verdict for _, verdicts in studies for verdict in verdicts if verdict.kind == "primary"]
    p_values = corrected_p(np.array([verdict.p for verdict in primary]))
    num, remaining = int(np.isfinite(p_values).sum()), iter(p_values)
    return [
        (name, [_corrected(verdict, remaining, num, 1 - confidence) for verdict in verdicts])
        for name, verdicts in studies
    ]


def _corrected(verdict: Verdict, p_values: Iterator[float], num: int, level: float) -> Verdict:
    """The verdict with the next of the corrected p-values, if it is a primary one; ``num`` were corrected together."""
    if verdict.kind != "primary":
        return verdict
    p = float(next(p_values))
    lost = verdict.outcome == "supported" and not p < level
    outcome: Outcome = "inconclusive" if lost else verdict.outcome
    return replace(verdict, p_corrected=p, corrected_outcome=outcome, num_corrected=num)
