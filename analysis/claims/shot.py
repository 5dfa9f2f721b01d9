"""Claim (b): SHOT lowers the curvature along the inner gradient further than the same learner without it.

The pairs stand in the study (``analysis.schema.shot_pairs``); one learner may be compared with several SHOT
variants of it. Both sides of a pair have the seed's initialisation, tasks and inner learning rate in common; one that
begins from a network pre-trained by SHOT alone has had that training besides.
"""

import xarray as xr

from analysis.claims.plan import Plan
from analysis.claims.points import first_and_last
from analysis.claims.suppression import lower_curvature, quantity
from analysis.claims.verdict import Question, Verdict
from analysis.schema import BY_NAME, shot_pairs


def shot_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """For every pair and step group, at the last checkpoint, in all three comparisons. Empty without a pair."""
    title = "SHOT lowers the curvature along the inner gradient further"
    pairs = shot_pairs(ds)
    last = first_and_last(ds)[1] if pairs else 0
    verdicts = []
    for learner, without in pairs:
        name = quantity(ds, learner, without)
        question = Question("shot", title, learner, without, "", "raw", name, BY_NAME[name].units, "negative")
        verdicts += lower_curvature(ds, plan, question, (without, last), last, plan.margins.shot)
    return verdicts
