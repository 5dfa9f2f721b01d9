"""Tests that a study which is killed at any time and started again ends with the numbers of an undisturbed study."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr
from processes import (
    PATIENCE,
    children,
    is_running,
    measuring_has_begun,
    start_study,
    stop_when,
    training_has_begun,
)

from analysis.drawing.figures import figures_of
from analysis.folder import open_folder, open_study
from hessian_tools.runs.checkpoints import checkpoint_path, state_path

pytestmark = pytest.mark.heavy


def drawing_has_begun(out: Path) -> bool:
    return any(out.glob("figures/*.pdf"))


def assert_same_files_and_numbers(out: Path, expected: Path) -> None:
    xr.testing.assert_identical(open_study(out), open_study(expected))
    assert (out / "verdicts.json").read_bytes() == (expected / "verdicts.json").read_bytes()
    for name in figures_of(open_study(expected)):
        assert (out / "figures" / f"{name}.pdf").read_bytes() == (expected / "figures" / f"{name}.pdf").read_bytes()
    resumed, undisturbed = open_folder(out), open_folder(expected)
    for learner, seed in undisturbed.runs:
        run, wanted = resumed.run(learner, seed), undisturbed.run(learner, seed)
        last = undisturbed.learners[learner].checkpoints[-1]
        for path in (checkpoint_path(wanted, last), state_path(wanted), wanted / "metrics.jsonl"):
            assert (run / path.relative_to(wanted)).read_bytes() == path.read_bytes(), path
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize("reached", [training_has_begun, measuring_has_begun, drawing_has_begun])
def test_a_killed_study_started_again_ends_like_an_undisturbed_one(
    tmp_path: Path, micro_study: Path, reached: Callable[[Path], bool]
) -> None:
    out = tmp_path / "study"
    process = start_study(out, workers=2)
    stop_when(process, lambda: reached(out), signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "report.html").exists()
    again = start_study(out, workers=2)
    _, errors = again.communicate(timeout=PATIENCE)
    assert (again.returncode, errors) == (0, "")
    assert_same_files_and_numbers(out, micro_study)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks processes up in /proc")
def test_a_killed_worker_is_named_with_what_it_was_doing(tmp_path: Path) -> None:
    out = tmp_path / "study"
    process = start_study(out, workers=2)
    stop_when(process, lambda: training_has_begun(out), signal.SIGCONT)
    # The first child is the process in which multiprocessing tracks its resources.
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert re.fullmatch(
        r"hessian-tools: worker process \d ended \(exit code -9\) while it was (training|measuring|waiting) .*;"
        r" what was saved is complete:\nrun the same again, .*\n",
        errors,
    ), errors


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_study_says_so_in_one_line_and_the_same_command_continues(
    tmp_path: Path, micro_study: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "study"
    process = start_study(out, workers=2)
    stop_when(process, lambda: training_has_begun(out), signal.SIGCONT)
    started = children(process.pid)
    os.kill(process.pid, sent)
    process.wait(PATIENCE)
    # The command ends its workers before itself. The first child, in which multiprocessing tracks its resources, ends
    # once it sees that the command has ended; how soon depends on how busy the machine is.
    assert not any(map(is_running, started[1:])), "a worker outlives the command that has started it"
    limit = time.monotonic() + PATIENCE
    while any(map(is_running, started)):
        assert time.monotonic() < limit, "a process outlives the command that has started it"
        time.sleep(0.02)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors == "hessian-tools: stopped; the same command goes on from here\n"
    again = start_study(out, workers=0)
    again.communicate(timeout=PATIENCE)
    assert again.returncode == 0
    assert_same_files_and_numbers(out, micro_study)


def test_a_complete_study_is_not_done_again(tmp_path: Path, micro_study: Path) -> None:
    out = tmp_path / "study"
    shutil.copytree(micro_study, out)
    written = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoints/*")}
    chunks = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*.zarr/rho/c/**/*")}
    assert written
    assert chunks
    process = start_study(out, workers=0)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert chunks == {path: path.stat().st_mtime_ns for path in chunks}
