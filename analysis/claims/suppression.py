"""Claim (a): meta-training lowers the curvature along the inner gradient, with nothing asking it to.

Each trained learner at the last checkpoint against itself at checkpoint 0: the untrained network with
the same initialisation, on the same tasks, at the same inner learning rate (Lee, Yoo, Kwak 2023 claim it
for the inner loop but measure no curvature).
"""

from dataclasses import replace

import xarray as xr

from analysis.claims.comparison import UNTRAINED, first_and_last, paired, points, trained_learners
from analysis.claims.equal_loss import matched
from analysis.claims.plan import Plan
from analysis.claims.verdict import Question, Verdict, conclude
from analysis.schema import BY_NAME

QUANTITY, LOSS = "alpha_rho", "support_loss"


def suppression_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """For every trained learner and step group: raw, and at equal support loss."""
    title = "meta-training lowers the curvature along the inner gradient"
    first, last = first_and_last(ds)
    verdicts = []
    for learner in trained_learners(ds):
        question = Question(
            "suppression", title, learner, UNTRAINED, "", "raw", QUANTITY, BY_NAME[QUANTITY].units, "negative"
        )
        verdicts += lower_curvature(ds, plan, question, (learner, first), last, plan.margins.suppression)
    return verdicts


def lower_curvature(
    ds: xr.Dataset, plan: Plan, question: Question, baseline: tuple[str, int], last: int, margin: float
) -> list[Verdict]:
    """The question for each step group, raw and at equal loss; ``baseline``: learner and checkpoint compared with.

    ``margin`` is the share of the baseline's mean |alpha rho| in the step group; raw and matched rows have the same.
    """
    sides = [points(ds, name, question.learner, checkpoint=last) for name in (QUANTITY, LOSS)]
    sides += [points(ds, name, baseline[0], checkpoint=baseline[1]) for name in (QUANTITY, LOSS)]
    verdicts = []
    for steps, group in plan.step_groups.items():
        rows = group.rows(ds.sizes["inner_step"] - 1)
        value, loss, value0, loss0 = (side[:, :, rows] for side in sides)
        raw = paired(value, value0, plan)
        equal = matched(value, value0, loss, loss0, plan)
        for asked, comparison in (
            (replace(question, steps=steps, comparison="raw"), raw),
            (replace(question, steps=steps, comparison="equal support loss"), equal),
        ):
            verdicts.append(conclude(asked, comparison, margin=margin * raw.scale, confidence=plan.confidence))
    return verdicts
