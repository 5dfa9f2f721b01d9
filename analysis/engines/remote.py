"""How the engines whose workers are on other machines share out the work and follow its progress.

``worker.py`` holds the workers' side of this. It also explains the permit, a hidden folder that the command and its
workers share.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol
from uuid import uuid4

from analysis.engines.worker import Failure, Share, report_file, versions
from analysis.errors import UserError, with_notes
from analysis.folder import DATA_PATHS
from analysis.study import Study, open_problem
from hessian_tools.runs.worker_pool import Emit, Work, WorkerLost, ignore_progress

HIDDEN = ".cluster"  # in the study's folder: permits, and what the jobs of a cluster print; removed when all is well
ERROR = "error.txt"  # the traceback of the error that ended the last command
POLL_SECONDS = (0.2, 5.0)  # the shortest and the longest pause of the command that waits for its jobs
STOP_SECONDS = 3.0  # how long the command waits for the jobs that it has cancelled


class UnitFailed(RuntimeError):
    """A unit of work has failed on another machine; the message names the unit and the worker.

    error: what the unit has raised there.
    """

    def __init__(self, message: str, error: Exception) -> None:
        super().__init__(message)
        self.error = error


class JobLost(Exception):
    """A job has ended without an answer; its text says how."""


class Job(Protocol):
    """A share of the work that was handed to a scheduler."""

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


@dataclass
class RemoteEngine:
    """Does units of work in jobs on other machines.

    folder: the study's folder.
    submit: a function that hands shares of the work to a scheduler, and returns a job for each share.
    max_jobs: the largest number of jobs; None makes a job of each unit.
    """

    folder: Path
    submit: Callable[[list[Share]], Sequence[Job]]
    max_jobs: int | None = None

    @property
    def min_units(self) -> int | None:
        """The number of jobs, so that each has a unit; None makes a unit of each run, and a job of each unit."""
        return self.max_jobs

    def run(self, work: Work, units: Sequence[Any], *, emit: Emit = ignore_progress) -> None:
        """Do what :class:`analysis.engines.engine.Engine` says.

        An error of a unit is raised as UnitFailed. Where a job is lost, the engine waits for all other jobs before it
        raises WorkerLost, because what ends one job (a node, its memory, its time) need not end the others.
        """
        if not units:
            return
        permit = self.folder.absolute() / HIDDEN / f"permit-{uuid4().hex}"
        permit.mkdir(parents=True)
        units, num_jobs = [_with_absolute_paths(unit) for unit in units], min(len(units), self.max_jobs or len(units))
        # The units are dealt out like cards, because the costly ones come first in the list.
        shares = [Share(work, tuple(units[i::num_jobs]), permit, i, versions()) for i in range(num_jobs)]
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
                # A twentieth of the time so far: a long wait needs no frequent look at a slow file system.
                shortest, longest = POLL_SECONDS
                sleep(min(max((monotonic() - begun) / 20, shortest), longest))
        return lost

    def _raise(self, job: Job, failure: Failure) -> None:
        """Raise the failure of a unit, and keep its traceback in a file."""
        path = self.folder / HIDDEN / ERROR
        path.write_text(failure.traceback, encoding="utf-8")
        error = failure.error
        said = with_notes(error)
        what = said if isinstance(error, UserError) else f"{type(error).__name__}: {said} (see {path})"
        message = f"{failure.unit} failed in {job.name} on {failure.worker}: {what}"
        raise UnitFailed(message, error) from error


class _Progress:
    """Used by the command that waits for the jobs: reads their reports, and adds up their progress."""

    def __init__(self, permit: Path, emit: Emit) -> None:
        self.permit, self.emit = permit, emit
        self._reports: dict[int, dict[str, Any]] = {}  # the last report of each job

    def read(self) -> None:
        """Pass on what the jobs have reported since the last call."""
        with suppress(OSError):
            for name in os.listdir(self.permit):
                index, _, ending = name.partition(".")
                if ending == "json" and index.isdigit():
                    self._read(int(index))

    def finish(self, index: int) -> None:
        """Pass on the last report of a job that has ended, and remove its file."""
        self._read(index)
        report_file(self.permit, index).unlink(missing_ok=True)

    def activity(self, index: int) -> str:
        """What a job was doing, as far as is known."""
        self._read(index)
        if index not in self._reports:
            return "before it had begun with a unit"
        return f"on {self._reports[index]['worker']} while it was {self._reports[index]['unit']}"

    def _read(self, index: int) -> None:
        try:
            report = json.loads(report_file(self.permit, index).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # on a shared file system, a file may appear late or in part
            return
        # A job that was started again counts from 0 again. The work that it reported before must not count twice.
        done_before = self._reports.get(index, {"done": 0.0})["done"]
        if report["done"] > done_before:
            self.emit(report["done"] - done_before, report["note"])
        self._reports[index] = report | {"done": max(report["done"], done_before)}


def end_earlier_jobs(folder: Path) -> None:
    """Stop the jobs that a killed command has left behind, by removing their permits.

    The caller has locked the study's folder, so no other command is at work there whose permit this could remove.
    """
    for permit in folder.glob(f"{HIDDEN}/permit-*"):
        _withdraw(permit)


def _withdraw(permit: Path) -> None:
    """Remove a permit."""
    # Renamed first, because a folder in which jobs go on making files cannot be removed.
    withdrawn = permit.with_name(f"withdrawn-{permit.name}")
    with suppress(OSError):
        os.rename(permit, withdrawn)
    shutil.rmtree(withdrawn, ignore_errors=True)


def _with_absolute_paths(unit: Any) -> Any:
    """The unit of work with absolute paths, so that it can be done in any working folder."""
    return replace(unit, study=_study_with_absolute_paths(unit.study))


def _study_with_absolute_paths(study: Study) -> Study:
    """The study with the absolute paths of its folder and its data.

    Links are not followed, because they may point elsewhere on another machine.
    """
    config, given = study.config, {name: getattr(study.config.data, name) for name in DATA_PATHS}
    paths = {name: Path(value).expanduser() for name, value in given.items() if value}
    # A value may also be the name of a bundled data set, which does not exist as a file and stays as it is.
    absolute = {name: str(path.absolute()) for name, path in paths.items() if path.exists()}
    config = config.model_copy(update={"data": config.data.model_copy(update=absolute)})
    problem = open_problem(config.data, config.network, study.problem.trust)
    return replace(study, path=study.path.absolute(), config=config, problem=problem)


def _cancel(jobs: Sequence[Job]) -> None:
    """Cancel the jobs, and wait up to ``STOP_SECONDS`` until they have ended."""
    for job in jobs:
        with suppress(Exception):  # a scheduler that does not answer must not hide the error that led here
            job.cancel()
    limit = monotonic() + STOP_SECONDS
    with suppress(Exception):
        while monotonic() < limit and not all(job.done() for job in jobs):
            sleep(POLL_SECONDS[0])


def _see_what_others_wrote(folder: Path) -> None:
    """Read the names in all folders of the runs, so that the files that jobs have written there are visible here.

    A network file system remembers for up to a minute that a file did not exist, unless its folder is read again.
    """
    for _ in os.walk(folder / "runs"):
        pass
