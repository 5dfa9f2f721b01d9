"""Progress of long calls: what the argument ``progress`` means in every function of the library.

None reports nothing. True shows a bar with the time left in a notebook, and elsewhere writes a line to standard error.
A callable is called with ``(done, total)``, both whole numbers of the unit that the function's docstring names
(products, points, images). An exception from the callable ends the calculation and reaches the caller; no input is
changed.
"""

import sys
from collections.abc import Callable
from time import monotonic

ProgressCall = Callable[[int, int], None]
Progress = ProgressCall | bool

# Seconds between two lines: often enough for a terminal to look alive, rarely enough for a log file to stay short.
SECONDS_ON_A_SCREEN, SECONDS_IN_A_LOG = 0.1, 5.0


class ProgressCounter:
    """Counts the work done, of a total known beforehand, and reports it as ``progress=`` asks.

    >>> counter = ProgressCounter(3, lambda done, total: print(f"{done} of {total}"))
    >>> counter.add(2)
    2 of 3
    """

    def __init__(self, total: int, progress: Progress | None = None) -> None:
        self.total, self.done = total, 0
        self._report = bar() if progress is True else progress or None

    def add(self, amount: int) -> None:
        """Adds to the work done and reports the new state."""
        self.done += amount
        if self._report is not None:
            self._report(self.done, self.total)


def bar() -> ProgressCall:
    """A reporter for ``progress=True``: it is called with (done, total) and shows them with the time left.

    In a notebook it updates one bar in place, on a terminal it rewrites one line, and in a log it adds a line rarely.
    """
    show, seconds = _notebook_bar(), SECONDS_ON_A_SCREEN
    if show is None:
        rewrites = sys.stderr.isatty()
        show, seconds = _text_line(rewrites), SECONDS_ON_A_SCREEN if rewrites else SECONDS_IN_A_LOG
    started = last = monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now, finished = monotonic(), done >= total
        if not finished and now - last < seconds:
            return
        last = now
        seconds_left = (now - started) * (total - done) / max(1, done)
        show(done, total, f"{done} of {total} ({100 * done // max(1, total)} %), {seconds_left:.0f} s left")

    return report


def _text_line(rewrites: bool) -> Callable[[int, int, str], None]:
    """Writes a text to standard error, on a line of its own or, if ``rewrites``, over the earlier text."""

    def show(done: int, total: int, text: str) -> None:
        # The padding blanks out what a longer earlier line left on the terminal.
        sys.stderr.write(f"\r{text:<60}" if rewrites else text)
        sys.stderr.write("\n" if done >= total or not rewrites else "")
        sys.stderr.flush()

    return show


def _notebook_bar() -> Callable[[int, int, str], None] | None:
    """Shows a bar below the cell of a notebook that runs now; None outside of a notebook."""
    ipython = sys.modules.get("IPython")  # it is loaded wherever a notebook runs
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    handle = None

    def show(done: int, total: int, text: str) -> None:
        nonlocal handle
        html = f'<progress value="{done}" max="{max(1, total)}" aria-label="progress"></progress> {text}'
        data = {"text/plain": text, "text/html": html}
        if handle is None:
            handle = ipython.display.display(data, raw=True, display_id=True)
        else:
            handle.update(data, raw=True)

    return show
