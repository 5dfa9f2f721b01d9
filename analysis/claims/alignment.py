"""Claim (c): the inner gradients of a meta-trained network point the same way.

A = (|sum g|^2 / sum |g|^2 - 1) / (K - 1) is 0 for orthogonal gradients whatever their norms. Orthogonality
alone is too weak a null (A -> 1 for any network as alpha -> 0), so the untrained network at the same alpha
is the second, and the two rows belong together.
"""

from dataclasses import replace

import numpy as np
import xarray as xr

from analysis.claims.comparison import Comparison, paired
from analysis.claims.plan import Plan
from analysis.claims.points import UNTRAINED, diverged, first_and_last, points
from analysis.claims.verdict import Question, Verdict, conclude
from analysis.schema import BY_NAME, trained_learners, untrained_start

QUANTITY = "alignment"


def alignment_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """For every trained learner: A against 0, and against the untrained network, task by task. Empty without one."""
    title = "the inner gradients of the meta-trained network are aligned"
    learners = trained_learners(ds)
    first, last = first_and_last(ds) if learners else (0, 0)
    verdicts = []
    for learner in learners:
        trained = points(ds, QUANTITY, learner, checkpoint=last)[..., None]  # one value a task: a single "step"
        start = untrained_start(ds, learner)
        question = Question(
            "alignment",
            title,
            learner,
            "0",
            "all steps",
            "against orthogonal",
            QUANTITY,
            BY_NAME[QUANTITY].units,
            "positive",
        )
        lost = diverged(ds, learner, checkpoint=last)
        asks = [(question, np.zeros_like(trained), lost)]
        if start is not None:
            untrained = points(ds, QUANTITY, start, checkpoint=first)[..., None]
            beside = replace(question, baseline=UNTRAINED, comparison="against untrained")
            asks.append((beside, untrained, lost | diverged(ds, start, checkpoint=first)))
        for asked, baseline, without in asks:
            comparison = _defined(paired(trained, baseline, plan, diverged=without), ds.sizes["step_i"])
            verdicts.append(conclude(asked, comparison, margin=plan.margins.alignment, confidence=plan.confidence))
    return verdicts


def _defined(comparison: Comparison, steps: int) -> Comparison:
    """With one inner step there is one gradient and no A: an obstacle, not a gradient of zero."""
    if steps > 1:
        return comparison
    return replace(comparison, num_undefined=0, obstacle="alignment needs at least two inner steps")
