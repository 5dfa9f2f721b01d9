"""Tests that after a power cut nothing is believed that is not there, and the same command goes on to equal results."""

import random
import resource
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import xarray as xr
from outcomes import record
from power_cut import RecordingDisk
from small_study import SMALL_STUDY

from analysis.cli import run
from analysis.folder import open_study
from hessian_tools.runs import files, metrics


@dataclass(frozen=True)
class Cuts:
    """A study that ran without a power cut, and what is left of it after a cut at each of many moments."""

    undisturbed: Path
    left: list[Path]


def study(out: Path) -> int:
    """Run the study in this process."""
    return run(["study", str(out.parent / "small.yaml"), "--out", str(out), "--workers", "0"])


def record_cuts(folder: Path, moments: int) -> Cuts:
    """Run the study three times: to count the changes of the disk, and to keep what is left at some of them."""
    (folder / "small.yaml").write_text(SMALL_STUDY)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    choices, left = random.Random(0), []

    def run_followed(out: Path, chosen: set[int]) -> int:
        def at_moment(moment: int) -> None:
            if moment in chosen:
                left.append(folder / f"left-{moment}")
                disk.after_power_cut(left[-1], choices)

        out.mkdir()
        disk = RecordingDisk(out, at_moment)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("analysis.pipeline.figures_of", lambda ds: {})  # pictures take most of the time
            disk.follow(monkeypatch)
            assert study(out) == 0
        disk.close()
        return disk.moments

    changes = run_followed(folder / "counted", set())
    run_followed(folder / "undisturbed", set(choices.sample(range(changes), moments)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return Cuts(folder / "undisturbed", left)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.pipeline.figures_of", lambda ds: {})


def test_what_was_written_is_there_after_a_power_cut_unless_nothing_waits_for_the_disk(tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    disk = RecordingDisk(root)
    disk.follow(monkeypatch)
    cuts = count()

    def is_left(name: str) -> set[bool]:
        """Whether a file is whole, after each of many power cuts."""
        outcomes = set()
        for seed in range(30):
            left = tmp_path / f"left-{next(cuts)}"
            disk.after_power_cut(left, random.Random(seed))
            file = left / name
            outcomes.add(file.exists() and file.read_bytes() == (root / name).read_bytes())
        return outcomes

    files.write_json(root / "runs" / "one" / "safe.json", {"a": 1})
    assert is_left("runs/one/safe.json") == {True}
    files.write_json(root / "runs" / "one" / "safe.json", {"a": 2})
    assert is_left("runs/one/safe.json") == {True}
    with files.without_fsync():
        files.write_json(root / "runs" / "one" / "unsafe.json", {"a": 1})
    assert is_left("runs/one/unsafe.json") == {True, False}
    metrics.append(root / metrics.NAME, {"meta_step": 1}, run=None)
    assert is_left(metrics.NAME) == {True, False}
    files.fsync(root / metrics.NAME)
    files.fsync(root)
    assert is_left(metrics.NAME) == {True}
    disk.close()


@pytest.mark.parametrize(
    "moments", [pytest.param(8, marks=pytest.mark.heavy), pytest.param(50, marks=pytest.mark.campaign)]
)
def test_after_a_power_cut_the_same_command_ends_with_equal_results(tmp_path: Path, moments: int) -> None:
    cuts = record_cuts(tmp_path, moments)
    assert len(cuts.left) == moments
    for out in cuts.left:
        assert study(out) == 0, out
        assert run(["verify", str(out)]) == 0, out
        assert_equal(out, cuts.undisturbed)
        record("power cut", "right")


def assert_equal(out: Path, expected: Path) -> None:
    xr.testing.assert_identical(open_study(out), open_study(expected))
    for name in ("verdicts.json", "runs/maml-seed0/metrics.jsonl", "runs/maml-seed0/checkpoints/0000002.safetensors"):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), (out, name)
