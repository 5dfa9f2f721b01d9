"""Tests of the report's tables on learning, which are made of simulated studies with known accuracies."""

import re

import numpy as np
import pytest
import xarray as xr
from simulated_studies import simulated_study

from analysis.report.learning import (
    accuracy_levels,
    count_sentence,
    crossing,
    learning_section,
    meta_iterations,
    shot_differences,
    shot_table,
    speed_table,
)
from analysis.report.page import DASH, Html, interval, number
from analysis.statistics import mean_interval

LEARNERS = ("untrained", "maml", "maml-shot")
STEPS = (0, 30, 100, 300)


def cells(html: Html | None) -> list[str]:
    assert html is not None
    return [text for text in re.split(r"<[^>]*>", html.text) if text.strip()]


@pytest.fixture
def ds() -> xr.Dataset:
    """Accuracy rises linearly: for MAML from .2 to .5 in seed 0 and to .35 in seed 1; with SHOT it ends .1 higher.

    The four tasks of a seed differ from these values by -.02, .02, -.01 and .01, so that their mean is exact.
    """
    study = simulated_study(learners=LEARNERS, seeds=(0, 1), tasks=2, checkpoints=STEPS, evaluation_tasks=4)
    progress = np.array(STEPS) / STEPS[-1]
    gain = np.array([[0.0, 0.0], [0.3, 0.15], [0.4, 0.25]])  # [learner, seed]
    scatter = np.array([-0.02, 0.02, -0.01, 0.01])
    values = 0.2 + gain[..., None, None] * progress[:, None] + scatter
    accuracy = xr.DataArray(values, dims=("learner", "seed", "checkpoint", "evaluation_task"))
    reached = study["evaluation_accuracy"].notnull()  # the untrained control has its first checkpoint only
    return study.assign(evaluation_accuracy=accuracy.transpose(*reached.dims).where(reached.values))


def test_a_level_is_crossed_between_checkpoints():
    steps, values = (0, 10, 20, 30), (0.2, 0.4, 0.3, 0.5)
    assert crossing(steps, values, 0.3) == pytest.approx(5.0)
    assert crossing(steps, values, 0.45) == pytest.approx(27.5)
    assert crossing(steps, values, 0.1) == 0.0
    assert crossing(steps, values, 0.51) is None
    assert crossing(steps, (0.2, float("nan"), 0.4, 0.4), 0.3) == pytest.approx(10.0)
    assert crossing((), (), 0.3) is None


def test_levels_lie_between_the_untrained_network_and_the_best_mean(ds):
    best = 100 * (0.2 + (0.4 + 0.25) / 2)  # with SHOT, mean over the seeds
    assert accuracy_levels(ds) == pytest.approx([20 + share * (best - 20) for share in (0.25, 0.5, 0.75)], abs=0.05)
    assert accuracy_levels(ds.isel(checkpoint=[1, 2])) == []
    assert accuracy_levels(ds.isel(learner=[0])) == []
    falling = ds.assign(evaluation_accuracy=0.5 - ds["evaluation_accuracy"])
    assert accuracy_levels(falling) == []
    assert speed_table(falling) is None


def test_meta_iterations_to_an_accuracy_are_given_for_each_seed(ds):
    assert meta_iterations(ds, "maml", 35.0) == [pytest.approx(150.0), pytest.approx(300.0)]
    assert meta_iterations(ds, "maml", 40.0) == [pytest.approx(200.0), None]
    assert meta_iterations(ds, "maml-shot", 40.0) == [pytest.approx(150.0), pytest.approx(240.0)]
    texts = cells(speed_table(ds))
    level = accuracy_levels(ds)[2]
    assert f"{number(level)} %" in texts
    assert f"{300 * (level - 20) / 30:.0f}, {DASH}" in texts
    half = mean_interval(np.array([-2.0, 2.0, -1.0, 1.0])).high
    assert f"known to about ± {number(half, digits=2)} %" in texts[0]
    assert "each checkpoint has one task" in cells(speed_table(ds.isel(evaluation_task=[0])))[0]


def test_a_level_of_the_loss_is_reached_from_above(ds):
    loss = (1 - ds["evaluation_accuracy"]).where(ds["evaluation_accuracy"].notnull())
    regression = ds.assign(evaluation_accuracy=ds["evaluation_accuracy"] * np.nan, evaluation_loss=loss)
    assert meta_iterations(regression, "maml", 0.65) == [pytest.approx(150.0), pytest.approx(300.0)]
    headings = [html.text for html in learning_section(regression)]
    assert any("Meta-iterations to a given loss" in text for text in headings)
    assert "lower is better" in cells(shot_table(regression))[0]


def test_differences_of_shot_are_paired_task_by_task(ds):
    noise = np.array([0.01, 0.03, 0.02, 0.06])
    shifted = ds["evaluation_accuracy"].copy()
    shifted[2, 0, -1] = shifted[1, 0, -1] + noise
    ds = ds.assign(evaluation_accuracy=shifted)
    assert shot_differences(ds, "maml-shot", "maml")[0] == pytest.approx(100 * noise)
    one = mean_interval(100 * noise)
    texts = cells(shot_table(ds))
    assert number(one.mean, signed=True) in texts
    assert interval(one.low, one.high) in texts
    over = mean_interval(np.array([100 * noise.mean(), 10.0]))
    assert [number(over.mean, signed=True), interval(over.low, over.high)] == texts[-2:]


def test_a_diverged_run_is_compared_with_nothing(ds):
    loss = ds["evaluation_loss"].copy()
    loss[1, 0, -1] = np.inf
    lost = ds.assign(evaluation_loss=loss)
    assert np.isnan(shot_differences(lost, "maml-shot", "maml")[0]).all()
    # The lost seed has no mean and no interval, and the one seed that is left gives no interval over seeds.
    assert cells(shot_table(lost)).count(DASH) == 3
    loss[1, :, -1] = np.inf
    assert shot_table(ds.assign(evaluation_loss=loss)) is None


def test_differences_are_counted_by_their_intervals():
    def made(mean: float):
        return mean_interval(np.array([mean - 0.01, mean, mean + 0.01]))  # the half-width of its interval is 0.025

    text = count_sentence([[made(0.03), made(0.01)], [made(-0.03), made(0.03)]])
    assert "these 4 differences of single seeds, 2 lie wholly above 0 and 1 wholly below." in text
    assert "All seeds have the same sign in 1 of 2 pairs." in text
    assert "One seed alone is no evidence" in count_sentence([[made(0.03)], [made(0.01)]])


def test_there_is_no_section_where_nothing_was_trained():
    alone = simulated_study(tasks=2, seeds=(0,), evaluation_tasks=3, learners=("untrained",))
    assert learning_section(alone) == []
