"""Claims (a) and (b): meta-training lowers the curvature along the inner gradient, and SHOT lowers it further.

Claim (a), suppression: nothing asks meta-training to do so. Each trained learner at the last checkpoint is compared
with itself at checkpoint 0: the untrained network with the same initialisation, on the same tasks, at the same inner
learning rate (Lee, Yoo, Kwak 2023 claim it for the inner loop but measure no curvature). A learner that begins from
another one is compared with the untrained network under the same inner loop, where the study has that.

Claim (b), SHOT: a learner with SHOT is compared with the same learner without it, at the last checkpoint. The study
names the pairs (``analysis.schema.shot_pairs``); one learner may be compared with several SHOT variants of it. Both
sides have the seed's initialisation, tasks and inner learning rate in common. One that begins from a network which
SHOT alone has pre-trained has had that training besides.

Three comparisons are made for each learner and step group. Raw: alpha rho as it is. At unit filter norm: rho where each
filter that a normalisation follows has unit norm, since H ~ 1/|w|^2 there, and growing weights alone let rho fall;
without normalisation it is rho itself. At equal support loss: see ``equal_loss``. A learner whose steps are not alpha
times the gradient (learned step sizes, another step rule, codes) has no alpha rho: rho is judged in its place.
"""

from dataclasses import replace

import xarray as xr

from analysis.claims.comparison import Question, paired
from analysis.claims.equal_loss import matched
from analysis.claims.plan import Plan
from analysis.claims.points import UNTRAINED, diverged, first_and_last, points
from analysis.claims.verdict import Verdict, conclude
from analysis.schema import BY_NAME, alpha_steps, shot_pairs, trained_learners, untrained_start

QUANTITY, WITHOUT_ALPHA, UNIT_NORM, LOSS = "alpha_rho", "rho", "rho_normalised", "support_loss"


def suppression_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Claim (a) for every trained learner and step group, in all three comparisons. Empty without a trained learner."""
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


def shot_verdicts(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Claim (b) for every pair and step group, in all three comparisons. Empty without a pair."""
    title = "SHOT lowers the curvature along the inner gradient further"
    pairs = shot_pairs(ds)
    last = first_and_last(ds)[1] if pairs else 0
    verdicts = []
    for learner, without in pairs:
        name = quantity(ds, learner, without)
        question = Question("shot", title, learner, without, "", "raw", name, BY_NAME[name].units, "negative")
        verdicts += lower_curvature(ds, plan, question, (without, last), last, plan.margins.shot)
    return verdicts


def quantity(ds: xr.Dataset, *learners: str) -> str:
    """The name of what is compared: alpha rho, or rho if the steps of a learner are not alpha times the gradient."""
    return QUANTITY if all(alpha_steps(ds, learner) for learner in learners) else WITHOUT_ALPHA


def lower_curvature(
    ds: xr.Dataset, plan: Plan, question: Question, baseline: tuple[str, int], last: int, margin: float
) -> list[Verdict]:
    """The answers to a question for each step group, in all three comparisons.

    baseline: the learner and the checkpoint to compare with. last: the checkpoint of the question's learner.
    margin: the smallest effect of interest, as a share of the baseline's mean |quantity| in the step group. It is the
    same for the raw row and the row at equal loss, so that the two can be compared.
    """
    other_learner, checkpoint = baseline
    sides = [
        (points(ds, name, question.learner, checkpoint=last), points(ds, name, other_learner, checkpoint=checkpoint))
        for name in (question.quantity, UNIT_NORM, LOSS)
    ]
    lost = diverged(ds, question.learner, checkpoint=last) | diverged(ds, other_learner, checkpoint=checkpoint)
    at_unit_norm = replace(question, quantity=UNIT_NORM, units=BY_NAME[UNIT_NORM].units)
    verdicts = []
    for steps, group in plan.step_groups.items():
        rows = group.rows(ds.sizes["inner_step"] - 1)
        value, unit_norm, loss = ((trained[:, :, rows], other[:, :, rows]) for trained, other in sides)
        raw = paired(*value, plan, diverged=lost)
        normalised = paired(*unit_norm, plan, diverged=lost)
        equal_loss = matched(*value, *loss, plan, diverged=lost)
        for asked, comparison, scale in (
            (replace(question, steps=steps, comparison="raw"), raw, raw.scale),
            (replace(at_unit_norm, steps=steps, comparison="unit filter norm"), normalised, normalised.scale),
            (replace(question, steps=steps, comparison="equal support loss"), equal_loss, raw.scale),
        ):
            verdicts.append(conclude(asked, comparison, margin=margin * scale, confidence=plan.confidence))
    return verdicts
