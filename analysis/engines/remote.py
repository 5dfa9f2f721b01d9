"""What the engines have in common whose workers are on other machines: how work is shared out, done and followed.

The machines share one file system, on which the study's folder lies. While a command waits for its jobs, that folder
holds a hidden folder with a random name, the *permit* of these jobs. It serves four purposes. A job that does not see
the permit does nothing, because its machine has another file system, or because the command has ended since. A job
whose permit is removed stops at its next report of progress, so that Ctrl-C ends also what no signal reaches. A job
reports its progress in a file of its own in the permit. And a command that is killed leaves its permit behind, which
the next command in the folder removes, so that jobs of the killed one do not go on beside it.
"""

import json
import os
import shutil
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol
from uuid import uuid4

import torch

from analysis import times
from analysis.errors import UserError
from analysis.folder import DATA_PATHS
from analysis.study import Study, open_problem
from hessian_tools.runs.files import FolderInUseError
from hessian_tools.runs.worker_pool import Emit, Work, WorkerLost, ignore_progress, one_thread, sendable

HIDDEN = (
    ".cluster"  # in the study's folder: the permits, and what the jobs of a cluster print; removed when all is well
)
ERROR = "error.txt"  # the traceback of the error that ended the last command
REPORT_SECONDS = 1.0  # a job reports its progress at most so often, because a shared file system is slow
POLL_SECONDS = (0.2, 5.0)  # the shortest and the longest pause of the command that waits for its jobs
PATIENCE = 90.0  # seconds that a job waits for an earlier job in the same run to notice that its permit is gone
STOP_SECONDS = 3.0  # that the command waits for the jobs that it has cancelled
LIBRARIES = ("hessian-tools", "torch", "numpy")  # whose versions must be equal, so that numbers are

_one_unit = threading.Lock()  # torch's settings belong to the process, so a process does one unit at a time


class UnitFailed(RuntimeError):
    """A unit of work has failed on another machine; the message names the unit and the worker.

    error: what the unit has raised there.
    """

    def __init__(self, message: str, error: Exception) -> None:
        super().__init__(message)
        self.error = error


class Stopped(Exception):
    """The permit of a job is gone."""


class JobLost(Exception):
    """A job has ended without an answer; its text says how."""


@dataclass(frozen=True)
class Failure:
    """The answer of a job in which a unit of work has failed."""

    unit: str
    worker: str
    error: Exception
    traceback: str


@dataclass(frozen=True)
class Share:
    """The units of work of one job, which are done one after the other.

    permit: the folder without which nothing is done. index: the number of the job, from 0 on.
    versions: those of ``LIBRARIES`` in the command that has shared out the work.
    """

    work: Work
    units: tuple[Any, ...]
    permit: Path
    index: int
    versions: dict[str, str]


class Job(Protocol):
    """A share of the work on its way."""

    name: str
    """What the user knows the job by, such as "job 1234_5"."""

    def done(self) -> bool:
        """True if the job has ended, in whatever way."""
        ...

    def answer(self) -> Failure | None:
        """What the job has returned. Raises JobLost where it has returned nothing."""
        ...

    def cancel(self) -> None:
        """End the job, or keep it from beginning."""


def do_share(share: Share) -> Failure | None:
    """On a worker: do the units of a share; returns the first failure, after which no more is done."""
    worker, doing = f"{socket.gethostname()}, process {os.getpid()}", "starting"
    try:
        _refuse_unfit(share, worker)
        report = _Report(share, worker)
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
    folder = share.permit.parents[1]
    if not folder.is_dir():
        raise UserError(
            f"{worker} does not see the study's folder {folder}; choose an --out on a file system that all machines"
            " share, under the same path"
        )
    if not share.permit.is_dir():
        raise Stopped(f"{folder} on {worker} holds no permit for this work: the command that gave it out has ended")
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
    """Do a unit; where an earlier job still holds the lock of its run, wait until that has stopped."""
    limit = monotonic() + PATIENCE
    while True:
        try:
            return work(unit, emit)
        except FolderInUseError:
            if monotonic() > limit:
                raise
            sleep(POLL_SECONDS[0])


class _Report:
    """On a worker: writes the progress of a share into its file, and raises Stopped once its permit is gone."""

    def __init__(self, share: Share, worker: str) -> None:
        self.share, self.worker = share, worker
        self.unit, self.note, self.done, self._written = "", "", 0.0, 0.0

    def __call__(self, amount: float, note: str) -> None:
        self.done, self.note = self.done + amount, note
        if monotonic() - self._written >= REPORT_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the file, which the waiting command reads whole, because it is moved into its place."""
        self._written = monotonic()
        part = self.share.permit / f".{self.share.index}.{socket.gethostname()}.{os.getpid()}"
        content = {"done": self.done, "note": self.note, "unit": self.unit, "worker": self.worker}
        try:
            part.write_text(json.dumps(content), encoding="utf-8")
            os.replace(part, _report_file(self.share.permit, self.share.index))
        except FileNotFoundError:
            raise Stopped("the command that gave out this work has ended") from None


@dataclass
class RemoteEngine:
    """Does units of work in jobs on other machines.

    folder: the study's folder.
    submit: hands shares of the work out, and returns a job for each.
    max_jobs: the largest number of jobs; None for one job for each unit.
    """

    folder: Path
    submit: Callable[[list[Share]], Sequence[Job]]
    max_jobs: int | None = None

    def run(self, work: Work, units: Sequence[Any], *, emit: Emit = ignore_progress) -> None:
        """Do what :class:`analysis.engines.engine.Engine` says.

        An error of a unit is raised as UnitFailed. Where jobs are lost, the others are waited for before WorkerLost is
        raised, because what ends one job (a node, its memory, its time) need not end the others.
        """
        if not units:
            return
        permit = self.folder.absolute() / HIDDEN / f"permit-{uuid4().hex}"
        permit.mkdir(parents=True)
        units, number = [_anywhere(unit) for unit in units], min(len(units), self.max_jobs or len(units))
        # Every number-th unit, because the costly ones come first in the list.
        shares = [Share(work, tuple(units[i::number]), permit, i, versions()) for i in range(number)]
        jobs: Sequence[Job] = ()
        try:
            jobs = self.submit(shares)
            lost = self._wait(jobs, _Progress(permit, emit))
        except BaseException:
            _withdraw(permit)  # this also stops jobs that no signal reaches
            _cancel(jobs)
            raise
        _withdraw(permit)
        _see_what_others_wrote(self.folder)
        if lost:
            more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
            raise WorkerLost(
                f"{lost[0]}{more}; what was saved is complete:\nrun the same command again, which does only what is"
                " missing, with more memory or time if these were short"
            )
        shutil.rmtree(self.folder / HIDDEN, ignore_errors=True)

    def _wait(self, jobs: Sequence[Job], progress: "_Progress") -> list[str]:
        """Wait until all jobs have ended; returns a sentence for each that was lost."""
        waiting, lost, begun = dict(enumerate(jobs)), [], monotonic()
        while waiting:
            progress.read()
            for index in [index for index, job in waiting.items() if job.done()]:
                job = waiting.pop(index)
                try:
                    failure = job.answer()
                except JobLost as error:
                    lost.append(f"{job.name} ended ({error}) {progress.activity(index)}")
                    continue
                if failure is not None:
                    self._raise(job, failure)
                progress.finish(index)
            if waiting:
                shortest, longest = POLL_SECONDS
                sleep(min(max((monotonic() - begun) / 20, shortest), longest))
        return lost

    def _raise(self, job: Job, failure: Failure) -> None:
        """Raise the failure of a unit, and keep its traceback in a file."""
        path = self.folder / HIDDEN / ERROR
        path.write_text(failure.traceback, encoding="utf-8")
        error = failure.error
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error} (see {path})"
        message = f"{failure.unit} failed in {job.name} on {failure.worker}: {what}"
        raise UnitFailed(message, error) from error


class _Progress:
    """In the command: adds up the progress of the jobs."""

    def __init__(self, permit: Path, emit: Emit) -> None:
        self.permit, self.emit = permit, emit
        self._seen: dict[int, dict[str, Any]] = {}

    def read(self) -> None:
        """Report what the jobs have written since the last call."""
        with suppress(OSError):
            for name in os.listdir(self.permit):
                index, _, ending = name.partition(".")
                if ending == "json" and index.isdigit():
                    self._read(int(index))

    def finish(self, index: int) -> None:
        """Report the last of a job that has ended."""
        self._read(index)
        _report_file(self.permit, index).unlink(missing_ok=True)

    def activity(self, index: int) -> str:
        """What a job was doing, as far as is known."""
        self._read(index)
        if index not in self._seen:
            return "before it had begun with a unit"
        return f"on {self._seen[index]['worker']} while it was {self._seen[index]['unit']}"

    def _read(self, index: int) -> None:
        try:
            report = json.loads(_report_file(self.permit, index).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a shared file system may be late
            return
        # A job that was started again begins again at 0, and what is in the folder already counts once.
        seen = self._seen.get(index, {"done": 0.0})["done"]
        if report["done"] > seen:
            self.emit(report["done"] - seen, report["note"])
        self._seen[index] = report | {"done": max(report["done"], seen)}


def end_earlier_jobs(folder: Path) -> None:
    """Take their permits from jobs that a killed command has left; the caller has locked the study's folder."""
    for permit in folder.glob(f"{HIDDEN}/permit-*"):
        _withdraw(permit)


def _withdraw(permit: Path) -> None:
    """Remove a permit."""
    # Renamed first, because a folder in which jobs go on making files cannot be removed.
    withdrawn = permit.with_name(f"withdrawn-{permit.name}")
    with suppress(OSError):
        os.rename(permit, withdrawn)
    shutil.rmtree(withdrawn, ignore_errors=True)


@lru_cache
def versions() -> dict[str, str]:
    """The versions of ``LIBRARIES`` in this process."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _report_file(permit: Path, index: int) -> Path:
    return permit / f"{index}.json"


def _anywhere(unit: Any) -> Any:
    """The unit as it is done in any working folder."""
    return replace(unit, study=_with_absolute_paths(unit.study))


def _with_absolute_paths(study: Study) -> Study:
    """The study with the absolute paths of its folder and its data; links are not followed, as they may differ."""
    config, given = study.config, {name: getattr(study.config.data, name) for name in DATA_PATHS}
    paths = {name: Path(value).expanduser() for name, value in given.items() if value}  # some are names of data sets
    places = {name: str(path.absolute()) for name, path in paths.items() if path.exists()}
    config = config.model_copy(update={"data": config.data.model_copy(update=places)})
    problem = open_problem(config.data, config.network, study.problem.trust)
    return replace(study, path=study.path.absolute(), config=config, problem=problem)


def _cancel(jobs: Sequence[Job]) -> None:
    for job in jobs:
        with suppress(Exception):  # a scheduler that does not answer must not hide the error that led here
            job.cancel()
    limit = monotonic() + STOP_SECONDS
    with suppress(Exception):
        while monotonic() < limit and not all(job.done() for job in jobs):
            sleep(POLL_SECONDS[0])


def _see_what_others_wrote(folder: Path) -> None:
    """Read the names in all folders of the runs."""
    # A network file system remembers for up to a minute that a file did not exist, until its folder is read again.
    for _ in os.walk(folder / "runs"):
        pass
