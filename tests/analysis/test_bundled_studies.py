"""Tests of the bundled studies of learning: each of them can be built on its data and plans all of its runs.

A small version of the regression study is also run from training to its report.
"""

from functools import partial
from pathlib import Path

import layouts_on_disk
import pytest
import yaml
from refused_commands import refused

import analysis
from analysis.claims import load_plan
from analysis.cli import run
from analysis.config import StudyConfig
from analysis.measure import units
from analysis.study import build, check
from analysis.study_file import BUNDLED, load_study, overridden, with_data
from hessian_tools.data import summary

NEEDS_DATA = ("omniglot", "cifar-fs", "transfer")
# For each study, the learners that it also trains with SHOT, under the name "<learner>-shot".
SHOT_PAIRS = {
    "quickdraw": {"maml", "fomaml", "anil", "boil", "meta-sgd", "reptile"},
    "quickdraw-64": {"maml"},
    "quickdraw-variants": {"maml", "leo"},
    "regression": {"maml", "fomaml"},
    "omniglot": {"maml", "fomaml"},
    "cifar-fs": {"maml", "fomaml"},
    "transfer": {"maml"},
}
# The further variants of SHOT of a study, such as other weights, each with the learner without SHOT.
VARIANTS = {
    "quickdraw": dict.fromkeys(["maml-shot-1", "maml-shot-minus-0.1", "maml-shot-minus-0.3"], "maml"),
    "quickdraw-variants": {
        f"maml-shot-{variant}": "maml"
        for variant in ("0.01", "0.001", "0.0001", "0.00001", "cross-entropy", "l2", "3-6", "p")
    },
}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The path of generated images for each study that reads data from a disk.

    They have the layouts of the real data sets, and just as many classes and images as 5-way tasks need.
    """
    splits = {part: tuple(f"{part}{c}" for c in range(5)) for part in ("train", "val", "test")}
    monkeypatch.setattr(layouts_on_disk, "EXAMPLES", 16)  # for each class, one support and fifteen query examples
    monkeypatch.setattr(layouts_on_disk, "BERTINETTO", splits)
    monkeypatch.setattr(layouts_on_disk, "png", partial(layouts_on_disk.png, side=32))
    # The default colours would leave the range 0 to 255 with so many classes and examples.
    monkeypatch.setattr(layouts_on_disk, "tint", lambda c, e: (10 * c, 255 - 10 * c, 10 * e))
    # Hebrew is validated on, and with a character in four rotations alone it would have four classes.
    background = layouts_on_disk.CHARACTERS["images_background"] | {"Hebrew": (1, 2)}
    monkeypatch.setitem(layouts_on_disk.CHARACTERS, "images_background", background)
    photographs = layouts_on_disk.bertinetto(tmp_path / "cifar-fs")
    characters = layouts_on_disk.omniglot(tmp_path / "omniglot")
    return {"omniglot": str(characters), "cifar-fs": str(photographs), "transfer": str(photographs)}


@pytest.fixture(params=list(SHOT_PAIRS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def config(name: str, stand_in: dict[str, str]) -> StudyConfig:
    return with_data(load_study(name), stand_in.get(name))


def test_every_study_beside_the_code_is_bundled_under_its_name():
    files = Path(analysis.__file__).parent.joinpath("studies").glob("*.yaml")
    assert sorted(BUNDLED) == sorted(file.stem for file in files)
    assert all(load_study(each).name == each for each in BUNDLED)
    assert {*SHOT_PAIRS, "demo", "micro"} == set(BUNDLED)


@pytest.mark.slow
def test_a_study_resolves_on_its_data(name: str, config: StudyConfig):
    study = build(config)
    check(study)
    load_plan(None).check_steps(config.inner.steps)
    assert study.without_shot == {f"{each}-shot": each for each in SHOT_PAIRS[name]} | VARIANTS.get(name, {})


def test_a_study_plans_to_measure_every_run_at_every_checkpoint(config: StudyConfig, tmp_path: Path):
    study = build(overridden(config, {"inner": {"steps": config.inner.steps, "step_size": 0.1}}), tmp_path)
    planned = units(study)
    for learner, seed in study.runs:
        mine = [unit for unit in planned if learner in unit.learners and unit.seed == seed]
        assert {unit.checkpoint for unit in mine} == set(study.learners[learner].checkpoints)
        evaluations = [unit for unit in mine if unit.tasks is None]  # these measure accuracy, the others curvature
        assert len(evaluations) == len(study.learners[learner].checkpoints)


def test_the_omniglot_study_trains_and_is_tested_on_other_characters_in_all_their_rotations(stand_in: dict[str, str]):
    tasks = build(with_data(load_study("omniglot"), stand_in["omniglot"])).problem.tasks
    names = tasks.dataset.class_names
    for part, characters in {
        "train": ["Futurama/character01", "Futurama/character02", "Gurmukhi/character41"],
        "val": ["Hebrew/character01", "Hebrew/character02"],
        "test": ["Gurmukhi/character42", "ULOG/character01"],
    }.items():
        turned = {f"{name}{turn}" for name in characters for turn in ("", "/rot090", "/rot180", "/rot270")}
        assert {names[c] for c in tasks.dataset.classes(part)} == turned


def test_the_transfer_study_takes_its_held_out_tasks_from_quickdraw(stand_in: dict[str, str]):
    assert summary(build(with_data(load_study("transfer"), stand_in["transfer"])).problem.tasks).endswith(
        "on quickdraw"
    )


@pytest.mark.parametrize("name", NEEDS_DATA)
def test_a_study_whose_data_are_missing_names_the_path_to_replace(
    name: str, working_folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert "there is no file or folder PATH/TO/" in refused(capsys, ["study", name])
    assert not list(working_folder.iterdir())


@pytest.mark.heavy
def test_a_small_version_of_the_regression_study_runs_to_its_report(working_folder: Path):
    small = {
        "seeds": [0, 1],
        "train": {"checkpoints": [0, 2, 4], "meta_batch": 2, "validation_tasks": 2},
        "measure": {"tasks": 2, "full_tasks": 1, "block": 1, "evaluation_tasks": 4}
        | {"light": {"eigenvalues": 1, "probes": 2}, "full": {"eigenvalues": 2, "probes": 2}},
    }
    config = overridden(load_study("regression"), small)
    Path("small.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert run(["study", "small.yaml", "--out", "out", "--workers", "0"]) == 0
    report = Path("out/report.html").read_text(encoding="utf-8")
    assert "Loss on held-out tasks" in report
    assert "SHOT against the same learner without it" in report
    assert "after 4 meta-iterations" in report
