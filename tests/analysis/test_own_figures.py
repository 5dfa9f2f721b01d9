"""Tests of the figures that ``hessian-tools figures`` draws with options of the user's own."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from refused_commands import refused

from analysis.cli import run

KEPT = Path(__file__).parents[2] / "docs" / "results" / "regression"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not KEPT.exists(), reason="an installed package has no kept results"),
]


@pytest.fixture
def study(working_folder: Path) -> Path:
    """A copy of kept results, which can be drawn without any training."""
    shutil.copytree(KEPT, working_folder / "study")
    return working_folder / "study"


def test_labels_learners_and_steps_reach_pictures_and_tables(study: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--learners", "maml", "--labels", "maml=Mine", "--format", "svg", "csv", "--out", "paper"]
    assert run(["figures", "study", "--only", "forest", "alpha_rho", *options[:-2], "--out", "all"]) == 0
    for name in ("forest", "alpha_rho"):
        assert "Mine" in Path("all", f"{name}.svg").read_text()
        assert set(pd.read_csv(Path("all", f"{name}.csv"))["learner"]) == {"maml"}
    assert run(["figures", "study", "--only", "alpha_rho", "--steps", "1", *options]) == 0
    assert set(pd.read_csv(Path("paper", "alpha_rho.csv"))["inner_step"]) == {1}


def test_labels_that_name_no_learner_are_refused(study: Path, capsys: pytest.CaptureFixture) -> None:
    for figure in ("alpha_rho", "forest"):
        message = refused(capsys, ["figures", "study", "--only", figure, "--labels", "mamll=Mine"])
        assert "labels='mamll' is not one of" in message and "did you mean 'maml'" in message
    message = refused(capsys, ["figures", "study", "--labels", "maml"])
    assert 'give a name and its label, such as maml="first-order MAML"' in message


def test_a_study_without_verdicts_has_no_forest_plot(study: Path, capsys: pytest.CaptureFixture) -> None:
    (study / "verdicts.json").unlink()
    assert "test study" in refused(capsys, ["figures", "study", "--only", "forest"])
