"""The side of a worker on another machine: its share of the work, and the permit to do it.

The machines share one file system, on which the study's folder lies. While a command waits for its jobs, that folder
holds a hidden folder with a random name, the *permit* of these jobs. The permit serves four purposes. A job that does
not see it does nothing, because its machine has another file system, or because the command has ended since. A job
whose permit is removed stops at its next report of progress, so that Ctrl-C also ends jobs that no signal reaches. A
job reports its progress in a file of its own in the permit. And a command that is killed leaves its permit behind,
which the next command in the folder removes, so that jobs of the killed command do not go on beside that one.
"""

import json
import os
import socket
import threading
import traceback
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import torch

from analysis import times
from analysis.errors import UserError
from hessian_tools.runs.files import FolderInUseError
from hessian_tools.runs.worker_pool import Emit, Work, one_thread, sendable

# The least number of seconds between two reports of a job on its progress, because a shared file system is slow.
REPORT_SECONDS = 1.0
# An earlier job, whose command has ended, may still be at work on a run. The next job on this run waits for at most so
# many seconds until the earlier one sees that its permit is gone, and stops.
PATIENCE = 90.0
LIBRARIES = ("hessian-tools", "torch", "numpy")  # numbers may differ between versions of these, so all must be equal

_one_unit = threading.Lock()  # torch's settings belong to the process, so a process does one unit at a time


class Stopped(Exception):
    """The permit of a job is gone."""


@dataclass(frozen=True)
class Failure:
    """The answer of a job in which a unit of work has failed.

    unit, worker: what was done, and the machine and the process that did it, in words.
    """

    unit: str
    worker: str
    error: Exception
    traceback: str


@dataclass(frozen=True)
class Share:
    """The units of work of one job, which are done one after the other.

    permit: the folder without which nothing is done. index: the number of the job, from 0 on.
    versions: the versions of ``LIBRARIES`` in the command that has shared out the work.
    """

    work: Work
    units: tuple[Any, ...]
    permit: Path
    index: int
    versions: dict[str, str]


def do_share(share: Share) -> Failure | None:
    """On a worker: do the units of a share; returns the first failure, after which no more is done."""
    worker, doing = f"{socket.gethostname()}, process {os.getpid()}", "starting"
    try:
        _refuse_unfit(share, worker)
        report = _Report(share, worker)
        # ``times.apart``: the processor time is written to a file of this process alone; see ``analysis.times``.
        with _one_unit, one_thread(), times.apart(f"{socket.gethostname()}-{os.getpid()}"):
            for unit in share.units:
                doing = report.unit = str(unit)
                report.write()
                _do_patiently(share.work, unit, report)
                report.write()
    except Exception as error:
        return Failure(doing, worker, sendable(error), traceback.format_exc())
    return None


def _refuse_unfit(share: Share, worker: str) -> None:
    """Raise UserError where this machine cannot do the share, or would do it with other numbers."""
    if not share.permit.is_dir():
        raise UserError(
            f"{worker} does not see {share.permit}, which the command keeps while it is at work; choose an --out on a"
            " file system that all machines share, under the same path"
        )
    here = versions()
    for name, wanted in share.versions.items():
        if here[name] != wanted:
            raise UserError(
                f"{worker} has {name} {here[name]}, but the command has {wanted}, and numbers may differ between them;"
                " start both from one environment"
            )
    if any(unit.study.device.startswith("cuda") for unit in share.units) and not torch.cuda.is_available():
        raise UserError(
            f"{worker} has no CUDA device; ask for one (gpus: 1 in the cluster's file), or use --device cpu"
        )


def _do_patiently(work: Work, unit: Any, emit: Emit) -> None:
    """Do a unit; where an earlier job still holds the lock of its run, wait until that job has stopped."""
    limit = monotonic() + PATIENCE
    while True:
        try:
            return work(unit, emit)
        except FolderInUseError:
            if monotonic() > limit:
                raise
            sleep(0.2)


class _Report:
    """On a worker: writes the progress of a share into its file, and raises Stopped once its permit is gone.

    It is passed to the work as ``emit``, so calling it reports that ``amount`` more is done.
    """

    def __init__(self, share: Share, worker: str) -> None:
        self.share, self.worker = share, worker
        self.unit, self.note, self.done, self._written = "", "", 0.0, 0.0

    def __call__(self, amount: float, note: str) -> None:
        self.done, self.note = self.done + amount, note
        if monotonic() - self._written >= REPORT_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the file under another name and move it to its place, so that the command never reads half of it."""
        self._written = monotonic()
        temporary = self.share.permit / f".{self.share.index}.{socket.gethostname()}.{os.getpid()}"
        content = {"done": self.done, "note": self.note, "unit": self.unit, "worker": self.worker}
        try:
            temporary.write_text(json.dumps(content), encoding="utf-8")
            os.replace(temporary, report_file(self.share.permit, self.share.index))
        except FileNotFoundError:
            raise Stopped("the command that gave out this work has ended") from None


@lru_cache
def versions() -> dict[str, str]:
    """The versions of ``LIBRARIES`` in this process."""
    by_name = {}
    for name in LIBRARIES:
        try:
            by_name[name] = version(name)
        except PackageNotFoundError:
            by_name[name] = "not installed"
    return by_name


def report_file(permit: Path, index: int) -> Path:
    """The file in which the job with that number reports its progress."""
    return permit / f"{index}.json"
