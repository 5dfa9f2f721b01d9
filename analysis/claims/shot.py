"""Claim (b): SHOT lowers the curvature along the inner gradient further than the same learner without it.

A learner with SHOT is named after the one without: "maml-shot" against "maml". Both have the seed's
initialisation, tasks and inner learning rate in common.
"""

import xarray as xr

from analysis.claims.comparison import first_and_last, trained_learners
from analysis.claims.plan import Plan
from analysis.claims.suppression import QUANTITY, lower_curvature
from analysis.claims.verdict import Question, Verdict
from analysis.schema import BY_NAME

SUFFIX = "-shot"


def shot_pairs(ds: xr.Dataset) -> list[tuple[str, str]]:
    """(with SHOT, without) for every learner whose name is another's plus "-shot"."""
    names = trained_learners(ds)
    return [(name + SUFFIX, name) for name in names if name + SUFFIX in names]


def shot_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """For every pair and step group, at the last checkpoint: raw, and at equal support loss. Empty without a pair."""
    title = "SHOT lowers the curvature along the inner gradient further"
    last = first_and_last(ds)[1]
    verdicts = []
    for learner, without in shot_pairs(ds):
        question = Question("shot", title, learner, without, "", "raw", QUANTITY, BY_NAME[QUANTITY].units, "negative")
        verdicts += lower_curvature(ds, plan, question, (without, last), last, plan.margins.shot)
    return verdicts
