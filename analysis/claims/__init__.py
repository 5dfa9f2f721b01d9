"""The claims of a study, each a pure function of its Dataset and the plan."""

from collections.abc import Callable, Mapping

import xarray as xr

from analysis.claims.alignment import alignment_verdicts
from analysis.claims.comparison import NotMeasuredError
from analysis.claims.plan import Plan, PlanError, load_plan, plan_from_mapping
from analysis.claims.shot import shot_verdicts
from analysis.claims.suppression import suppression_verdicts
from analysis.claims.verdict import Verdict, verdicts_from_json, verdicts_to_json

CLAIMS: Mapping[str, Callable[[xr.Dataset, Plan], list[Verdict]]] = {
    "suppression": suppression_verdicts,
    "shot": shot_verdicts,
    "alignment": alignment_verdicts,
}


def judge(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    """Every claim on a study, in the order of the registry; the Dataset is left as it is.

    Raises NotMeasuredError, with what to run, if the study has not been measured in full.
    """
    return [verdict for claim in CLAIMS.values() for verdict in claim(ds, plan)]


__all__ = [
    "CLAIMS",
    "NotMeasuredError",
    "Plan",
    "PlanError",
    "Verdict",
    "judge",
    "load_plan",
    "plan_from_mapping",
    "verdicts_from_json",
    "verdicts_to_json",
]
