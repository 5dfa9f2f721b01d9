"""Tests of progress that is printed in plain lines, as it is in a pipe or a log."""

from io import StringIO

import pytest

from analysis import progress


def test_one_unit_is_named_in_the_singular():
    stream = StringIO()
    with progress.Lines(stream).stage("draw", 1, "figures"):
        pass
    assert stream.getvalue().startswith("draw: 1 figure\ndraw: done in ")


def test_lines_tell_the_time_left_once_enough_is_done(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 0.0, 6.0, 12.0, 18.0, 30.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    stream = StringIO()
    with progress.Lines(stream).stage("train", 100, "steps") as advance:
        advance(0, "nothing yet")  # at 6 s
        advance(2)  # at 12 s
        advance(18, "a note")  # at 18 s, so the other 80 steps take another 72 s
    assert stream.getvalue().splitlines() == [
        "train: 100 steps",
        "train: 0/100 steps  nothing yet",
        "train: 2/100 steps",
        "train: 20/100 steps, 1 min 12 s left  a note",
        "train: done in 30 s",
    ]
