"""Holm's correction for the number of primary verdicts, in one study or in several studies together.

A study makes many comparisons. Of twenty without any effect, about one has a 95 % interval that excludes 0. The primary
verdicts are therefore corrected together by Holm's method (Holm 1979), which keeps the probability of even one false
"supported" below 1 minus the confidence, however the comparisons depend on each other. A verdict that was supported
and does not survive the correction is inconclusive. The other outcomes stay, because only "supported" rests on the
rejection of an effect of 0. Verdicts with an obstacle test nothing and are not counted. A verdict keeps its outcome
without the correction beside that after it. The sentence of a verdict that does not survive says so, with the number of
seeds at which it would.
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
    confidence: the confidence of the intervals; a corrected p-value counts as small if it is below 1 - confidence.
    """
    level = 1 - confidence
    primary = [verdict for _, verdicts in studies for verdict in verdicts if verdict.kind == "primary"]
    p_values = corrected_p(np.array([verdict.p for verdict in primary]))
    num, remaining = int(np.isfinite(p_values).sum()), iter(p_values)
    # Holm's method divides the level by the number of tests that have not been rejected before.
    level_to_pass = level / max(num - int((p_values < level).sum()), 1)
    return [
        (name, [_corrected(verdict, remaining, num, level, level_to_pass) for verdict in verdicts])
        for name, verdicts in studies
    ]


def _corrected(verdict: Verdict, p_values: Iterator[float], num: int, level: float, level_to_pass: float) -> Verdict:
    """The verdict after the correction; a verdict that is not primary stays as it is.

    p_values: the corrected p-values that are still to be used, of which a primary verdict takes the next one.
    num: the number of verdicts that are corrected together.
    level: the corrected p-value below which a verdict stays supported.
    level_to_pass: a verdict that the correction makes inconclusive would stay supported if its p-value without the
        correction were below this level and the other p-values were as they are.
    """
    if verdict.kind != "primary":
        return verdict
    p = float(next(p_values))
    is_refused = verdict.outcome == "supported" and not p < level
    outcome: Outcome = "inconclusive" if is_refused else verdict.outcome
    verdict = replace(verdict, p_corrected=p, corrected_outcome=outcome, num_corrected=num)
    if verdict.outcome == "supported":
        verdict = replace(verdict, seeds_to_decide=_seeds_to_pass(verdict, level_to_pass) if is_refused else None)
    return replace(verdict, sentence=after_correction(verdict))


def _seeds_to_pass(verdict: Verdict, level: float) -> int | None:
    """The number of seeds at which the test over seeds would reject at ``level`` if mean and spread stayed the same.

    The result is None in three cases: if no number would do; if the mean is below the smallest effect of interest, so
    that more seeds could turn the outcome to "not supported"; or if the p-value is not that of a mean over the effects
    of the seeds.
    """
    over_seeds = mean_interval(np.array(verdict.effects))
    # With more seeds the interval narrows around the mean, which must then reach the margin by itself.
    if not math.isclose(over_seeds.p, verdict.p, rel_tol=1e-6) or abs(over_seeds.mean) < verdict.margin:
        return None
    return seeds_to_decide(abs(over_seeds.mean), over_seeds.sd, margin=0.0, confidence=1 - level)
