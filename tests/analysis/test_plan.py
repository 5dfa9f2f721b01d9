"""Tests of the plan of the claims (claims.yaml), which fixes margins and groups of inner steps beforehand.

Mistakes in it are refused with plain messages, and its digest depends on its content alone.
"""

from typing import Any

import pytest
import yaml
from simulated_studies import simulated_study

from analysis.claims import PlanError, judge, load_plan, plan_from_mapping
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
    changed["margins"]["shot"] = 0.2
    assert plan_from_mapping(changed).digest != PLAN.digest
    assert plan_from_mapping(content()) == PLAN


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["confidnce"], 0.9, "unknown key 'confidnce'; did you mean 'confidence'"),
        (["margins", "supression"], 0.1, "unknown key 'margins.supression'; did you mean 'suppression'"),
        (["margins", "shot"], "small", r"margins.shot: input should be a valid number (got 'small'\)"),
        (["margins", "shot"], 0, r"margins.shot: input should be greater than 0 (got 0\)"),
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
    with pytest.raises(PlanError, match=r"claims\.yaml is not valid YAML"):
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
