"""Tests of ``--dry-run``: it says what would be run, finds the mistakes of a run, and writes nothing."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from refused_commands import changed_micro, refused

from analysis.cli import run
from analysis.engines import sharing


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """The size and the time of change of every file and folder below a folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(working_folder, capsys):
    assert run(["study", "micro", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("study micro in runs/micro: nothing is run or written")
    assert "runs: 6 (3 learners, 2 seeds)\n" in said
    assert "to train: 4 of 6 runs, 20 of 20 meta-iterations\n" in said
    assert "to measure: 20 of 20 units" in said
    assert re.search(r"\ntime: [\d.]+ s of processor time \(training .*, measuring .*\); a rough estimate", said)
    assert re.search(r"\non disk: about \d+ MB", said)
    assert max(map(len, said.splitlines())) <= 120
    assert run(["train", "micro", "--seeds", "0", "1", "2", "--workers", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "to train: 6 of 9 runs, 30 of 30 meta-iterations\n" in said
    assert "measuring" not in said
    times = re.search(r"\ntime: ([\d.]+) s of processor time \(.*\), ([\d.]+) s on 2 workers", said)
    assert times and float(times[1]) == pytest.approx(2 * float(times[2]), rel=0.1)  # each is rounded to two digits
    assert list(working_folder.iterdir()) == []


def test_a_dry_run_for_a_card_says_which_runs_are_trained_together(working_folder, capsys, monkeypatch):
    card = SimpleNamespace(total_memory=139 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(sharing, "available_cores", lambda: 16)
    assert run(["study", "quickdraw-64", "--device", "cuda", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "\ntrained together: maml seeds 0, 1, 2; maml-shot seeds 0, 1, 2\n" in said
    minutes = re.search(
        r"\ntime: ([\d.]+) min of one process on the card \(.*\), at best .* on 3 workers; a rough", said
    )
    assert minutes and 1 < float(minutes[1]) < 6  # so that it fits eight minutes with its start and its figures
    assert run(["train", "quickdraw-64", "--device", "cuda", "--workers", "6", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "trained together" not in said and "on 6 workers" in said
    assert list(working_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["micro", "--data", "nowhere"], "there is no file or folder"),
        (["micro", "--devices", "cpu,tpu"], "'tpu' is no device"),
        (["micro", "--claims", "none.yaml"], "there is no plan of the claims none.yaml"),
        (["mine.yaml"], "ways=60"),
    ],
)
def test_a_dry_run_reports_the_mistakes_that_a_run_would(working_folder, capsys, arguments, said):
    (working_folder / "mine.yaml").write_text(changed_micro("ways: 3", "ways: 60"))
    assert said in refused(capsys, ["study", *arguments, "--dry-run"])
    assert [path.name for path in working_folder.iterdir()] == ["mine.yaml"]


@pytest.mark.slow
def test_a_dry_run_counts_what_is_there_already(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    runs = working_folder / "study" / "runs"
    shutil.rmtree(runs / "maml-shot-seed0" / "measurements.zarr")
    (runs / "maml-shot-seed0" / "checkpoints" / "0000005.safetensors").unlink()
    before = files_below(working_folder)
    assert run(["study", "micro", "--out", "study", "--seeds", "0", "1", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    # One run has 3 of 5 meta-iterations left; the new seed has those of two learners.
    assert "to train: 3 of 9 runs, 13 of 30 meta-iterations\n" in said
    # The new seed has 10 units, and the run without measurements has 6.
    assert "to measure: 16 of 30 units" in said
    assert "; by the times so far\n" in said
    disk = re.search(r"on disk: about (\d+) MB", said)
    taken = sum(512 * path.stat().st_blocks for path in [micro_study, *micro_study.rglob("*")])
    assert disk and 0.7 < 1e6 * int(disk.group(1)) / (1.5 * taken) < 1.4  # three seeds in place of two
    (working_folder / "plan.yaml").write_text(
        (working_folder / "study" / "claims.yaml").read_text().replace("confidence: 0.95", "confidence: 0.9")
    )
    assert "another plan" in refused(capsys, ["study", "micro", "--out", "study", "--claims", "plan.yaml", "--dry-run"])
    (working_folder / "plan.yaml").unlink()
    assert files_below(working_folder) == before


@pytest.mark.slow
def test_a_dry_run_goes_on_from_kept_results(working_folder, capsys):
    kept = Path(__file__).parents[2] / "docs" / "results" / "regression"
    num_kept = len([*kept.glob("seeds/seed-*.json")])
    options = ["--from", str(kept), "--seeds", *map(str, range(num_kept + 2)), "--dry-run"]
    assert run(["study", str(kept / "study.yaml"), "--out", "study", *options]) == 0
    said = capsys.readouterr().out
    runs = f"runs: {5 * num_kept + 10} (5 learners, {num_kept + 2} seeds), of which {5 * num_kept} are kept already\n"
    assert runs in said
    assert "to train: 8 of 10 runs" in said
    assert "; by the times so far\n" in said
    assert list(working_folder.iterdir()) == []


def test_the_time_that_is_left_follows_from_the_time_of_what_is_done(monkeypatch):
    from analysis import dry_run
    from analysis.study import build
    from analysis.study_file import load_study

    study = build(load_study("micro"), "runs/micro")
    times = {("maml", 0): {"train": 10.0}}
    monkeypatch.setattr(dry_run, "recorded_times", lambda study, *run: times.get(run, {}))
    line = dry_run._time(study, None, {"train": {("maml", 0): 0.5}})  # half of one run has taken ten seconds
    assert line == "time: 10 s of processor time (training 10 s); by the times so far"
