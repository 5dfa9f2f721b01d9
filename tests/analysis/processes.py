"""A study in a process of its own, its workers, and the moment at which it is stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 300.0  # seconds; the study takes about 15 on a quiet machine, and many times as long on a busy one


def start_study(out: Path, *, workers: int, source: str = "micro") -> subprocess.Popen:
    """Start a study in a process of its own; ``source`` is a bundled study or a file."""
    command = [sys.executable, "-m", "analysis.cli", "study", source, "--out", str(out), "--workers", str(workers)]
    # If a script runs these tests in the background, they inherit that Ctrl-C is ignored, and the command would too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def training_has_begun(out: Path) -> bool:
    """True once a run has written two lines of its metrics."""
    return any(path.read_text().count("\n") >= 2 for path in out.glob("runs/*/metrics.jsonl"))


def measuring_has_begun(out: Path) -> bool:
    """True once a run has marked a task as done, which writes a chunk of the zarr array ``done``."""
    return any(out.glob("runs/*/measurements.zarr/done/c/**/0"))


def stop_when(process: subprocess.Popen, reached: Callable[[], bool], signal_sent: signal.Signals) -> None:
    """Send a signal to the process as soon as ``reached()`` is True."""
    limit = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "the study did not get that far"
        time.sleep(0.002)
    os.kill(process.pid, signal_sent)


def children(pid: int) -> list[int]:
    """The process identifiers of the running children of a process; none where there is no /proc to look them up."""
    if not Path("/proc/self/task").exists():
        return []
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Whether there is a process that has not ended.

    A process that has ended keeps its number, in the state Z, until its parent has asked for its exit status.
    """
    status = Path(f"/proc/{pid}/stat")
    try:
        # The state is the first word after the program's name, which stands in brackets.
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
