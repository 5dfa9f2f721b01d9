"""Tests of the numbers on which claims rest.

Learners are recognised by their role and not by their name, missing numbers are refused, and points whose gradient is
zero are counted separately from diverged units. A unit is one held-out task of one seed.
"""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from quick_plan import quick_plan
from simulated_studies import simulated_study

from analysis.claims import CLAIMS, NotMeasuredError, judge, load_plan, unjudged
from analysis.claims.points import diverged, points
from analysis.schema import STATUS_MEANINGS, ZERO_GRADIENT

PLAN = quick_plan()
UNIT = {"learner": 1, "seed": 2, "checkpoint": -1, "task": 3}  # MAML's last checkpoint in the third seed


def study(**options: Any) -> xr.Dataset:
    """A small simulated study of "untrained" and "maml"; the options are those of ``simulated_study``."""
    common: dict[str, Any] = {"learners": ("untrained", "maml"), "checkpoints": (0, 100), "evaluation_tasks": 2}
    return simulated_study(**(common | options))


def test_learners_are_recognised_by_their_role_and_not_by_their_name() -> None:
    """The control is not called "untrained", and two learners with SHOT are compared with one learner without it.

    "fomaml-shot" has a misleading name: no learner of this study is the same without SHOT.
    """
    ds = study(
        learners=("start", "maml", "regularised", "maml-shot", "fomaml-shot"),
        untrained=("start",),
        without_shot={"regularised": "maml", "maml-shot": "maml"},
    )
    verdicts = judge(ds, PLAN)
    pairs = [(v.learner, v.baseline) for v in verdicts if v.claim == "shot" and v.comparison == "raw"]
    assert pairs == [("regularised", "maml")] * 2 + [("maml-shot", "maml")] * 2
    against = {(v.learner, v.baseline) for v in verdicts if v.claim == "suppression"}
    assert against == {(name, "untrained") for name in ("maml", "regularised", "maml-shot", "fomaml-shot")}
    raw = next(v for v in verdicts if v.learner == "regularised")
    untrained = ds["alpha_rho"].isel(learner=2, checkpoint=0, inner_step=0).mean()
    assert raw.baseline_value == pytest.approx(float(untrained))
    assert "for the untrained network" in raw.sentence


def test_without_a_trained_learner_there_is_nothing_to_judge() -> None:
    ds = study(learners=("start",), untrained=("start",))
    assert judge(ds, PLAN) == []
    assert [name for name, claim in CLAIMS.items() if claim(ds, load_plan())] == []
    assert set(unjudged(ds, load_plan(), [])) == set(CLAIMS)
    assert CLAIMS["shot"](study(), PLAN) == []  # no learner of this study has SHOT


def test_missing_measurements_are_an_error_that_says_what_to_do() -> None:
    ds = study()
    ds["status"][UNIT] = STATUS_MEANINGS.index("not_measured")
    with pytest.raises(
        NotMeasuredError, match=r"measure the study first: maml at checkpoint 100 lacks 1 of 48 units \(.*; seed 2\)"
    ):
        judge(ds, PLAN)
    with pytest.raises(NotMeasuredError, match="needs checkpoint 0 and a later one"):
        judge(study(checkpoints=(0,)), PLAN)


@pytest.mark.parametrize("variable", ["alpha_rho", "rho_normalised", "support_loss", "alignment"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_unless_its_unit_is_marked_diverged(variable: str, value: float) -> None:
    ds = study()
    ds[variable][UNIT | ({"inner_step": 2} if variable != "alignment" else {})] = value
    words = f"maml at checkpoint 100 is marked measured but holds no number for {variable} .seed 2, task 3; 1 of"
    with pytest.raises(
        NotMeasuredError, match=words + r".*move the run's measurements\.zarr elsewhere and measure again"
    ):
        judge(ds, PLAN)
    ds["grad_norm"][UNIT] = np.nan  # a second lost number does not make the unit a diverged one
    with pytest.raises(NotMeasuredError, match="holds no number"):
        judge(ds, PLAN)
    ds["status"][UNIT] = STATUS_MEANINGS.index("diverged")
    assert {v.num_diverged for v in judge(ds, PLAN)} == {1}


def test_a_point_with_zero_gradient_has_no_rho_but_must_have_a_loss() -> None:
    """Such a point is left out of its group of inner steps, and the verdict counts and mentions it."""
    ds = study(diverged=[("maml", 0, 1)])
    point = UNIT | {"inner_step": -1}
    for name in ("alpha_rho", "rho_normalised", "grad_norm"):
        ds[name][point] = 0.0 if name == "grad_norm" else np.nan
    verdicts = judge(ds, PLAN)
    for verdict in verdicts:
        later = verdict.steps == "later steps"
        assert (verdict.num_diverged, verdict.num_undefined) == (1, int(later))
        assert (
            "1 of 48 units (seed, task) was left out of both sides because the gradient is zero" in verdict.sentence
        ) == later
    ds["support_loss"][point] = np.nan
    with pytest.raises(NotMeasuredError, match="support_loss"):
        judge(ds, PLAN)


def test_nothing_is_left_to_compare_where_every_gradient_is_zero() -> None:
    ds = study()
    end = {"learner": 1, "checkpoint": -1}
    for name in ("alpha_rho", "rho_normalised", "alignment", "grad_norm"):
        ds[name][end] = ZERO_GRADIENT / 10 if name == "grad_norm" else np.nan
    for verdict in judge(ds, PLAN):
        assert (verdict.outcome, verdict.num_undefined, verdict.num_seeds) == ("inconclusive", 48, 0)
        assert "nothing is left to compare; 48 of 48 units (seed, task) were left out" in verdict.sentence
        assert "because the gradient is zero" in verdict.sentence
    ds["grad_norm"][end | {"inner_step": 0}] = 1.0  # the alignment A is defined once one inner gradient is not zero
    with pytest.raises(NotMeasuredError, match="alpha_rho"):
        judge(ds, PLAN)
    with pytest.raises(NotMeasuredError, match="alignment"):
        CLAIMS["alignment"](ds, PLAN)


def test_diverged_units_of_the_baseline_are_counted_too() -> None:
    ds = study(learners=("untrained", "maml", "maml-shot"), diverged=[("maml", 0, 1), ("maml-shot", 0, 2)])
    for verdict in CLAIMS["shot"](ds, PLAN):
        assert (verdict.num_diverged, verdict.num_undefined) == (2, 0)
        assert "zero" not in verdict.sentence
    ds["status"][{"learner": 1, "seed": 2, "checkpoint": 0, "task": 3}] = STATUS_MEANINGS.index("diverged")
    for claim in ("suppression", "alignment"):
        verdicts = [v for v in CLAIMS[claim](ds, PLAN) if v.learner == "maml"]
        assert {v.comparison: (v.num_diverged, v.num_undefined) for v in verdicts} == {
            v.comparison: (1 if v.comparison == "against orthogonal" else 2, 0) for v in verdicts
        }


def test_points_copies_the_values_and_sets_diverged_units_to_nan() -> None:
    ds = study(diverged=[("maml", 2, 3)])
    values = points(ds, "alpha_rho", "maml", checkpoint=100)
    lost = diverged(ds, "maml", checkpoint=100)
    assert np.argwhere(lost).tolist() == [[2, 3]]
    np.testing.assert_array_equal(np.isnan(values).all(axis=-1), lost)  # also at step 0, where the dataset has a number
    np.testing.assert_array_equal(np.isnan(values).any(axis=-1), lost)
    values[:] = 0.0
    assert float(abs(ds["alpha_rho"]).max()) > 0
    assert not diverged(ds, "maml", checkpoint=0).any()
