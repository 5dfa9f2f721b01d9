"""Claim (c): the inner gradients of a meta-trained network point the same way.

The alignment A = (|sum g|^2 / sum |g|^2 - 1) / (K - 1) is 0 for orthogonal gradients whatever their norms.
Orthogonality alone is too weak a null, since A -> 1 for any network as alpha -> 0. So the untrained network at the same
alpha is the second null, and the two rows belong together.
"""

from dataclasses import replace

import numpy as np
import xarray as xr

from analysis.claims.comparison import Comparison, Question, paired
from analysis.claims.plan import Plan
from analysis.claims.points import UNTRAINED, diverged, first_and_last, points
from analysis.claims.verdict import Verdict, conclude
from analysis.schema import BY_NAME, trained_learners, untrained_start

QUANTITY = "alignment"
TITLE = "the inner gradients of the meta-trained network are aligned"
UNITS = BY_NAME[QUANTITY].units


def alignment_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """For every trained learner: A against 0, and against the untrained network, task by task. Empty without one."""
    learners = trained_learners(ds)
    first, last = first_and_last(ds) if learners else (0, 0)
    verdicts = []
    for learner in learners:
        trained = points(ds, QUANTITY, learner, checkpoint=last)[..., None]  # A has one value per task: a single "step"
        start = untrained_start(ds, learner)
        question = Question(
            "alignment", TITLE, learner, "0", "all steps", "against orthogonal", QUANTITY, UNITS, "positive"
        )
        lost = diverged(ds, learner, checkpoint=last)
        nulls = [(question, np.zeros_like(trained), lost)]
        if start is not None:
            untrained = points(ds, QUANTITY, start, checkpoint=first)[..., None]
            second = replace(question, baseline=UNTRAINED, comparison="against untrained")
            nulls.append((second, untrained, lost | diverged(ds, start, checkpoint=first)))
        for asked, baseline, lost_units in nulls:
            comparison = _with_obstacle(paired(trained, baseline, plan, diverged=lost_units), ds.sizes["step_i"])
            verdicts.append(conclude(asked, comparison, margin=plan.margins.alignment, confidence=plan.confidence))
    return verdicts


def _with_obstacle(comparison: Comparison, steps: int) -> Comparison:
    """With one inner step there is one gradient and no A: that is an obstacle, not a gradient of zero."""
    if steps > 1:
        return comparison
    return replace(comparison, num_undefined=0, obstacle="alignment needs at least two inner steps")
