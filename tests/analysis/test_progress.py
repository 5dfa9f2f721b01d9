"""Progress in plain lines."""

from io import StringIO

import pytest

from analysis import progress


def test_lines_tell_the_time_left_once_enough_is_done(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 0.0, 6.0, 12.0, 18.0, 30.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    stream = StringIO()
    with progress.Lines(stream).stage("train", 100, "steps") as advance:
        advance(0, "nothing yet")  # 6 s
        advance(2)  # 12 s
        advance(18, "a note")  # 18 s: 80 more at 20 in 18 s
    assert stream.getvalue().splitlines() == [
        "train: 100 steps",
        "train: 0/100 steps  nothing yet",
        "train: 2/100 steps",
        "train: 20/100 steps, 1 min 12 s left  a note",
        "train: done in 30 s",
    ]
