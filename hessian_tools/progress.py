"""Progress of long calls: what the argument ``progress`` means in every function of the library.

None reports nothing; True writes a line with the time left to standard error; a callable is called with
``(done, total)``, both whole numbers of the unit that the function's docstring names (products, points, images).
An exception from the callable ends the calculation and reaches the caller; no input is changed.
"""

import sys
from collections.abc import Callable
from time import monotonic

ProgressCall = Callable[[int, int], None]
Progress = ProgressCall | bool

# Seconds between two lines: often enough for a terminal to look alive, rarely enough for a log file to stay short.
SECONDS_ON_A_TERMINAL, SECONDS_IN_A_LOG = 0.1, 5.0


class ProgressCounter:
    """Counts the work done, of a total known beforehand, and reports it as ``progress=`` asks.

    >>> counter = ProgressCounter(3, lambda done, total: print(f"{done} of {total}"))
    >>> counter.add(2)
    2 of 3
    """

    def __init__(self, total: int, progress: Progress | None = None) -> None:
        self.total, self.done = total, 0
        self._report = _text_line() if progress is True else progress or None

    def add(self, amount: int) -> None:
        """Adds to the work done and reports the new state."""
        self.done += amount
        if self._report is not None:
            self._report(self.done, self.total)


def _text_line() -> ProgressCall:
    """A reporter that rewrites one line on a terminal or in a notebook, and adds lines rarely in a log file."""
    # A notebook's stderr is no terminal, but it obeys the carriage return by which the line is written over.
    rewrites = sys.stderr.isatty() or "ipykernel" in sys.modules
    seconds, ending = (SECONDS_ON_A_TERMINAL, "") if rewrites else (SECONDS_IN_A_LOG, "\n")
    started = last = monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now, finished = monotonic(), done >= total
        if not finished and now - last < seconds:
            return
        last = now
        seconds_left = (now - started) * (total - done) / max(1, done)
        text = f"{done} of {total} ({100 * done // max(1, total)} %), {seconds_left:.0f} s left"
        # The padding blanks out what a longer earlier line left on the terminal.
        sys.stderr.write(f"\r{text:<60}" if rewrites else text)
        sys.stderr.write("\n" if finished else ending)
        sys.stderr.flush()

    return report
