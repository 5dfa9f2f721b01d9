"""Reports of progress: bars on a terminal, plain lines in a pipe, or calls of the user's function."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import monotonic
from typing import Literal, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0
# Until this fraction of a stage is done, no time left is given: starting up still makes up too much of the time.
MIN_FRACTION_DONE = 0.05

ProgressOption = Literal[True] | Callable[[int, int], None] | None


class Stage(Protocol):
    """A part of a study whose work is counted in units, such as meta-iterations or figures."""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Report that ``amount`` more units are done. note: what is at work now."""


class Reporter(Protocol):
    """Shows the user what a study is doing."""

    def stage(self, name: str, total: float, unit: str) -> AbstractContextManager[Stage]:
        """A context that yields a Stage of ``total`` units, which are called ``unit``."""
        ...

    def say(self, text: str) -> None:
        """Show one line of text."""


class Calls:
    """A reporter that calls a function with (done, total) of the present stage; without a function it is silent."""

    def __init__(self, function: Callable[[int, int], None] | None = None) -> None:
        self.function = function

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        """A stage whose progress is passed to the function."""
        yield _CalledStage(self.function, int(total))

    def say(self, text: str) -> None:
        """Do nothing, because the function takes numbers and no text."""


class Lines:
    """A reporter that prints plain lines without control codes, at most one every few seconds in a stage."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        """A stage whose beginning, progress and end are printed as lines."""
        stage = _LineStage(self, name, total, unit)
        self.say(f"{name}: {total:.0f} {unit}")
        yield stage
        self.say(f"{name}: done in {_clock(monotonic() - stage.started)}")

    def say(self, text: str) -> None:
        """Print the line at once."""
        print(text, file=self.stream, flush=True)


class Bars:
    """A reporter that shows a progress bar for each stage, in a terminal or a notebook."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Stage]:
        """A stage that is shown as a bar with counts, elapsed time and time left."""
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(name, total=total, note="")
            yield _BarStage(progress, task)
            progress.update(task, note="")

    def say(self, text: str) -> None:
        """Print the line above the bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def reporter(progress: ProgressOption) -> Reporter:
    """The reporter for an option ``progress=``.

    For None it is silent. For a function it calls that with (done, total). For True it shows bars if standard output is
    a terminal or a notebook, and prints plain lines otherwise.
    """
    if progress is not True:
        return Calls(progress)
    console = Console()
    return Bars(console) if console.is_terminal or console.is_jupyter else Lines()


class _CalledStage:
    def __init__(self, function: Callable[[int, int], None] | None, total: int) -> None:
        self.function, self.total, self.done = function, total, 0.0

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.done += amount
        if self.function is not None:
            self.function(int(self.done), self.total)


class _BarStage:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.progress.update(self.task, advance=amount, note=note)


class _LineStage:
    def __init__(self, lines: Lines, name: str, total: float, unit: str) -> None:
        self.lines, self.name, self.total, self.unit = lines, name, total, unit
        self.done, self.started, self.last_line = 0.0, monotonic(), monotonic()

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.done += amount
        now = monotonic()
        if now - self.last_line < SECONDS_BETWEEN_LINES or self.done >= self.total:
            return
        self.last_line = now
        left = ""
        if self.done and self.done >= MIN_FRACTION_DONE * self.total:
            left = f", {_clock((now - self.started) / self.done * (self.total - self.done))} left"
        tail = f"  {note}" if note else ""
        self.lines.say(f"{self.name}: {self.done:.0f}/{self.total:.0f} {self.unit}{left}{tail}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
