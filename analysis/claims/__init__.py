"""The claims of a study: each claim is a pure function of the study's Dataset and the pre-registered plan.

The plan (``analysis.claims.plan``) fixes every choice that a verdict depends on, such as margins and confidence.
"""

from collections.abc import Callable, Mapping

import xarray as xr

from analysis.claims.alignment import alignment_verdicts
from analysis.claims.findings import findings
from analysis.claims.plan import Plan, PlanError, load_plan, plan_from_mapping
from analysis.claims.points import NotMeasuredError
from analysis.claims.suppression import shot_verdicts, suppression_verdicts
from analysis.claims.verdict import Verdict, verdict_lines, verdicts_from_json, verdicts_to_json
from analysis.schema import trained_learners

CLAIMS: Mapping[str, Callable[[xr.Dataset, Plan], list[Verdict]]] = {
    "suppression": suppression_verdicts,
    "shot": shot_verdicts,
    "alignment": alignment_verdicts,
}


def judge(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Return the verdicts on every claim, in the order of ``CLAIMS``; the Dataset is not changed.

    The list is empty for a study without a trained learner. Raises PlanError if the plan asks for inner steps that the
    study does not have. Raises NotMeasuredError, which says what to run, if a part of the study has not been measured.
    """
    if not trained_learners(ds):
        return []
    plan.check_steps(ds.sizes["inner_step"] - 1)
    return [verdict for claim in CLAIMS.values() for verdict in claim(ds, plan)]


__all__ = [
    "CLAIMS",
    "NotMeasuredError",
    "Plan",
    "PlanError",
    "Verdict",
    "findings",
    "judge",
    "load_plan",
    "plan_from_mapping",
    "verdict_lines",
    "verdicts_from_json",
    "verdicts_to_json",
]
