"""A study with lost, stale or damaged files, or on a full disk: it is said plainly, and the same command mends it."""

import errno
import os
import shutil

from refused_commands import refused

from analysis.cli import run
from hessian_tools.runs import files


def test_a_report_is_not_made_of_old_verdicts_or_figures(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    assert run(["train", "study", "--seeds", "0", "1", "2", "--workers", "0"]) == 0
    capsys.readouterr()
    assert "untrained seed 2 is not measured yet" in refused(capsys, ["test", "study"])
    assert run(["measure", "study", "--workers", "0"]) == 0
    capsys.readouterr()
    assert "the verdicts of study rest on other measurements" in refused(capsys, ["report", "study"])
    assert run(["info", "study"]) == 0
    assert capsys.readouterr().out.count("(of older measurements)") == 2
    assert run(["test", "study"]) == 0
    capsys.readouterr()
    assert "the figures of study rest on other measurements" in refused(capsys, ["report", "study"])
    (working_folder / "study" / "figures" / "drawn.json").unlink()
    assert "the figures of study rest on other measurements" in refused(capsys, ["report", "study"])
    assert run(["figures", "study"]) == 0
    assert run(["report", "study"]) == 0


def test_a_part_of_a_study_gets_no_verdict(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    shutil.rmtree(working_folder / "study" / "runs" / "maml-seed1" / "measurements.zarr")
    for command in ("test", "figures", "report"):
        assert "maml seed 1 is not measured yet" in refused(capsys, [command, "study"])


def test_damaged_files_are_named(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    run_folder = working_folder / "study" / "runs" / "maml-seed0"
    verdicts = working_folder / "study" / "verdicts.json"
    verdicts.write_text(verdicts.read_text()[:400])
    assert "verdicts.json is not JSON" in refused(capsys, ["info", "study"])
    chunk = next(path for path in (run_folder / "measurements.zarr" / "rho" / "c").rglob("*") if path.is_file())
    content = chunk.read_bytes()
    chunk.write_bytes(b"noise")
    assert "measurements.zarr is damaged" in refused(capsys, ["test", "study"])
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


def test_a_study_stopped_before_its_plan_was_written_goes_on(working_folder, capsys, monkeypatch):
    from analysis import folder

    def stop(path, text):
        files.write_text(path, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "write_text", stop)
    assert run(["study", "micro", "--out", "study"]) == 1
    monkeypatch.undo()
    monkeypatch.chdir(working_folder)
    assert run(["train", "micro", "--out", "study"]) == 0


def test_a_removed_checkpoint_is_made_again_as_the_message_advises(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    shutil.rmtree(working_folder / "study" / "runs" / "maml-seed0" / "measurements.zarr")
    checkpoint = working_folder / "study" / "runs" / "maml-seed0" / "checkpoints" / "0000002.safetensors"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:100])
    said = run(["study", "micro", "--out", "study"]), capsys.readouterr().err
    assert said[0] == 2
    assert "remove it and run the same command again" in said[1]
    checkpoint.unlink()
    assert run(["study", "micro", "--out", "study"]) == 0
    assert checkpoint.read_bytes() == content


def test_a_full_disk_is_told_and_the_command_goes_on_afterwards(working_folder, capsys, monkeypatch, micro_study):
    written = files.write_atomic

    def full(path, write):
        if path.suffix == ".safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written(path, write)

    monkeypatch.setattr("hessian_tools.runs.checkpoints.write_atomic", full)
    assert run(["train", "micro", "--out", "study", "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hessian-tools: no space left on the device (")
    assert error.count("\n") == 1
    assert not list(working_folder.rglob("*.safetensors"))
    assert not list(working_folder.rglob("*.partial"))
    monkeypatch.setattr("hessian_tools.runs.checkpoints.write_atomic", written)
    assert run(["train", "micro", "--out", "study", "--workers", "0"]) == 0
