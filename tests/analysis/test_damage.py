"""Tests of studies with lost, outdated or damaged files, and of a full disk.

The problem is named in plain words, and the same command, given again, repairs what training and measuring can repair.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import layouts_on_disk as disk
import pytest
import xarray as xr
from damages import cut, flip_a_bit
from refused_commands import refused

from analysis.cli import run
from analysis.errors import UserError
from analysis.folder import open_folder, open_study
from analysis.measure import measure_unit, units
from analysis.study import open_problem
from analysis.study_file import study_text
from analysis.training import TrainUnit, train_unit
from hessian_tools.runs import files
from hessian_tools.runs.files import read_json, write_json


def replace_by(name: str) -> Callable[[Path], None]:
    """Return a function that overwrites a file with the file of the same name in the run ``name``."""

    def replace(file: Path) -> None:
        runs = next(folder for folder in file.parents if folder.name == "runs")
        _, *places = file.relative_to(runs).parts
        file.write_bytes(runs.joinpath(name, *places).read_bytes())

    return replace


def change_json(file: Path) -> None:
    """Change one number of a JSON file in a way that leaves it valid."""
    file.write_text(file.read_text().replace("1", "2", 1))


# For each file in the folder of MAML's seed 0: the function that damages it, and a command that reads the file.
DAMAGES = {
    "checkpoints/0000005.safetensors": (flip_a_bit, "measure"),
    "checkpoints/0000002.safetensors": (replace_by("maml-seed1"), "measure"),
    "checkpoints/state.safetensors": (replace_by("maml-shot-seed0"), "train"),
    "metrics.jsonl": (flip_a_bit, "train"),
    "manifest.json": (change_json, "test"),
    "measurements.zarr/rho/c/1/0/0": (flip_a_bit, "test"),
    "measurements.zarr/rho/c/2/0/0": (replace_by("maml-seed1"), "test"),
    "measurements.zarr/evaluation_accuracy/c/2/0": (replace_by("maml-shot-seed0"), "figures"),
    "measurements.units/0-0.json": (replace_by("maml-seed1"), "measure"),
    "measurements.units/1-0.json": (Path.unlink, "report"),
    "measurements.units/1-evaluation.json": (flip_a_bit, "test"),
    "measurements.json": (flip_a_bit, "test"),
    "measurements.zarr/trace/c/2/0/0": (Path.unlink, "figures"),
    "measurements.zarr/evaluation_accuracy/c/1/0": (Path.unlink, "report"),
    "measurements.zarr/checkpoint/c/0": (Path.unlink, "measure"),
    "measurements.zarr/step_size/c": (flip_a_bit, "test"),
    "measurements.zarr/rho/zarr.json": (Path.unlink, "test"),
    "measurements.zarr/zarr.json": (change_json, "report"),
}


@pytest.fixture(scope="module")
def copied_study(tmp_path_factory, micro_study) -> Path:
    return Path(shutil.copytree(micro_study, tmp_path_factory.mktemp("damaged") / "study"))


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_a_changed_or_lost_file_is_named_and_never_read_as_numbers(capsys, copied_study, name):
    damage, command = DAMAGES[name]
    file = copied_study / "runs" / "maml-seed0" / name
    undamaged = file.read_bytes()
    damage(file)
    assert f"maml-seed0/{name} " in refused(capsys, [command, str(copied_study)])
    assert run(["verify", str(copied_study)]) == 1
    assert f"maml-seed0/{name} " in capsys.readouterr().out
    file.write_bytes(undamaged)


@pytest.mark.parametrize("entry", ["data_digest", "held_out_digest"])
def test_a_worker_refuses_data_other_than_those_of_its_run(working_folder, micro_study, entry):
    """A worker process opens the data by itself, possibly after they were overwritten."""
    shutil.copytree(micro_study, working_folder / "study")
    study = open_folder("study")
    unit = next(unit for unit in units(study) if unit.learners == ("maml",) and unit.tasks is not None)
    manifest = unit.run / "manifest.json"
    write_json(manifest, read_json(manifest) | {entry: "0" * 64})
    for flag in (unit.run / "measurements.zarr" / "done" / "c").rglob("*"):
        if flag.is_file():
            flag.unlink()  # the unit is to be measured again
    with pytest.raises(UserError, match="their SHA-256 was 0000000000000000 and is now"):
        measure_unit(unit, lambda *_: None)
    with pytest.raises(UserError, match="have changed since"):
        train_unit(TrainUnit(study, "maml", (unit.seed,)), lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (
            "figures/accuracy.png",
            flip_a_bit,
            "accuracy.png was changed after it was drawn; run 'hessian-tools figures ",
        ),
        ("figures/accuracy.pdf", Path.unlink, "accuracy.pdf is missing; run 'hessian-tools figures "),
        ("claims.yaml", cut, "claims.yaml: "),
    ],
)
def test_no_report_is_made_with_a_damaged_figure_or_plan(capsys, copied_study, name, damage, said):
    file = copied_study / name
    undamaged = file.read_bytes()
    damage(file)
    assert said in refused(capsys, ["report", str(copied_study)])
    file.write_bytes(undamaged)


@pytest.mark.slow
def test_a_command_removes_what_a_killed_one_left_half_written(capsys, copied_study):
    (copied_study / ".verdicts.json.123.partial").write_text("half")
    assert run(["test", str(copied_study)]) == 0
    assert not list(copied_study.rglob("*.partial"))
    capsys.readouterr()


def test_verify_finds_nothing_in_an_undamaged_study(capsys, copied_study):
    assert run(["verify", str(copied_study)]) == 0
    assert capsys.readouterr().out == f"{copied_study}: nothing is missing, damaged, changed or out of date\n"


@pytest.mark.heavy
def test_damaged_files_of_training_and_measuring_are_made_again(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    # These four are damaged in other runs, because each makes all measurements of its run count as not done.
    alone = {
        "measurements.zarr/rho/zarr.json": "untrained-seed1",
        "measurements.json": "maml-seed1",
        "measurements.zarr/checkpoint/c/0": "maml-shot-seed0",
        "measurements.zarr/step_size/c": "maml-shot-seed1",
    }
    damaged = {
        f"{alone.get(name, 'maml-seed0')}/{name}": damage
        for name, (damage, _) in DAMAGES.items()
        if name not in ("manifest.json", "measurements.zarr/zarr.json")
    }
    for name, damage in damaged.items():
        damage(working_folder / "study" / "runs" / name)
    assert run(["study", "study", "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert not [name for name in damaged if f"{name} " not in said]
    xr.testing.assert_identical(open_study("study"), open_study(micro_study))
    assert run(["verify", "study"]) == 0


@pytest.mark.heavy
def test_data_that_changed_after_training_are_refused(working_folder, capsys):
    parts = {"train": ["a", "b", "c"], "val": ["d", "e", "f"], "test": ["g", "h", "i"]}
    disk.class_folders(working_folder / "own", [name for part in parts.values() for name in part])
    (working_folder / "split.json").write_text(json.dumps(parts))
    data = {"path": "own", "split": "split.json", "image_size": 16, "ways": 3, "shots": 1, "queries": 2}
    text = study_text("micro").replace("seeds: [0, 1]", "seeds: [0]")
    line = next(line for line in text.splitlines() if line.startswith("data:"))
    (working_folder / "mine.yaml").write_text(text.replace(line, f"data: {json.dumps(data | {'test_queries': 3})}"))
    assert run(["study", "mine.yaml", "--out", "study", "--workers", "0"]) == 0
    capsys.readouterr()
    image = next((working_folder / "own" / "g").iterdir())
    image.write_bytes(disk.png(8, 1))
    open_problem.cache_clear()
    for command in (["study", "mine.yaml", "--out"], ["train"], ["measure"], ["report"]):
        said = refused(capsys, [*command, "study"])
        assert "the data (own) have changed since" in said
        assert "their SHA-256 was" in said
    assert run(["verify", "study"]) == 1
    assert "the data (own) have changed" in capsys.readouterr().out


@pytest.mark.heavy
def test_a_report_is_not_made_of_old_verdicts_or_figures(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    assert run(["train", "study", "--seeds", "0", "1", "2", "--workers", "0"]) == 0
    capsys.readouterr()
    assert "untrained seed 2 is not yet measured" in refused(capsys, ["test", "study"])
    assert run(["measure", "study", "--workers", "0"]) == 0
    capsys.readouterr()
    assert "the verdicts of study rest on other measurements" in refused(capsys, ["report", "study"])
    assert run(["info", "study"]) == 0
    # The verdicts, the figures and the report.
    assert capsys.readouterr().out.count("(of older measurements)") == 3
    assert run(["test", "study"]) == 0
    capsys.readouterr()
    assert "the figures of study rest on other measurements" in refused(capsys, ["report", "study"])
    (working_folder / "study" / "figures" / "drawn.json").unlink()
    assert "the figures of study rest on other measurements" in refused(capsys, ["report", "study"])
    assert run(["figures", "study"]) == 0
    assert run(["report", "study"]) == 0


@pytest.mark.heavy
def test_a_study_with_an_unmeasured_run_gets_no_verdicts_figures_or_report(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    shutil.rmtree(working_folder / "study" / "runs" / "maml-seed1" / "measurements.zarr")
    for command in ("test", "figures", "report"):
        assert "maml seed 1 is not yet measured" in refused(capsys, [command, "study"])


@pytest.mark.heavy
def test_damaged_files_of_the_study_folder_are_named(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    run_folder = working_folder / "study" / "runs" / "maml-seed0"
    verdicts = working_folder / "study" / "verdicts.json"
    verdicts.write_text(verdicts.read_text()[:400])
    assert "verdicts.json is not JSON" in refused(capsys, ["info", "study"])
    chunk = next(path for path in (run_folder / "measurements.zarr" / "rho" / "c").rglob("*") if path.is_file())
    content = chunk.read_bytes()
    chunk.write_bytes(b"noise")
    assert f"{chunk.relative_to(working_folder)} was changed" in refused(capsys, ["test", "study"])
    chunk.write_bytes(content)
    manifest = run_folder / "manifest.json"
    undamaged = manifest.read_bytes()
    for damaged, said in ((b"\xff", "manifest.json is not JSON"), (b"{}", "manifest.json is damaged: it lacks config")):
        manifest.write_bytes(damaged)
        assert said in refused(capsys, ["test", "study"])
    manifest.write_bytes(undamaged)
    (working_folder / "study" / "claims.yaml").unlink()
    assert "claims.yaml is gone" in refused(capsys, ["test", "study"])
    (working_folder / "study" / "study.yaml").write_bytes(b"\xff\xfe")
    assert "study.yaml is damaged" in refused(capsys, ["info", "study"])


@pytest.mark.heavy
def test_a_study_stopped_before_its_plan_was_written_can_be_continued(working_folder, capsys, monkeypatch):
    from analysis import folder

    def stop(path, text):
        files.write_text(path, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "write_text", stop)
    assert run(["study", "micro", "--out", "study"]) == 1
    monkeypatch.undo()  # this also undoes the change of the working directory
    monkeypatch.chdir(working_folder)
    assert run(["train", "micro", "--out", "study"]) == 0


def test_a_damaged_checkpoint_is_made_again_as_the_message_advises(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    shutil.rmtree(working_folder / "study" / "runs" / "maml-seed0" / "measurements.zarr")
    checkpoint = working_folder / "study" / "runs" / "maml-seed0" / "checkpoints" / "0000002.safetensors"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:100])
    assert "move it elsewhere and run the same command again" in refused(capsys, ["train", "study"])
    checkpoint.rename(working_folder / checkpoint.name)
    assert run(["train", "study", "--workers", "0"]) == 0
    assert checkpoint.read_bytes() == content


def test_a_full_disk_is_reported_in_one_line_and_the_command_succeeds_afterwards(
    working_folder, capsys, monkeypatch, micro_study
):
    write_atomic = files.write_atomic

    def fail_on_checkpoints(path, write):
        if path.suffix == ".safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_atomic(path, write)

    monkeypatch.setattr("hessian_tools.runs.checkpoints.write_atomic", fail_on_checkpoints)
    assert run(["train", "micro", "--out", "study", "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hessian-tools: no space left on the device (")
    assert error.count("\n") == 1
    assert not list(working_folder.rglob("*.safetensors"))
    assert not list(working_folder.rglob("*.partial"))
    monkeypatch.setattr("hessian_tools.runs.checkpoints.write_atomic", write_atomic)
    assert run(["train", "micro", "--out", "study", "--workers", "0"]) == 0
