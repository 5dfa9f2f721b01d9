"""Claim (a): meta-training lowers the curvature along the inner gradient, with nothing asking it to.

Each trained learner at the last checkpoint against itself at checkpoint 0: the untrained network with
the same initialisation, on the same tasks, at the same inner learning rate (Lee, Yoo, Kwak 2023 claim it
for the inner loop but measure no curvature). One that begins from another learner is compared with the untrained
network under the same inner loop, where the study has that.

Three comparisons for each learner and step group. Raw: alpha rho as it is. At unit filter norm: rho where each filter
that a normalisation follows has unit norm, since H ~ 1/|w|^2 there and growing weights alone let rho fall; without
normalisation it is rho itself. At equal support loss: ``equal_loss``. A learner whose steps are not alpha times the
gradient (learned step sizes, another step rule, codes) has no alpha rho: rho is judged in its place.
"""

from dataclasses import replace

import xarray as xr

from analysis.claims.comparison import paired
from analysis.claims.equal_loss import matched
from analysis.claims.plan import Plan
from analysis.claims.points import UNTRAINED, diverged, first_and_last, points
from analysis.claims.verdict import Question, Verdict, conclude
from analysis.schema import BY_NAME, alpha_steps, trained_learners, untrained_start

QUANTITY, WITHOUT_ALPHA, UNIT, LOSS = "alpha_rho", "rho", "rho_normalised", "support_loss"


def suppression_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """For every trained learner and step group, all three comparisons. Empty without a trained learner."""
    title = "meta-training lowers the curvature along the inner gradient"
    learners = trained_learners(ds)
    first, last = first_and_last(ds) if learners else (0, 0)
    verdicts = []
    for learner in learners:
        start = untrained_start(ds, learner)
        if start is None:
            continue
        name = quantity(ds, learner, start)
        question = Question("suppression", title, learner, UNTRAINED, "", "raw", name, BY_NAME[name].units, "negative")
        verdicts += lower_curvature(ds, plan, question, (start, first), last, plan.margins.suppression)
    return verdicts


def quantity(ds: xr.Dataset, *learners: str) -> str:
    """What is compared: alpha rho, or rho where the steps of one of them are not alpha times the gradient."""
    return QUANTITY if all(alpha_steps(ds, learner) for learner in learners) else WITHOUT_ALPHA


def lower_curvature(
    ds: xr.Dataset, plan: Plan, question: Question, baseline: tuple[str, int], last: int, margin: float
) -> list[Verdict]:
    """The question for each step group and comparison; ``baseline``: learner and checkpoint compared with.

    ``margin`` is the share of the baseline's mean |quantity| in the step group; raw and matched rows have the same.
    """
    who, at = baseline
    sides = [
        (points(ds, name, question.learner, checkpoint=last), points(ds, name, who, checkpoint=at))
        for name in (question.quantity, UNIT, LOSS)
    ]
    lost = diverged(ds, question.learner, checkpoint=last) | diverged(ds, who, checkpoint=at)
    in_unit = replace(question, quantity=UNIT, units=BY_NAME[UNIT].units)
    verdicts = []
    for steps, group in plan.step_groups.items():
        rows = group.rows(ds.sizes["inner_step"] - 1)
        value, unit, loss = ((trained[:, :, rows], other[:, :, rows]) for trained, other in sides)
        raw = paired(*value, plan, diverged=lost)
        normed = paired(*unit, plan, diverged=lost)
        equal = matched(*value, *loss, plan, diverged=lost)
        for asked, comparison, scale in (
            (replace(question, steps=steps, comparison="raw"), raw, raw.scale),
            (replace(in_unit, steps=steps, comparison="unit filter norm"), normed, normed.scale),
            (replace(question, steps=steps, comparison="equal support loss"), equal, raw.scale),
        ):
            verdicts.append(conclude(asked, comparison, margin=margin * scale, confidence=plan.confidence))
    return verdicts
