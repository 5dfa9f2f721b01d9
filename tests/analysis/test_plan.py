"""Tests of the plan of the claims (claims.yaml), which fixes margins and groups of inner steps beforehand.

Mistakes in it are refused with plain messages, and its digest depends on its content alone.
"""

from typing import Any

import numpy as np
import pytest
import yaml
from simulated_studies import simulated_study

from analysis.claims import CLAIMS, PlanError, judge, load_plan, plan_from_mapping
from analysis.claims.plan import BUNDLED

PLAN = load_plan()


def content() -> dict[str, Any]:
    """The bundled plan as plain mappings, fresh each time."""
    return yaml.safe_load(BUNDLED.read_text(encoding="utf-8"))


def test_the_digest_depends_on_the_content_only(tmp_path: Any) -> None:
    reordered = dict(reversed(content().items()))
    (tmp_path / "claims.yaml").write_text("# another layout\n" + yaml.safe_dump(reordered), encoding="utf-8")
    assert load_plan(tmp_path / "claims.yaml").digest == PLAN.digest
    changed = content()
    changed["claims"]["shot"]["margin"] = 0.2
    assert plan_from_mapping(changed).digest != PLAN.digest
    assert plan_from_mapping(content()) == PLAN


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["confidnce"], 0.9, "unknown key 'confidnce'; did you mean 'confidence'"),
        (["claims", "shot", "margn"], 0.1, "unknown key 'claims.shot.margn'; did you mean 'margin'"),
        (["claims", "shot", "margin"], "small", r"claims.shot.margin: input should be a valid number (got 'small'\)"),
        (["claims", "shot", "margin"], 0, r"claims.shot.margin: input should be greater than 0 (got 0\)"),
        (["claims", "shot", "kind"], "main", "claims.shot.kind: input should be 'primary' or 'exploratory'"),
        (["claims"], {}, "give either claims, as in analysis/claims/claims.yaml, or margins"),
        (["confidence"], 95, r"confidence: input should be less than 1 (got 95\)"),
        (["equal_loss"], None, "equal_loss: input should be a dictionary .*got None"),
        (["step_groups"], {}, "step_groups must name at least one group"),
        (["step_groups", "step 0"], {"first": 0}, "step_groups.step 0.last: field required"),
        (["step_groups", "step 0"], {"first": 2, "last": 1}, "last is 1; give an inner step not before first"),
        (["step_groups", "step 0"], {"first": -1, "last": 1}, r"step 0.first: .* 0 (got -1\)"),
        (["bootstrap", "resamples"], 10, r"bootstrap.resamples: .* 100 (got 10\)"),
    ],
)
def test_mistakes_in_a_plan_are_named(path: list[str], value: Any, message: str) -> None:
    data = content()
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(PlanError, match=message.replace("(", r"\(")):
        plan_from_mapping(data)


def test_a_plan_that_is_not_a_yaml_mapping_is_refused(tmp_path: Any) -> None:
    (tmp_path / "claims.yaml").write_text("margins: [", encoding="utf-8")
    with pytest.raises(PlanError, match=r"claims\.yaml is not YAML at line 1"):
        load_plan(tmp_path / "claims.yaml")
    with pytest.raises(PlanError, match="the plan must be a mapping"):
        plan_from_mapping(None)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"first": 4, "last": "adapted"}, "step_groups: late: first is 4; this study has 3 inner steps, so give"),
        ({"first": 4, "last": 5}, "step_groups: late: first is 4"),
        ({"first": 2, "last": 4}, "step_groups: late: last is 4"),
    ],
)
def test_a_group_of_inner_steps_beyond_those_of_the_study_is_refused(group: dict[str, Any], message: str) -> None:
    """The plan is refused before any number is read, for nothing is measured in this study."""
    data = content()
    data["step_groups"]["late"] = group
    ds = simulated_study(tasks=2, evaluation_tasks=2)
    with pytest.raises(PlanError, match=message):
        judge(ds.assign(status=ds["status"] * 0), plan_from_mapping(data))


def test_groups_of_inner_steps_that_the_study_has_are_accepted() -> None:
    PLAN.check_steps(1)  # with one inner step, "later steps" is the adapted point
    with pytest.raises(PlanError, match="later steps: first is 1; this study has 0 inner steps"):
        PLAN.check_steps(0)
    data = content()
    data["step_groups"] = {"end": {"first": 3, "last": 3}}
    plan_from_mapping(data).check_steps(3)


def test_a_plan_of_version_0_1_is_read_and_keeps_its_digest() -> None:
    """Such a plan has three claims and no words for them; the digest was computed by version 0.1."""
    data = content() | {"margins": {"suppression": 0.1, "shot": 0.1, "alignment": 0.05}}
    del data["claims"]
    plan = plan_from_mapping(data)
    assert plan.digest == "d40a6d28e05c09f01e69bde556290a11c0d273111d79ce1fbaafee5782fe2886"
    assert plan.names == ("suppression", "shot", "alignment")
    assert [plan.title(name) for name in plan.names] == [PLAN.title(name) for name in plan.names]
    assert plan.margin("alignment") == 0.05
    ds = simulated_study(tasks=2, evaluation_tasks=2)
    verdicts = judge(ds, plan)
    assert {verdict.claim for verdict in verdicts} == set(plan.names)
    assert {verdict.kind for verdict in verdicts} == {"exploratory"}  # such a plan names no primary claims
    assert all(np.isnan(verdict.p_corrected) for verdict in verdicts)


def test_a_claim_without_a_function_is_refused_with_a_near_name() -> None:
    data = content()
    data["claims"]["supression"] = data["claims"].pop("suppression")
    ds = simulated_study(tasks=2, evaluation_tasks=2)
    with pytest.raises(PlanError, match="there is no claim 'supression'; did you mean 'suppression'"):
        judge(ds, plan_from_mapping(data))
    with pytest.raises(PlanError, match="'shot' is a claim of the package; give your own claim another name"):
        judge(ds, PLAN, {"shot": lambda ds, plan: []})


def test_every_claim_is_in_the_bundled_plan_and_has_one_sentence() -> None:
    assert list(PLAN.claims) == list(CLAIMS)
    for name, claim in PLAN.claims.items():
        assert claim.statement.endswith("."), name
        assert claim.statement.count(".") == 1, name
    kinds = [claim.kind for claim in PLAN.claims.values()]
    assert kinds == sorted(kinds, key=lambda kind: kind == "exploratory")  # the primary claims come first
