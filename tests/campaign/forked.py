"""Commands of ``hessian-tools`` in forked children of this process, in which all modules are loaded already.

A child runs what the command runs, from the setting of its signal handlers to its exit status. It spares the seconds
that a new interpreter needs to import torch.
"""

import hashlib
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import pytest
from small_study import SMALL_STUDY

from analysis import cli, measure, pipeline  # noqa: F401 (loaded here, so that the children need not load them)
from analysis.drawing.figures import figures_of

SECONDS = 20  # of processor time, after which a command counts as hanging
PATIENCE = 300.0  # seconds on the clock, after which a command counts as hanging, even if it only waits
RAISED = 70  # the exit status of a child in which an error was not caught
MAX_MESSAGE, MAX_LINES = 1000, 3
# What the small study measures, and which of its figures are drawn, so that a command takes a second.
STUDY = SMALL_STUDY + "  quantities: [inner_loop]\n"
FIGURES = ("accuracy", "alpha_rho")
COMMANDS = {
    "train": ["train", "small.yaml", "--out", "study", "--workers", "0"],
    "measure": ["measure", "study", "--workers", "0"],
    "test": ["test", "study"],
    "figures": ["figures", "study"],
    "report": ["report", "study"],
}
ALL = ["study", "small.yaml", "--out", "study", "--workers", "0"]


@dataclass(frozen=True)
class Ended:
    """How a command ended. status: its exit status, minus the signal that ended it, or None where it hung."""

    status: int | None
    output: str
    errors: str
    seconds: float

    @property
    def outcome(self) -> str:
        """The outcome: "right" for exit status 0, "refused" for status 2 and a plain message, or what was wrong."""
        if self.status is None or self.status == -signal.SIGXCPU:
            return "hang"
        if self.status == RAISED or "Traceback" in self.errors:
            return "traceback"
        message = self.errors.strip()
        plain = 0 < len(message) < MAX_MESSAGE and message.count("\n") < MAX_LINES
        return "right" if self.status == 0 else "refused" if self.status == 2 and plain else "wrong"

    def __str__(self) -> str:
        return f"status {self.status}, {self.seconds:.1f} s: {self.output[-300:]} {self.errors[-700:]}"


def run(
    arguments: Sequence[str],
    folder: Path,
    *,
    prepare: Callable[[], object] = lambda: None,
    sent: signal.Signals | None = None,
    after: float = 0.0,
) -> Ended:
    """Run one command line in a forked child whose working directory is ``folder``.

    prepare: called in the child before the command. sent: the signal that it is sent ``after`` that many seconds.
    """
    with TemporaryFile() as output, TemporaryFile() as errors:
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            _in_child(arguments, folder, prepare, output.fileno(), errors.fileno())
        ended, status = 0, 0
        while not ended and (seconds := time.monotonic() - begun) < PATIENCE:
            if sent and seconds >= after:
                os.kill(child, sent)
                sent = None
            time.sleep(0.002)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Ended(os.waitstatus_to_exitcode(status) if ended else None, *texts, time.monotonic() - begun)


def _in_child(arguments: Sequence[str], folder: Path, prepare: Callable[[], object], output: int, errors: int) -> None:
    """Do what the process of a command does, and end this process."""
    status = RAISED
    try:
        for descriptor, target in ((output, 1), (errors, 2)):
            os.dup2(descriptor, target)
        sys.stdout, sys.stderr = (os.fdopen(target, "w", closefd=False) for target in (1, 2))
        warnings.simplefilter("default")  # under pytest, a warning is an error
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.default_int_handler)
        os.chdir(folder)
        draw_few_figures()
        prepare()
        status = cli.run(list(arguments))
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        # Where no file may grow, the output cannot be written either; the child must end all the same.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)


def before_writes(act: Callable[[int], object]) -> Callable[[], None]:
    """A function for ``prepare``: before each change of the disk, ``act`` gets the number of the changes so far."""
    changes = 0

    def followed(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            nonlocal changes
            act(changes)
            changes += 1
            return call(*arguments, **options)

        return counted

    def prepare() -> None:
        for name in ("fsync", "replace", "rename", "unlink"):
            setattr(os, name, followed(getattr(os, name)))

    return prepare


def at_write(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """A function for ``prepare``: ``act`` is called before the change of the disk with this number, counted from 0."""
    return before_writes(lambda changes: act() if changes == number else None)


def num_writes(arguments: Sequence[str], folder: Path) -> int:
    """Run an undisturbed command, and count its changes of the disk.

    The child that runs the command writes a byte for each change, because it cannot return a number.
    """
    tally = folder / "tally"
    tally.write_bytes(b"")

    def note(_changes: int) -> None:
        with tally.open("ab") as file:
            file.write(b".")

    ended = run(arguments, folder, prepare=before_writes(note))
    assert ended.status == 0, ended
    writes = tally.stat().st_size
    tally.unlink()
    return writes


def results(study: Path) -> dict[str, str]:
    """The SHA-256 of each file of a study by its path.

    Three kinds of files are left out: the processor times, which are never the same, the lock, and the damaged files
    that a command has put aside.
    """
    files = (file for file in study.rglob("*") if file.is_file() and file.name not in ("times.jsonl", ".lock"))
    compared = (file for file in files if "damaged-" not in str(file))
    return {file.relative_to(study).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in compared}


@dataclass(frozen=True)
class Stages:
    """The small study at each stage, as copies of one folder, which holds the file small.yaml and the folder study.

    folders: the folder before each command, by the command's name, and the folder after all of them, named "end".
    seconds: how long each command took.
    """

    folders: dict[str, Path]
    seconds: dict[str, float]

    def before(self, command: str, new: Path) -> Path:
        """A copy of the folder before a command."""
        return Path(shutil.copytree(self.folders[command], new))

    def after(self, command: str) -> dict[str, str]:
        """The results after a command."""
        names = [*COMMANDS, "end"]
        return results(self.folders[names[names.index(command) + 1]] / "study")


@cache
def warm_up() -> None:
    """Run a study in this process once, so that its children need not import what is imported late."""
    with TemporaryDirectory() as base, pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings():
        warnings.simplefilter("default")
        monkeypatch.chdir(base)
        Path("small.yaml").write_text(STUDY)
        # ``draw_few_figures`` replaces this function; set by monkeypatch, it is put back afterwards.
        monkeypatch.setattr(pipeline, "figures_of", pipeline.figures_of)
        draw_few_figures()
        assert cli.run(ALL) == cli.run(["verify", "study"]) == 0


def draw_few_figures() -> None:
    """Let a study have two figures, each of which takes a second."""
    pipeline.figures_of = lambda ds: {  # type: ignore[assignment]
        name: figure for name, figure in figures_of(ds).items() if name in FIGURES
    }


def make_stages(base: Path, text: str = STUDY) -> Stages:
    """Run all commands of the small study, and keep a copy of the folder before each of them."""
    warm_up()
    folders, seconds, work = {}, {}, base / "work"
    work.mkdir(parents=True)
    (work / "small.yaml").write_text(text)
    for name, arguments in COMMANDS.items():
        folders[name] = Path(shutil.copytree(work, base / name))
        ended = run(arguments, work)
        assert ended.status == 0, (name, ended)
        seconds[name] = ended.seconds
    return Stages(folders | {"end": work}, seconds)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """The path of a folder that is removed afterwards, which keeps a thousand trials small."""
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return make_stages(tmp_path_factory.mktemp("stages"))
