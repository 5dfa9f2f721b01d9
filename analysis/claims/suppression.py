"""Suppression: meta-training lowers the curvature along the inner gradient, and SHOT lowers it further.

The curvature along the inner gradient g is rho = g'Hg / g'g, with the Hessian H of the support loss. alpha is the inner
learning rate. SHOT is the penalty on the distance between the ends of few large and of many small inner steps (Lee,
Yoo, Kwak 2023).

The claims "suppression" and "suppression-hg": meta-training lowers this curvature, although no term of its loss asks
for that. Each trained learner at the last checkpoint is compared with itself at checkpoint 0, which is the untrained
network with the same initialisation, on the same tasks, at the same inner learning rate. (Lee, Yoo, Kwak 2023 claim
suppression along the inner loop, but measure no curvature.) A learner that begins from another learner's trained
network is compared with an untrained network that adapts by the same inner loop, if the study has one.

The claims "shot" and "shot-hg": a learner with SHOT is compared with the same learner without SHOT, at the last
checkpoint. ``analysis.claims.points.shot_pairs`` lists these pairs, and one learner without SHOT may belong to several
of them. Both sides share the seed's initialisation, tasks and inner learning rate. A learner that begins from a network
that was pre-trained with SHOT alone also counts as one with SHOT; it has had that pre-training in addition.

The claims whose names end in "-hg" judge |Hg| / |g| in place of rho. |Hg| / |g| measures the size of the whole
Hessian-gradient product. rho measures only the part of that product along the gradient, and may be negative. Both are
multiplied by alpha, except at unit filter norm.

A step group names the inner steps that the plan judges together. Three comparisons are made for each learner and step
group:

* Raw: alpha rho as it was measured.
* At unit filter norm: rho, without the factor alpha, after each filter that is followed by a normalisation layer has
  been scaled to unit norm. H is proportional to 1/|w|^2 in the weights w of such a filter, so that rho falls if the
  weights merely grow. In a network without normalisation, this is rho itself.
* At equal support loss: the quantity of the raw comparison, but only between points of the two sides whose support
  losses are nearly equal, because curvature falls together with the loss (see ``analysis.claims.equal_loss``).

A learner whose steps are not alpha times the gradient has no alpha rho, and rho is judged in its place. Such a learner
learns its step sizes, uses another step rule, or adapts latent codes in place of the parameters (LEO).
"""

from dataclasses import replace

import xarray as xr

from analysis.claims.comparison import Question, ask, compare_task_by_task
from analysis.claims.equal_loss import compare_at_equal_loss
from analysis.claims.plan import Plan
from analysis.claims.points import UNTRAINED, diverged, first_and_last, has, points, shot_pairs
from analysis.claims.verdict import UNIT_NORM, Verdict, conclude
from analysis.schema import alpha_steps, trained_learners, untrained_start, with_seeds_of

# The quantity itself, the quantity that replaces it for a learner without alpha, and the quantity at unit filter norm.
QUANTITIES = ("alpha_rho", "rho", "rho_normalised")
HG_QUANTITIES = ("alpha_hg_ratio", "hg_ratio", "hg_ratio_normalised")
LOSS = "support_loss"


def suppression_verdicts(ds: xr.Dataset, plan: Plan, *, name: str = "suppression") -> list[Verdict]:
    """Return the verdicts on suppression, in all three comparisons, for every trained learner and step group.

    name: "suppression" for alpha rho, "suppression-hg" for alpha |Hg| / |g|.
    """
    learners = trained_learners(ds)
    if not learners:
        return []
    first, last = first_and_last(ds)
    verdicts = []
    for learner in learners:
        start = untrained_start(ds, learner)
        if start is None:
            continue
        question = _question(ds, plan, name, (learner, start), UNTRAINED)
        if question is not None:
            verdicts += lower_curvature(ds, plan, question, (start, first), last)
    return verdicts


def shot_verdicts(ds: xr.Dataset, plan: Plan, *, name: str = "shot") -> list[Verdict]:
    """Return the verdicts on SHOT, in all three comparisons, for every pair of learners and step group.

    name: "shot" for alpha rho, "shot-hg" for alpha |Hg| / |g|.
    """
    pairs = shot_pairs(ds)
    if not pairs:
        return []
    _, last = first_and_last(ds)
    verdicts = []
    for learner, without in pairs:
        question = _question(ds, plan, name, (learner, without), without)
        if question is not None:
            verdicts += lower_curvature(ds, plan, question, (without, last), last)
    return verdicts


def _question(ds: xr.Dataset, plan: Plan, claim: str, pair: tuple[str, str], baseline: str) -> Question | None:
    """The question of the raw comparison, whose inner steps ``lower_curvature`` fills in.

    pair: the learner and the one with which it is compared. None if the study did not measure the quantity.
    """
    scaled, plain, _ = HG_QUANTITIES if claim.endswith("-hg") else QUANTITIES
    name = scaled if all(alpha_steps(ds, learner) for learner in pair) and has(ds, scaled) else plain
    if not has(ds, name):
        return None
    return ask(plan, claim, comparison="raw", quantity=name, predicted="negative", learner=pair[0], baseline=baseline)


def lower_curvature(
    ds: xr.Dataset, plan: Plan, question: Question, baseline: tuple[str, int], last: int
) -> list[Verdict]:
    """Return the verdicts on a question for each step group, in all three comparisons.

    baseline: the learner and the checkpoint to compare with. last: the checkpoint of the question's learner.

    The seeds are those that both learners have; if there is none, there is no verdict.
    The smallest effect of interest is a fraction of the baseline's mean |quantity| in the step group. The raw
    comparison and the one at equal support loss take the fraction of the same mean, so that their verdicts can be
    compared. The comparison at unit filter norm is left out if the quantity was not measured there.
    """
    other_learner, checkpoint = baseline
    ds = with_seeds_of(ds, question.learner, other_learner)
    if not ds.sizes["seed"]:
        return []
    _, _, at_unit_norm = HG_QUANTITIES if question.claim.endswith("-hg") else QUANTITIES
    has_unit_norm = has(ds, at_unit_norm)
    # The values [seed, task, step] of the question's learner and of the baseline, for three quantities: the question's
    # own, the one at unit filter norm, and the support loss. Where the second was not measured, the first takes its
    # place, and its comparison is left out of the verdicts below.
    sides = [
        (points(ds, name, question.learner, checkpoint=last), points(ds, name, other_learner, checkpoint=checkpoint))
        for name in (question.quantity, at_unit_norm if has_unit_norm else question.quantity, LOSS)
    ]
    margin = plan.margin(question.claim)
    has_diverged = diverged(ds, question.learner, checkpoint=last) | diverged(ds, other_learner, checkpoint=checkpoint)
    verdicts = []
    for steps, group in plan.step_groups.items():  # steps: the name of the group, such as "step 0"
        rows = group.rows(ds.sizes["inner_step"] - 1)
        value, unit_norm, loss = ((trained[:, :, rows], other[:, :, rows]) for trained, other in sides)
        raw = compare_task_by_task(*value, plan, diverged=has_diverged)
        normalised = compare_task_by_task(*unit_norm, plan, diverged=has_diverged)
        equal_loss = compare_at_equal_loss(*value, *loss, plan, diverged=has_diverged)
        # The question of each comparison, its result, and the mean |quantity| of which the margin is a fraction.
        for asked, comparison, scale in (
            (replace(question, steps=steps, comparison="raw"), raw, raw.scale),
            (replace(question, quantity=at_unit_norm, steps=steps, comparison=UNIT_NORM), normalised, normalised.scale),
            (replace(question, steps=steps, comparison="equal support loss"), equal_loss, raw.scale),
        ):
            if asked.comparison == UNIT_NORM and not has_unit_norm:
                continue
            verdicts.append(conclude(asked, comparison, margin=margin * scale, confidence=plan.confidence))
    return verdicts
