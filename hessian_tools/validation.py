"""Checks of the numbers that a user gives."""

from numbers import Integral


def check_whole(**counts: object) -> None:
    """Raise ValueError unless each count, passed by its name, is None or a whole number of Python or NumPy.

    >>> check_whole(k=2, max_matvecs=None)
    >>> check_whole(k=2.5)
    Traceback (most recent call last):
    ValueError: k=2.5 is not a whole number; give one, such as 2
    """
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            # Above 2**53 neighbouring floats differ by more than 1, so no whole number near the value is suggested.
            suggestion = int(value) if isinstance(value, float) and 1 <= value < 2**53 else 1
            raise ValueError(f"{name}={value!r} is not a whole number; give one, such as {suggestion}")
