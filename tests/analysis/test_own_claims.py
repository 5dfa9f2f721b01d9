"""Tests of claims of the user's own: how they are judged beside the bundled ones, and how their mistakes are told."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import xarray as xr
from claims_document import PAGE
from planted_studies import Plant, planted_study
from quick_plan import quick_plan

from analysis.claims import Plan, PlanError, Verdict, ask, conclude, findings, judge, points, unjudged, verdict_lines


def own_claim() -> Any:
    """The function in the worked example of the document."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code.group(1), names)
    return names["judge"]


def test_the_worked_example_of_a_claim_of_ones_own_is_judged_beside_the_others() -> None:
    ds = planted_study({"maml": Plant(along=0.5, loss=0.4)}, seeds=6)
    extra = {"lower-query-loss": own_claim()}
    plan = quick_plan("suppression")
    verdicts = judge(ds, plan, extra)
    assert [repr(v) for v in verdicts if v.claim == "suppression"] == [repr(v) for v in judge(ds, plan)]
    (own,) = (v for v in verdicts if v.claim == "lower-query-loss")
    assert (own.outcome, own.kind, own.corrected_outcome) == ("supported", "exploratory", None)
    assert "the query loss of maml at the adapted point is" in own.sentence
    assert findings(verdicts)[-1].startswith("Meta-training lowers the query loss after adaptation? ")
    assert len(list(verdict_lines([own]))) == 2
    assert unjudged(ds, plan, verdicts, extra) == {}
    nothing = {"nothing": lambda ds, plan: []}
    assert unjudged(ds, plan, judge(ds, plan, nothing), nothing) == {
        "nothing": "the claim's own function returned no verdict"
    }


def broken_claim(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    return points(ds, "no_such_variable", "maml", checkpoint=0)


def backward_claim(ds: xr.Dataset, plan: Plan) -> list[Verdict]:
    return [ask(plan, "mine", "raw", "rho", "downward", learner="maml", title="mine")]


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (broken_claim, rf"claims.mine fails in line \d+ of {__file__}: KeyError: .*no_such_variable"),
        (backward_claim, "ValueError: predicted='downward' is not one of negative, positive"),
        (lambda ds: [], "claims.mine fails: TypeError: .* takes 1 positional argument"),
        (lambda ds, plan: None, "claims.mine returns a NoneType; it must return a list of verdicts"),
        (lambda ds, plan: [1], "claims.mine returns a list; it must return a list of verdicts"),
    ],
)
def test_a_claim_of_ones_own_that_fails_is_refused_with_its_line(claim: Any, said: str) -> None:
    ds = planted_study({"maml": Plant(along=0.5)}, seeds=2)
    with pytest.raises(PlanError, match=said):
        judge(ds, quick_plan("suppression"), {"mine": claim})


def test_a_margin_has_no_sign() -> None:
    (verdict, *_) = judge(planted_study({"maml": Plant(along=0.5)}, seeds=2), quick_plan("suppression"))
    with pytest.raises(ValueError, match="margin=-0.1 is the smallest effect of interest, without a sign"):
        conclude(verdict, None, margin=-0.1, confidence=0.95)


def test_a_claim_of_ones_own_may_be_primary_in_a_plan_of_ones_own() -> None:
    ds = planted_study({"maml": Plant(along=0.5, loss=0.4)}, seeds=6)
    plan = quick_plan("suppression")
    entry = dataclasses.replace(plan.claims["suppression"], corrected=(), statement="The loss falls.")
    plan = dataclasses.replace(plan, claims=plan.claims | {"lower-query-loss": entry})
    verdicts = judge(ds, plan, {"lower-query-loss": own_claim()})
    assert verdicts[-1].kind == "primary"
    assert verdicts[-1].num_corrected == sum(v.kind == "primary" and np.isfinite(v.p) for v in verdicts)
