"""How long calls say how far they are: ``progress(done, all)``, in products."""

from collections.abc import Callable

Progress = Callable[[int, int], None]


def silent(done: int, everything: int) -> None:
    """Says nothing."""


class Count:
    """Products done so far, of all there can be, told to whoever wants to know."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done = total, progress, 0

    def add(self, more: int) -> None:
        """So many more are done."""
        self.done += more
        if self.progress is not None:
            self.progress(self.done, self.total)
