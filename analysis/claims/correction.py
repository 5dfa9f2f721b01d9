"""Holm's correction for the number of primary verdicts, in one study or in several studies together.

A study makes many comparisons, and of twenty without any effect about one has an interval that excludes 0. The primary
verdicts are therefore corrected together by Holm's method (Holm 1979), which keeps the probability of even one false
"supported" below 1 minus the confidence, however the comparisons depend on each other. A verdict that was supported
and does not survive the correction is inconclusive. The other outcomes stay: they do not rest on rejecting an effect
of 0. Verdicts with an obstacle test nothing and are not counted. The outcome without the correction is kept beside it,
and the sentence of a verdict that does not survive says so, with the number of seeds at which it would.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from analysis.claims.sentence import after_correction
from analysis.claims.verdict import Verdict
from analysis.statistics import Outcome, mean_interval, seeds_to_decide
from analysis.statistics import holm as corrected_p


def holm(
    studies: Sequence[tuple[str, Sequence[Verdict]]], *, confidence: float = 0.95
) -> list[tuple[str, list[Verdict]]]:
    """Correct the primary verdicts of all studies together, and return the studies with the corrected verdicts.

    studies: the name and the verdicts of each study; an earlier correction of them is replaced.
    confidence: that of the intervals; a p-value counts as small if it is below 1 - confidence.
    """
    level = 1 - confidence
    primary = [verdict for _, verdicts in studies for verdict in verdicts if verdict.kind == "primary"]
    p_values = corrected_p(np.array([verdict.p for verdict in primary]))
    num, remaining = int(np.isfinite(p_values).sum()), iter(p_values)
    # Holm's method divides the level by the number of tests that have not been rejected before.
    level_of_lost = level / max(num - int((p_values < level).sum()), 1)
    return [
        (name, [_corrected(verdict, remaining, num, level, level_of_lost) for verdict in verdicts])
        for name, verdicts in studies
    ]


def _corrected(verdict: Verdict, p_values: Iterator[float], num: int, level: float, level_of_lost: float) -> Verdict:
    """The verdict with the next of the corrected p-values, if it is a primary one; ``num`` were corrected together.

    level_of_lost: what the p-value of a verdict that the correction has made inconclusive would have to be below, as
        long as the other p-values stay.
    """
    if verdict.kind != "primary":
        return verdict
    p = float(next(p_values))
    lost = verdict.outcome == "supported" and not p < level
    outcome: Outcome = "inconclusive" if lost else verdict.outcome
    verdict = replace(verdict, p_corrected=p, corrected_outcome=outcome, num_corrected=num)
    if verdict.outcome == "supported":
        verdict = replace(verdict, seeds_to_decide=_seeds_to_pass(verdict, level_of_lost) if lost else None)
    return replace(verdict, sentence=after_correction(verdict))


def _seeds_to_pass(verdict: Verdict, level: float) -> int | None:
    """The number of seeds at which the test over seeds would reject at ``level`` if mean and spread stayed the same.

    None if no number would do, if the mean is below the smallest effect of interest, so that more seeds could turn the
    outcome to "not supported", or if the p-value is not that of a mean over the effects of the seeds.
    """
    over_seeds = mean_interval(np.array(verdict.effects))
    # With more seeds the interval narrows around the mean, which must then reach the margin by itself.
    if not math.isclose(over_seeds.p, verdict.p, rel_tol=1e-6) or abs(over_seeds.mean) < verdict.margin:
        return None
    return seeds_to_decide(abs(over_seeds.mean), over_seeds.sd, margin=0.0, confidence=1 - level)
