"""Checks of the numbers and words that a user gives."""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from numbers import Integral


def check_whole(*, at_least: int | None = None, **counts: object) -> None:
    """Raise ValueError unless each count, passed by its name, is None or a whole number of Python or NumPy.

    at_least: the smallest number that is allowed; None allows all.

    >>> check_whole(k=2, max_matvecs=None)
    >>> check_whole(k=2.5)
    Traceback (most recent call last):
    ValueError: k=2.5 is not a whole number; give one, such as 2
    >>> check_whole(at_least=1, k=0)
    Traceback (most recent call last):
    ValueError: k=0 must be at least 1
    """
    for name, value in counts.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral):
            # Above 2**53 neighbouring floats differ by more than 1, so no whole number near the value is suggested.
            suggestion = int(value) if isinstance(value, float) and 1 <= value < 2**53 else 1
            raise ValueError(f"{name}={value!r} is not a whole number; give one, such as {suggestion}")
        if at_least is not None and value < at_least:
            raise ValueError(f"{name}={value!r} must be at least {at_least}")


def check_choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """Return the value if it is allowed; else raise ValueError with the allowed values and the nearest of them."""
    names = list(allowed)
    if value in names:
        return value
    raise ValueError(f"{name}={value!r} is not one of {', '.join(names)}{did_you_mean(str(value), names)}")


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """The end of an error message that suggests the known name nearest to a value; empty if none is near.

    >>> did_you_mean("tset", ["train", "test"])
    "; did you mean 'test'?"
    """
    near = get_close_matches(value, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def some_of(names: Iterable[object], *, at_most: int = 8) -> str:
    """The first names, each cut to 40 characters, and the number of the others.

    >>> some_of(["a", "b", "c"], at_most=2)
    'a, b and 1 more'
    >>> some_of([])
    'nothing'
    """
    rest = iter(names)
    first = [str(name) for name in islice(rest, at_most)]
    more = sum(1 for _ in rest)
    listed = ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in first)
    return (listed or "nothing") + (f" and {more} more" if more else "")
