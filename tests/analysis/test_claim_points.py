"""What claims read: learners by their role; missing and lost numbers are refused, zero gradients counted apart."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from simulated_studies import simulated_study

from analysis.claims import CLAIMS, NotMeasuredError, judge, load_plan
from analysis.claims.points import diverged, points
from analysis.schema import STATUS_MEANINGS, ZERO_GRADIENT

PLAN = load_plan()
LAST = {"learner": 1, "seed": 2, "checkpoint": -1, "task": 3}  # one unit of maml


def study(**options: Any) -> xr.Dataset:
    """A small simulated study of "untrained" and "maml"; the options are those of ``simulated_study``."""
    common: dict[str, Any] = {"learners": ("untrained", "maml"), "checkpoints": (0, 100), "evaluation_tasks": 2}
    return simulated_study(**(common | options))


def test_learners_are_known_by_what_they_are() -> None:
    """A control of another name, two SHOT variants of one learner, and names that would mislead."""
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
    assert [claim(ds, PLAN) for claim in CLAIMS.values()] == [[], [], []]
    assert CLAIMS["shot"](study(), PLAN) == []


def test_missing_measurements_are_an_error_that_says_what_to_do() -> None:
    ds = study()
    ds["status"][LAST] = STATUS_MEANINGS.index("not_measured")
    with pytest.raises(
        NotMeasuredError, match=r"measure the study first: maml at checkpoint 100 lacks 1 of 48 units \(seed 2\)"
    ):
        judge(ds, PLAN)
    with pytest.raises(NotMeasuredError, match="needs checkpoint 0 and a later one"):
        judge(study(checkpoints=(0,)), PLAN)


@pytest.mark.parametrize("variable", ["alpha_rho", "rho_normalised", "support_loss", "alignment"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_lost_number_is_no_divergence(variable: str, value: float) -> None:
    ds = study()
    ds[variable][LAST | ({"inner_step": 2} if variable != "alignment" else {})] = value
    words = f"maml at checkpoint 100 is marked measured but holds no number for {variable} .seed 2, task 3; 1 of"
    with pytest.raises(NotMeasuredError, match=words + r".*remove the run's measurements\.zarr and measure again"):
        judge(ds, PLAN)
    ds["grad_norm"][LAST] = np.nan  # lost as well: excuses nothing
    with pytest.raises(NotMeasuredError, match="holds no number"):
        judge(ds, PLAN)
    ds["status"][LAST] = STATUS_MEANINGS.index("diverged")
    assert {v.num_diverged for v in judge(ds, PLAN)} == {1}


def test_no_gradient_no_ratio_but_still_a_loss() -> None:
    """A point whose gradient is zero is left out of its step group, counted apart from divergence, and named."""
    ds = study(diverged=[("maml", 0, 1)])
    at = LAST | {"inner_step": -1}
    for name in ("alpha_rho", "rho_normalised", "grad_norm"):
        ds[name][at] = 0.0 if name == "grad_norm" else np.nan
    verdicts = judge(ds, PLAN)
    for verdict in verdicts:
        later = verdict.steps == "later steps"
        assert (verdict.num_diverged, verdict.num_undefined) == (1, int(later))
        assert (
            "1 of 48 units (seed, task) was left out of both sides because the gradient is zero" in verdict.sentence
        ) == later
    ds["support_loss"][at] = np.nan
    with pytest.raises(NotMeasuredError, match="support_loss"):
        judge(ds, PLAN)


def test_no_gradient_anywhere_leaves_nothing_to_compare() -> None:
    ds = study()
    end = {"learner": 1, "checkpoint": -1}
    for name in ("alpha_rho", "rho_normalised", "alignment", "grad_norm"):
        ds[name][end] = ZERO_GRADIENT / 10 if name == "grad_norm" else np.nan
    for verdict in judge(ds, PLAN):
        assert (verdict.outcome, verdict.num_undefined, verdict.num_seeds) == ("inconclusive", 48, 0)
        assert "nothing is left to compare; 48 of 48 units (seed, task) were left out" in verdict.sentence
        assert "because the gradient is zero" in verdict.sentence
    ds["grad_norm"][end | {"inner_step": 0}] = 1.0  # one inner gradient is enough for A to exist
    with pytest.raises(NotMeasuredError, match="alpha_rho"):
        judge(ds, PLAN)
    with pytest.raises(NotMeasuredError, match="alignment"):
        CLAIMS["alignment"](ds, PLAN)


def test_divergence_counts_on_the_side_compared_with_too() -> None:
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


def test_points_are_a_copy_with_diverged_units_nan() -> None:
    ds = study(diverged=[("maml", 2, 3)])
    values = points(ds, "alpha_rho", "maml", checkpoint=100)
    lost = diverged(ds, "maml", checkpoint=100)
    assert np.argwhere(lost).tolist() == [[2, 3]]
    np.testing.assert_array_equal(np.isnan(values).all(axis=-1), lost)  # step 0 too, which still has a number
    np.testing.assert_array_equal(np.isnan(values).any(axis=-1), lost)
    values[:] = 0.0
    assert float(abs(ds["alpha_rho"]).max()) > 0
    assert not diverged(ds, "maml", checkpoint=0).any()
