"""Tests of ``Study``, the resolved form of a configuration, and of running and reading a study from Python."""

import json
import pickle
import shutil
from importlib.metadata import version

import numpy as np
import pytest
import xarray as xr
import yaml
from simulated_studies import simulated_study

import analysis
from analysis.cli import run
from analysis.drawing.figures import figures_of
from analysis.folder import content_digest, open_folder, open_study
from analysis.progress import reporter_for
from analysis.schema import (
    LEARNER_COORDINATES,
    begun_elsewhere,
    describe_learners,
    learner_code,
    learner_names,
    shot_pairs,
    trained_learners,
    with_codes,
)
from analysis.study import build
from analysis.study_file import load_study, study_of
from hessian_tools.runs.files import json_digest, read_json

SMALL = """
name: small
data: {name: quickdraw, ways: 3, shots: 1, queries: 1, test_queries: 1, image_size: 8}
network: {name: mlp, hidden: [4]}
inner: {steps: 1, step_size: 0.1}
learners: {untrained: {algorithm: untrained}, mine: {}}
seeds: [0]
train: {checkpoints: [0, 1], meta_batch: 1, validation_tasks: 1}
measure:
  {tasks: 1, full_tasks: 0, evaluation_tasks: 1, light: {eigenvalues: 1, tolerance: 0.1, probes: 2, max_matvecs: 8}}
"""


@pytest.mark.slow
def test_a_study_runs_from_python_and_returns_its_results(working_folder):
    calls = []
    result = analysis.run_study(
        yaml.safe_load(SMALL), out="out", workers=0, progress=lambda done, total: calls.append((done, total))
    )
    assert result.path.name == "out"
    assert result.report.is_file()
    xr.testing.assert_identical(result.dataset, analysis.open_study("out"))
    # As text, because with a single seed the intervals are NaN, which does not equal itself.
    assert list(map(repr, result.verdicts)) == list(map(repr, analysis.open_verdicts("out")))
    assert result.dataset["rho"].sel(learner="mine", checkpoint=1).notnull().all()
    with pytest.raises(AttributeError):
        result.verdicts = ()
    assert repr(result).startswith("StudyResult('out', 2 learner, 1 seed; verdicts: ")
    assert (1, 1) in calls  # the one meta-iteration of the one run that is trained
    drawn = len(figures_of(result.dataset))
    assert calls[-1] == (drawn, drawn)  # the figures


@pytest.mark.heavy
def test_a_study_run_from_python_prints_nothing_by_default(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    result = analysis.run_study("study")
    assert capsys.readouterr().out == ""
    assert content_digest(result.dataset) == content_digest(open_study(micro_study))


def test_a_mistake_from_python_is_named_before_anything_is_written(working_folder):
    settings = yaml.safe_load(SMALL)
    for mistake, said in (
        (
            {"learners": {"mine": {"algoritm": "anil"}}},
            "unknown key 'learners.mine.algoritm'; did you mean 'algorithm'?",
        ),
        ({"seeds": [0, 0]}, "hold one twice"),
        ({"data": {"ways": 500}}, "ways=500"),
    ):
        with pytest.raises(analysis.UserError) as error:
            analysis.run_study(settings | mistake, out="out")
        assert said in str(error.value)
    with pytest.raises(analysis.UserError, match="no plan of the claims none.yaml"):
        analysis.run_study(settings, claims="none.yaml")
    assert list(working_folder.iterdir()) == []


def test_a_pickled_study_arrives_equal_and_its_data_are_opened_once():
    study = build(load_study("micro"), "out")
    arrived = pickle.loads(pickle.dumps(study))
    assert arrived == study
    assert arrived.problem is study.problem
    assert build(load_study("micro")).problem is study.problem


def test_a_step_size_to_be_chosen_changes_only_the_learners_that_take_it():
    settings = yaml.safe_load(SMALL)
    settings["inner"]["step_size"] = {"candidates": [0.1, 0.2], "learner": "mine"}
    settings["learners"]["other"] = {"step_size": 0.7}
    study = build(study_of(settings))
    assert study.step_size is None
    with pytest.raises(analysis.UserError, match="is not chosen yet"):
        study.chosen_step_size  # noqa: B018
    chosen = study.with_step_size(0.2)
    alphas = {name: one.alpha for name, one in chosen.learners.items()}
    assert alphas == {"untrained": 0.2, "mine": 0.2, "other": 0.7}
    assert chosen.alike_before_training == study.alike_before_training == [("untrained", "mine"), ("other",)]


def test_the_digests_of_runs_are_those_of_version_0_1(micro_study):
    """The expected digests were written by version 0.1, so a folder of that version is completed and not refused."""
    digests = {
        "untrained": "a1f1db8db28b5523a9cbbb0753765e4cf13f811f937fb09430d99e6b65115ba8",
        "maml": "c47cc99155a7b51ae2d8d580c69c7710c95a00839a833ac3fbc1a103e8c3e90d",
        "maml-shot": "968e6af2440cdd26acb3c96ed1afd75831f332ab370b324d69e367502a11f680",
    }
    for name, expected in digests.items():
        manifest = json.loads((open_folder(micro_study).run(name, 0) / "manifest.json").read_text())
        assert json_digest(manifest["config"]) == expected, name


@pytest.mark.heavy
def test_a_folder_begun_by_version_0_1_is_completed(working_folder, micro_study):
    """Version 0.1 kept the settings of a training run in training.json, beside the manifest."""
    shutil.copytree(micro_study, working_folder / "study")
    for folder in (working_folder / "study" / "runs").iterdir():
        manifest = read_json(folder / "manifest.json")
        (folder / "training.json").write_text(json.dumps(manifest.pop("training")))
        (folder / "manifest.json").write_text(
            json.dumps({"config_digest": json_digest(manifest["config"]), **manifest})
        )
    lost = working_folder / "study" / "runs" / "maml-seed1"
    shutil.rmtree(lost / "measurements.zarr")
    shutil.rmtree(lost / "checkpoints")
    for command in ("train", "measure"):
        assert run([command, "study", "--workers", "0"]) == 0
    xr.testing.assert_identical(open_study("study"), open_study(micro_study))


def study_of_learners(prefix: str, **options: object) -> xr.Dataset:
    """A simulated study of "untrained", a learner named ``prefix``, and the same with SHOT."""
    learners = ("untrained", prefix, f"{prefix}-shot")
    return simulated_study(learners=learners, seeds=(0, 1), tasks=2, effects={}, **options)


def test_learners_keep_their_names_when_studies_are_joined():
    """As long as learners were integer codes, those of the second study were read as learners of the first."""
    first, second = study_of_learners("maml", seed=1), study_of_learners("first-order-maml", seed=2)
    joined = xr.concat([first, second.sel(learner=["first-order-maml", "first-order-maml-shot"])], "learner")
    assert learner_names(joined) == ["untrained", "maml", "maml-shot", "first-order-maml", "first-order-maml-shot"]
    for study, names in ((first, learner_names(first)), (second, learner_names(second)[1:])):
        for name in names:
            np.testing.assert_array_equal(joined["rho"].sel(learner=name), study["rho"].sel(learner=name))
    assert trained_learners(joined) == learner_names(joined)[1:]
    assert shot_pairs(joined) == [("maml-shot", "maml"), ("first-order-maml-shot", "first-order-maml")]
    assert begun_elsewhere(joined) == []


def test_learners_keep_their_names_when_seeds_of_different_studies_are_joined():
    first, second = study_of_learners("maml", seed=1), study_of_learners("anil", seed=2).assign_coords(seed=[2, 3])
    parts = [study.drop_vars(LEARNER_COORDINATES) for study in (first, second)]
    joined = xr.concat(parts, "seed", join="outer")
    assert sorted(learner_names(joined)) == ["anil", "anil-shot", "maml", "maml-shot", "untrained"]
    for study in (first, second):
        for name in learner_names(study):
            at = {"learner": name, "seed": study["seed"].values}
            np.testing.assert_array_equal(joined["rho"].sel(at), study["rho"].sel(learner=name))
    assert joined["rho"].sel(learner="anil", seed=[0, 1]).isnull().all()


def test_a_longer_name_can_be_written_into_a_coordinate_without_being_cut_off():
    ds = study_of_learners("maml")
    ds["without_shot"][{"learner": 2}] = "a-learner-with-a-longer-name"
    assert ds["without_shot"].values[2] == "a-learner-with-a-longer-name"


def test_a_relation_of_learners_that_does_not_exist_is_refused_by_name():
    ds = simulated_study()
    with pytest.raises(TypeError, match=r"^famly: no such argument; the names are trained, without_shot, .*, family, "):
        describe_learners(ds, trained={}, without_shot={}, famly={})


def test_digests_are_taken_of_integer_codes_as_in_earlier_versions():
    coded = with_codes(study_of_learners("maml"))
    assert coded["learner"].values.tolist() == [0, 1, 2]
    assert coded["without_shot"].values.tolist() == [-1, -1, 1]
    assert coded["untrained_start"].values.tolist() == [0, 1, 2]
    assert coded["alpha_steps"].values.tolist() == [1, 1, 1]
    assert "no_alpha" not in coded.variables


def test_the_code_of_a_learner_is_deprecated_and_still_selects_it():
    ds = study_of_learners("maml")
    with pytest.warns(DeprecationWarning, match=r"removed in 0\.3; write ds.sel\(learner=name\)"):
        code = learner_code(ds, "maml")
    xr.testing.assert_identical(ds.sel(learner=code), ds.sel(learner="maml"))


def test_the_package_lists_what_users_need_and_no_more():
    assert dir(analysis) == sorted(analysis.__all__)
    assert all(getattr(analysis, name) is not None for name in analysis.__all__)
    with pytest.raises(AttributeError, match="module 'analysis' has no attribute 'open_studies'"):
        analysis.open_studies  # noqa: B018


def test_the_command_line_prints_the_version_of_the_package(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("hessian-tools")


def test_progress_is_silent_printed_or_passed_to_a_function(capsys):
    calls = []
    for option in (None, lambda done, total: calls.append((done, total))):
        with reporter_for(option).stage("train", 3, "steps") as advance:
            advance(1, "a note")
            advance(2)
        reporter_for(option).say("a line")
    assert calls == [(1, 3), (3, 3)]
    assert capsys.readouterr().out == ""
    with reporter_for(True).stage("train", 3, "steps") as advance:
        advance(3)
    assert capsys.readouterr().out.startswith("train: 3 steps")
