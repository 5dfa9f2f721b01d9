"""The claims of a study: each claim is a pure function of the study's Dataset and the pre-registered plan.

The plan (``analysis.claims.plan``) fixes every choice that a verdict depends on, such as margins and confidence, and
names the claims that are judged. ``docs/claims.md`` lists them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Literal

import xarray as xr

from analysis.claims.alignment import alignment_verdicts
from analysis.claims.answers import summary
from analysis.claims.changes import meta_gradient_verdicts, shot_distance_verdicts, stability_verdicts
from analysis.claims.comparison import ask, compare_seeds, compare_task_by_task
from analysis.claims.correction import holm
from analysis.claims.equal_accuracy import equal_accuracy_verdicts
from analysis.claims.falls import (
    first_order_verdicts,
    growth_verdicts,
    head_and_body_verdicts,
    supervised_verdicts,
    trajectory_verdicts,
)
from analysis.claims.findings import findings
from analysis.claims.intervention import association_verdicts, intervention_verdicts, manipulation_verdicts
from analysis.claims.learning import shot_accuracy_verdicts, shot_speed_verdicts
from analysis.claims.plan import Plan, PlanError, load_plan, plan_from_mapping
from analysis.claims.points import NotMeasuredError, diverged, first_and_last, has, points
from analysis.claims.suppression import shot_verdicts, suppression_verdicts
from analysis.claims.verdict import Verdict, conclude, verdict_lines, verdicts_from_json, verdicts_to_json
from analysis.schema import plain_learners, trained_learners
from hessian_tools.importing import one_line, place_in_file_of

Judge = Callable[[xr.Dataset, Plan], list[Verdict]]


@dataclass(frozen=True)
class Claim:
    """A claim as a function of the Dataset and the plan, and what a study must have for it.

    judge: the function that returns the verdicts.
    variables: the variables of the Dataset that the claim needs; a study without one of them gets no verdict.
    needs: what else a study must have, in words that follow "the study has no".
    """

    judge: Judge
    variables: tuple[str, ...]
    needs: str

    def __call__(self, ds: xr.Dataset, plan: Plan) -> list[Verdict]:
        """Return the verdicts; the list is empty where the study lacks one of the variables."""
        return self.judge(ds, plan) if has(ds, *self.variables) else []

    def missing(self, ds: xr.Dataset) -> str:
        """Why the claim has no verdict in a study, in words."""
        absent = [name for name in self.variables if not has(ds, name)]
        return f"the study did not measure {', '.join(absent)}" if absent else f"the study has no {self.needs}"


def _no_verdict(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Stands for the function of a claim where there is none, or where only the claim's name matters."""
    return []


# Two texts for ``Claim.needs``, which several claims share.
LEARNER = "trained learner with an untrained start"
PAIR = "learner with SHOT beside the same learner without it"
# The primary claims come first. Here g is the inner gradient, H the Hessian of the support loss, and alpha the inner
# learning rate. The variables "rho", "alpha_rho" and "hg_ratio" are g'Hg / g'g, alpha times that, and |Hg| / |g|. SHOT
# penalises the distance between the ends of few large and of many small inner steps, and the penalty on the curvature
# penalises alpha |Hg| / |g|.
CLAIMS: Mapping[str, Claim] = {
    "suppression": Claim(suppression_verdicts, ("rho",), LEARNER),
    "suppression-hg": Claim(partial(suppression_verdicts, name="suppression-hg"), ("hg_ratio",), LEARNER),
    "trajectory": Claim(trajectory_verdicts, ("rho",), f"{LEARNER} and curvature in other directions"),
    "shot": Claim(shot_verdicts, ("rho",), PAIR),
    "shot-hg": Claim(partial(shot_verdicts, name="shot-hg"), ("hg_ratio",), PAIR),
    "shot-equal-accuracy": Claim(equal_accuracy_verdicts, ("evaluation_loss",), PAIR),
    "intervention": Claim(
        intervention_verdicts, ("hg_ratio", "evaluation_accuracy"), "learner at three weights of SHOT or of the penalty"
    ),
    "alignment": Claim(alignment_verdicts, (), LEARNER),
    "manipulation": Claim(
        manipulation_verdicts, ("hg_ratio",), "learner at two weights of SHOT or of the penalty on the curvature"
    ),
    "weight-growth": Claim(growth_verdicts, ("rho", "rho_normalised"), LEARNER),
    "stability": Claim(stability_verdicts, ("alpha_rho",), LEARNER),
    "supervised": Claim(
        supervised_verdicts, ("rho",), "trained control, supervised or on shuffled labels, beside another learner"
    ),
    "first-order": Claim(first_order_verdicts, ("rho",), "first-order learner beside its second-order counterpart"),
    "head-and-body": Claim(head_and_body_verdicts, ("rho",), "curvature of head or body of ANIL or BOIL beside MAML"),
    "meta-gradient": Claim(meta_gradient_verdicts, ("meta_gradient_cosine",), LEARNER),
    "association": Claim(association_verdicts, ("hg_ratio", "evaluation_accuracy"), "trained learner without SHOT"),
    "shot-distance": Claim(shot_distance_verdicts, ("shot_direction_cosine",), LEARNER),
    "shot-accuracy": Claim(shot_accuracy_verdicts, ("evaluation_accuracy",), PAIR),
    "shot-speed": Claim(shot_speed_verdicts, ("evaluation_accuracy",), PAIR),
    # No study can answer this claim. It is listed for ``unjudged``, which names the benchmark that answers it.
    "shot-cost": Claim(
        _no_verdict, (), "record of what a meta-iteration costs; python -m benchmarks --only shot measures it"
    ),
}


def judge(ds: xr.Dataset, plan: Plan, extra: Mapping[str, Judge] | None = None) -> list[Verdict]:
    """Return the verdicts on the claims that the plan names, in the order of ``CLAIMS``; the Dataset is not changed.

    extra: further claims by name, such as those of a user's own file. A claim that the plan does not describe is judged
        all the same, as an exploratory claim.

    A claim whose variables or learners the study does not have yields no verdict; ``unjudged`` says why. Each primary
    verdict also has a p-value and an outcome after Holm's correction for multiple testing (``holm``), which covers all
    primary verdicts of the study.

    The list is empty for a study without a trained learner. Raises PlanError if the plan asks for inner steps that the
    study does not have, if it names a claim that does not exist, or if the function of a further claim fails. Raises
    NotMeasuredError, which says what to run, if a part of the study has not been measured.
    """
    if not trained_learners(ds):
        return []
    plan.check_steps(ds.sizes["inner_step"] - 1)
    plain = plain_learners(ds)
    verdicts: list[Verdict] = []
    for name, claim in _claims(plan, extra).items():
        of_claim = claim(ds, plan) if name in CLAIMS else _own_verdicts(name, claim, ds, plan)
        verdicts += [replace(verdict, claim=name, kind=_kind(plan, name, verdict, plain)) for verdict in of_claim]
    ((_, corrected),) = holm([("", verdicts)], confidence=plan.confidence)  # one study, whose name is not used
    return corrected


def _own_verdicts(name: str, claim: Judge, ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """The verdicts of a claim of the user's own. Raises PlanError where its function fails or returns anything else."""
    try:
        verdicts = claim(ds, plan)
    except (NotMeasuredError, PlanError):
        raise
    except Exception as error:
        raise PlanError(f"claims.{name} fails{place_in_file_of(claim, error)}: {one_line(error)}") from error
    if not isinstance(verdicts, list | tuple) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
        raise PlanError(f"claims.{name} returns a {type(verdicts).__name__}; it must return a list of verdicts")
    return list(verdicts)


def unjudged(ds: xr.Dataset, plan: Plan, verdicts: list[Verdict], extra: Iterable[str] = ()) -> dict[str, str]:
    """For each claim of the plan that has no verdict, the reason in words.

    verdicts: what ``judge`` returned for the same study, plan and further claims.
    extra: the names of these further claims; their functions are not needed.
    """
    judged = {verdict.claim for verdict in verdicts}
    return {
        name: claim.missing(ds) if isinstance(claim, Claim) else "the claim's own function returned no verdict"
        for name, claim in _claims(plan, dict.fromkeys(extra, _no_verdict)).items()
        if name not in judged
    }


def _claims(plan: Plan, extra: Mapping[str, Judge] | None) -> dict[str, Judge]:
    """The claims to judge: those that the plan names, and all further ones."""
    for name in set(CLAIMS) & set(extra or {}):
        raise PlanError(f"claims: {name!r} is a claim of the package; give your own claim another name")
    known: dict[str, Judge] = {**CLAIMS, **(extra or {})}
    for name in plan.names:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise PlanError(
                f"claims: there is no claim {name!r}; {hint}A claim of your own also needs its function, under claims"
                " in the study's YAML"
            )
    return {name: claim for name, claim in known.items() if name in plan.names or name in (extra or {})}


def _kind(plan: Plan, claim: str, verdict: Verdict, plain: list[str]) -> Literal["primary", "exploratory"]:
    """The kind of a verdict. It is primary if the claim is, and if the plan corrects its comparison and its learner.

    plain: the learners that are not controls and use neither SHOT nor the penalty on the curvature.
    """
    entry = plan.claims.get(claim)
    if entry is None or entry.kind != "primary":
        return "exploratory"
    comparison_counts = not entry.corrected or verdict.comparison in entry.corrected
    learner_counts = entry.learners == "all" or verdict.learner in plain
    return "primary" if comparison_counts and learner_counts else "exploratory"


__all__ = [
    "CLAIMS",
    "Claim",
    "NotMeasuredError",
    "Plan",
    "PlanError",
    "Verdict",
    "ask",
    "compare_seeds",
    "compare_task_by_task",
    "conclude",
    "diverged",
    "findings",
    "first_and_last",
    "holm",
    "judge",
    "load_plan",
    "plan_from_mapping",
    "points",
    "summary",
    "unjudged",
    "verdict_lines",
    "verdicts_from_json",
    "verdicts_to_json",
]
