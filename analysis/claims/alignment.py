"""The claim "alignment": the inner gradients of a meta-trained network point the same way.

The alignment of the K inner gradients g of a task is A = (|sum g|^2 / sum |g|^2 - 1) / (K - 1). It is 0 for orthogonal
gradients, whatever their norms, and 1 for equal gradients. Orthogonal gradients alone are too weak a null hypothesis,
because A -> 1 for any network as the inner learning rate alpha -> 0. So each learner is also compared with the
untrained network at the same alpha. If that network's own A reaches the margin, an A above 0 is no sign of training:
the comparison with 0 then has an obstacle, whatever the trained network's A is.
"""

from dataclasses import replace

import numpy as np
import xarray as xr

from analysis.claims.comparison import Comparison, ask, compare_task_by_task, mean_over_seeds
from analysis.claims.plan import Plan
from analysis.claims.points import UNTRAINED, diverged, first_and_last, points
from analysis.claims.verdict import Verdict, judged
from analysis.schema import trained_learners, untrained_start, with_seeds_of

QUANTITY = "alignment"
UNTRAINED_PASSES = "the untrained network passes as well; so the comparison says nothing of training"


def alignment_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return two verdicts for every trained learner: A against 0, and A against the untrained network, task by task.

    The second one is left out where the study has no untrained network to compare with.
    """
    learners = trained_learners(ds) if QUANTITY in ds else []
    if not learners:
        return []
    first, last = first_and_last(ds)
    verdicts = []
    for learner in learners:
        start = untrained_start(ds, learner)
        part = with_seeds_of(ds, learner, start or learner)  # without a start, all seeds of the learner
        if not part.sizes["seed"]:
            continue
        # A has one value per task, while ``compare_task_by_task`` expects values [seed, task, step]. So A gets a step
        # axis of length 1.
        trained = points(part, QUANTITY, learner, checkpoint=last)[..., None]
        words = {"learner": learner, "baseline": "0", "steps": "all steps"}
        question = ask(plan, "alignment", "against orthogonal", QUANTITY, "positive", **words)
        trained_diverged = diverged(part, learner, checkpoint=last)
        compared = [(question, compare_task_by_task(trained, np.zeros_like(trained), plan, diverged=trained_diverged))]
        if start is not None:
            untrained = points(part, QUANTITY, start, checkpoint=first)[..., None]
            either_diverged = trained_diverged | diverged(part, start, checkpoint=first)
            second = compare_task_by_task(trained, untrained, plan, diverged=either_diverged)
            # If no unit is left to compare, this mean is NaN, which does not reach the margin.
            if mean_over_seeds(second.baseline) >= plan.margin("alignment"):
                compared = [(question, replace(compared[0][1], obstacle=UNTRAINED_PASSES))]
            compared.append((replace(question, baseline=UNTRAINED, comparison="against untrained"), second))
        verdicts += [judged(plan, asked, _with_obstacle(one, ds.sizes["step_i"])) for asked, one in compared]
    return verdicts


def _with_obstacle(comparison: Comparison, steps: int) -> Comparison:
    """Give the comparison an obstacle if there is only one inner step, because A needs at least two gradients.

    With one step, no task of any seed has an A. These tasks do not count as undefined, because that word stands for
    tasks whose gradients are all zero.
    """
    if steps > 1:
        return comparison
    return replace(comparison, num_undefined=0, obstacle="alignment needs at least two inner steps")
