"""Reports of progress: bars on a terminal, plain lines in a pipe, or calls of the user's function."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import monotonic
from typing import Literal, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

SECONDS_BETWEEN_LINES = 5.0
# Until this fraction of a stage is done, no remaining time is shown, because the time of starting up would distort it.
MIN_FRACTION_DONE = 0.05
# The characters for the name of a stage, and for the note. If there is room for more, the bar becomes longer.
NAME_WIDTH, NOTE_WIDTH = 12, 28

ProgressOption = Literal[True] | Callable[[int, int], None] | None


class Advance(Protocol):
    """Reports progress in a stage, a part of a study whose work is counted in units, such as figures."""

    def __call__(self, amount: float = 1.0, note: str = "") -> None:
        """Report that ``amount`` more units are done. note: what is at work now."""


class Reporter(Protocol):
    """Shows the user what a study is doing."""

    def stage(self, name: str, total: float, unit: str) -> AbstractContextManager[Advance]:
        """A context for a stage of ``total`` units, called ``unit``; it yields the function that reports progress."""
        ...

    def say(self, text: str) -> None:
        """Show one line of text."""


class Calls:
    """A reporter that calls a function with (done, total) of the present stage; without a function it is silent."""

    def __init__(self, function: Callable[[int, int], None] | None = None) -> None:
        self.function = function

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Advance]:
        """A stage whose progress is passed to the function."""
        done = 0.0

        def advance(amount: float = 1.0, note: str = "") -> None:
            nonlocal done
            done += amount
            if self.function is not None:
                self.function(int(done), int(total))

        yield advance

    def say(self, text: str) -> None:
        """Do nothing, because the function takes numbers and no text."""


class Lines:
    """A reporter that prints plain lines without control codes, at most one every few seconds in a stage."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Advance]:
        """A stage whose beginning, progress and end are printed as lines."""
        done, started, last_line = 0.0, monotonic(), monotonic()
        unit = unit if total != 1 else unit.removesuffix("s")

        def advance(amount: float = 1.0, note: str = "") -> None:
            nonlocal done, last_line
            done += amount
            now = monotonic()
            if now - last_line < SECONDS_BETWEEN_LINES or done >= total:  # the end has a line of its own, below
                return
            last_line = now
            left = ""
            if done and done >= MIN_FRACTION_DONE * total:
                left = f", {_clock((now - started) / done * (total - done))} left"
            tail = f"  {note}" if note else ""
            self.say(f"{name}: {done:.0f}/{total:.0f} {unit}{left}{tail}")

        self.say(f"{name}: {total:.0f} {unit}")
        yield advance
        self.say(f"{name}: done in {_clock(monotonic() - started)}")

    def say(self, text: str) -> None:
        """Print the line at once."""
        print(text, file=self.stream, flush=True)


class Bars:
    """A reporter that shows a progress bar for each stage, in a terminal or a notebook."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Advance]:
        """A stage that is shown as a bar with counts, elapsed time and time left."""
        # In a narrow terminal, the bar and the note become shorter, so that counts and times are not cut. There are six
        # spaces between the seven columns.
        clock, counts = len("0:00:00"), len(f"{total:.0f}/{total:.0f} {unit}")
        room = self.console.width - (NAME_WIDTH + counts + clock + len("left") + clock + 6 * len(" "))
        columns = (
            TextColumn(f"{{task.description:<{NAME_WIDTH}}}"),
            BarColumn(bar_width=min(28, max(4, room - NOTE_WIDTH))),
            TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit, table_column=Column(min_width=counts)),
            TimeElapsedColumn(table_column=Column(min_width=clock)),
            TextColumn("left", table_column=Column(min_width=len("left"))),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(min_width=clock)),
            TextColumn("{task.fields[note]}", style="dim", table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(name, total=total, note="")

            def advance(amount: float = 1.0, note: str = "") -> None:
                progress.update(task, advance=amount, note=note)

            yield advance
            progress.update(task, note="")

    def say(self, text: str) -> None:
        """Print the line above the bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def reporter_for(progress: ProgressOption) -> Reporter:
    """The reporter for an option ``progress=``.

    For None it is silent. For a function it calls that with (done, total). For True it shows bars if standard output is
    a terminal or a notebook, and prints plain lines otherwise.
    """
    if progress is not True:
        return Calls(progress)
    console = Console()
    return Bars(console) if console.is_terminal or console.is_jupyter else Lines()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
