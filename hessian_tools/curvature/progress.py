"""How long calls say how far they are: ``progress(done, all)``, in products."""

from collections.abc import Callable

Progress = Callable[[int, int], None]


def silent(done: int, everything: int) -> None:
    """Says nothing."""
