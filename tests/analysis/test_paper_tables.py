"""Tests of the tables that put a study's accuracies beside those of the method's paper."""

import re

import numpy as np
import pytest
import xarray as xr
from simulated_studies import simulated_study

from analysis.config import StudyConfig
from analysis.evaluation import evaluation_scores
from analysis.report.page import DASH, Html
from analysis.report.paper_tables import paper_section
from analysis.statistics import mean_interval, seed_means
from analysis.study_file import study_of

SHOT = {"algorithm": "maml", "shot": {"weight": 0.1}}
LEARNERS = {
    "untrained": {"algorithm": "untrained"},
    "plain": {"algorithm": "maml"},
    "with-shot": SHOT,
    "with-l2": {"algorithm": "maml", "shot": {"weight": 0.1, "distance": "l2_parameters"}},
    "anti": {"algorithm": "maml", "shot": {"weight": -0.1}},
    "three": {"algorithm": "maml", "shot": {"weight": 0.1, "target_steps": 3, "reference_steps": 6}},
    "first": {"algorithm": "maml", "first_order": True},
}
WITHOUT_SHOT = dict.fromkeys(("with-shot", "with-l2", "anti", "three"), "plain")


def config(**data) -> StudyConfig:
    return study_of({"name": "test", "data": data, "learners": LEARNERS, "inner": {"steps": 3}})


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    names = tuple(LEARNERS)
    study = simulated_study(learners=names, without_shot=WITHOUT_SHOT, tasks=2, evaluation_tasks=6)
    study["evaluation_accuracy"] = study["evaluation_accuracy"] + xr.where(study["learner"] == "with-shot", 0.05, 0.0)
    return study


def rows(html: Html) -> dict[str, list[str]]:
    """The cells of each row of a table by the row's heading."""
    parts = re.findall(r"<tr[^>]*>(.*?)</tr>", html.text)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", part) for part in parts]
    return {row[0]: [re.sub("<[^>]*>", "", cell) for cell in row[1:]] for row in cells}


def test_learners_are_recognised_by_their_settings_and_not_by_their_names(ds):
    heading, budgets, learners, *_ = paper_section(ds, config())
    table = rows(learners)
    assert table["MAML, without SHOT"][:4] == ["47.88", "46.93", "47.78", "57.04"]
    assert table["FOMAML, without SHOT"][0] == "47.70"
    assert "Paper, mini, 1-shot (other data)" in table["Learner"]
    scores = 100 * evaluation_scores(ds).sel(learner="with-shot").isel(checkpoint=-1).values
    ours = mean_interval(seed_means(scores))
    assert table["MAML, SHOT as a penalty (SHOT_r)"][4] == f"{ours.mean:.1f} ± {(ours.high - ours.low) / 2:.1f}"
    assert table["MAML, SHOT as a penalty (SHOT_r)"][5].startswith("+5.0")
    assert table["MAML, without SHOT"][5] == DASH
    assert "30,000 meta-iterations of 4 tasks" in budgets.text
    assert "300 meta-iterations of 4 tasks" in budgets.text
    assert "paper" in heading.text


def test_five_shot_numbers_stand_beside_a_five_shot_study(ds):
    learners = rows(paper_section(ds, config(shots=5))[2])
    assert learners["MAML, without SHOT"][0] == "64.81"
    both = rows(paper_section(ds, config(shots=2))[2])
    assert both["MAML, without SHOT"][0] == "47.88 / 64.81"


def test_variants_of_shot_have_tables_of_their_own(ds):
    distances, weights, steps = map(rows, paper_section(ds, config())[3:])
    assert distances["KL divergence"][0] == "47.97"
    assert distances["L2 of parameters"][0] == "50.89"
    assert weights["0"][0] == "64.81"
    assert weights["0.01"][1] == DASH  # the study has no such learner
    assert weights["\u22120.1"][0] == DASH  # the paper has no negative weight
    assert steps["T = 3, R = 6"][0] == "48.15"
    assert steps["T = 1, R = 3"][0] == "47.97"


def test_a_study_between_data_sets_stands_below_table_3(ds):
    _, _, transfer = paper_section(ds, config(test_path="somewhere/omniglot"))
    table = rows(transfer)
    assert table["mini → CUB"][1:] == ["56.32", "58.40", "+2.08"]
    assert table["quickdraw → omniglot"][0] == "here, 1-shot"
    assert "Table 3" in transfer.text


def test_regression_and_studies_without_the_papers_learners_have_no_tables(ds):
    assert paper_section(ds.assign(evaluation_accuracy=ds["evaluation_accuracy"] * np.nan), config()) == []
    assert paper_section(ds.sel(learner=["untrained"]), config()) == []
