"""A study goes on from another folder: what it takes over from there and what it refuses, without any training."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_study import SMALL_STUDY

from analysis import kept, networks, store
from analysis.config import StudyConfig
from analysis.errors import UserError
from analysis.folder import CLAIMS, STEP_SIZE, STUDY, begin, going_on_from, open_folder
from analysis.study import Study, build
from analysis.study_file import study_of
from analysis.times import cpu_seconds
from analysis.training import record_run_ownership, refuse_other_training, trained_in
from hessian_tools.runs.files import read_json, write_json
from hessian_tools.runs.manifest import entries

SEARCH = {"candidates": [0.05, 0.3], "seed": 1000}


def config(**changes: Any) -> StudyConfig:
    """The settings of the small study with the seeds 0 and 1; ``changes`` replace settings within a section."""
    settings = yaml.safe_load(SMALL_STUDY) | {"seeds": [0, 1]}
    for name, value in changes.items():
        settings[name] = settings[name] | value if isinstance(value, dict) else value
    return study_of(settings)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a study that has trained and measured the seed 1 alone, as far as files show."""
    study = build(config(seeds=[1]), tmp_path / "trained")
    begin(study)
    record_run_ownership(study)
    run = study.run("maml", 1)
    of_that_study = {"training": {"seed": 1}, "claims_digest": "that plan", "held_out_digest": "those tasks"}
    write_json(run / "manifest.json", entries(run) | of_that_study)
    for file in ("checkpoints/0000002.safetensors", f"{store.NAME}/zarr.json", ".lock"):
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).write_text(file)
    (run / "times.jsonl").write_text('{"part": "train", "cpu_seconds": 1.5}\n{"part": "measure", "cpu_seconds": 8}\n')
    (run / "times-node.jsonl").write_text('{"part": "train", "cpu_seconds": 2}\n')
    return study.path


def going_on(trained: Path, **changes: Any) -> Study:
    """A study that takes the networks of the folder over, and has begun."""
    study = going_on_from(build(config(**changes), trained.parent / "new"), trained)
    refuse_other_training(study)
    begin(study)
    return study


def test_a_network_is_taken_over_with_its_time_and_without_its_measurements(trained):
    study = going_on(trained, measure={"tasks": 3})
    assert [trained_in(study, "maml", seed).path for seed in (0, 1)] == [study.path, trained]
    record_run_ownership(study)
    run = study.run("maml", 1)
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names == {"checkpoints/0000002.safetensors", "manifest.json", "times.jsonl"}
    assert cpu_seconds(run) == {"train": 3.5}
    recorded = entries(run)
    assert recorded["config"]["measure"]["tasks"] == 3
    assert recorded["training"] == {"seed": 1}
    for name in ("claims_digest", "held_out_digest"):
        assert recorded[name] == entries(study.run("maml", 0))[name]
    assert [path.name for path in study.run("maml", 0).iterdir()] == ["manifest.json"]
    assert trained_in(study, "maml", 1) is study  # now the run is in the study's own folder


def test_a_study_goes_on_without_being_told_again_from_where(trained, monkeypatch):
    monkeypatch.chdir(trained.parent)
    begin(going_on_from(build(config(), "new"), Path(trained.name)))
    monkeypatch.chdir(trained)
    assert open_folder("../new").networks_from == trained
    shutil.move(trained, trained.with_name("moved"))
    assert open_folder(trained.parent / "new").networks_from is None


def test_a_copy_that_was_interrupted_is_made_again(trained, monkeypatch):
    study = going_on(trained)
    run = study.run("maml", 1)

    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space left"):
        patched.setattr(networks, "write_json", fail)
        record_run_ownership(study)
    assert not run.exists()
    (partial,) = run.parent.glob(".*")
    (partial / "left.json").touch()  # a file that was there then, and is not now
    record_run_ownership(study)
    assert entries(run)["training"] == {"seed": 1}
    assert cpu_seconds(run) == {"train": 3.5}
    assert not (run / "left.json").exists() and not partial.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"network": {"hidden": [4]}}, "network"),
        ({"train": {"meta_batch": 2}}, "train"),
        ({"learners": {"maml": {"first_order": True}}}, "learner"),
    ],
)
def test_networks_that_were_trained_in_another_way_are_refused(trained, changes, named):
    # The seed 0, which that folder lacks, comes first, and keeps none of the later runs from being compared.
    with pytest.raises(UserError, match=f"maml seed 1 was trained there with another {named};"):
        going_on(trained, **changes)
    assert not (trained.parent / "new").exists()


def test_changed_data_are_found_where_the_network_was_trained(trained):
    manifest = trained / "runs" / "maml-seed1" / "manifest.json"
    write_json(manifest, read_json(manifest) | {"data_digest": "0" * 64})
    with pytest.raises(UserError, match="have changed since"):
        record_run_ownership(going_on(trained))


@pytest.mark.parametrize("inner", [{"step_size": 0.2}, {"steps": 2}, {"step_size": SEARCH}])
def test_networks_of_another_inner_loop_are_refused(trained, inner):
    with pytest.raises(UserError, match="its networks were trained with the inner loop .*, yours is"):
        going_on(trained, inner=inner)
    assert not (trained.parent / "new").exists()


def test_held_out_tasks_differ_only_from_those_of_the_other_study(trained):
    with pytest.raises(UserError, match="have changed since"):  # a study of its own has measured on "those tasks"
        record_run_ownership(build(config(seeds=[1]), trained))


def test_the_step_size_that_a_search_has_chosen_is_taken_over(trained):
    searching = {"inner": {"step_size": SEARCH}}
    (trained / STUDY).write_text(yaml.safe_dump(config(seeds=[1], **searching).model_dump(mode="json")))
    new = trained.parent / "new"
    begin(going_on_from(build(config(**searching), new), trained))  # that search has not ended
    assert not (new / STEP_SIZE).exists()
    write_json(trained / STEP_SIZE, {"step_size": 0.3, "candidates": []})
    study = going_on_from(build(config(**searching), new), trained)
    assert study.step_size == study.learners["maml"].learner.step_size == 0.3
    begin(study)
    assert read_json(new / STEP_SIZE)["step_size"] == 0.3


def keep(folder: Path, seed: int, *learners: str) -> None:
    """The files of a kept seed, as far as it is known from them what is kept."""
    for file in kept.files(folder, seed):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"learners": learners}))


def test_kept_results_are_taken_over_beside_those_of_the_own_folder(tmp_path):
    searching = {"inner": {"step_size": SEARCH}, "learners": {"maml": {}, "anil": {"algorithm": "anil"}}}
    begin(build(config(**searching), tmp_path / "kept"))
    keep(tmp_path / "kept", 0, "maml", "anil")
    write_json(tmp_path / "kept" / STEP_SIZE, {"step_size": 0.3, "candidates": []})
    run = tmp_path / "kept" / "runs" / "maml-seed1"  # a study that went on from kept results has runs too
    run.mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    new = tmp_path / "new"
    keep(new, 0, "maml")
    keep(new, 1, "maml")
    study = going_on_from(build(config(**searching), new), tmp_path / "kept")
    assert study.goes_on_from == tmp_path / "kept" and study.networks_from is None
    assert study.kept == {0: ("maml", "anil"), 1: ("maml",)}
    assert study.step_size == study.learners["maml"].learner.step_size == 0.3
    begin(study)
    assert all(file.exists() for file in (*kept.files(new, 0), new / STEP_SIZE))
    assert kept.kept_learners(new) == study.kept
    with pytest.raises(UserError, match="holds results of other settings: its network is"):
        going_on_from(build(config(network={"hidden": [4]}, **searching), new), tmp_path / "kept")
    with pytest.raises(UserError, match="it holds neither kept results"):
        going_on_from(study, tmp_path)


def test_a_study_that_was_begun_with_another_plan_is_left_as_it_is(trained):
    study = build(config(seeds=[1, 2]), trained)
    before = {name: (trained / name).read_bytes() for name in (STUDY, CLAIMS)}
    plan = (trained / CLAIMS).read_text().replace("confidence: 0.95", "confidence: 0.9")
    with pytest.raises(UserError, match="was begun with another plan"):
        begin(study, claims=plan)
    assert {name: (trained / name).read_bytes() for name in (STUDY, CLAIMS)} == before
