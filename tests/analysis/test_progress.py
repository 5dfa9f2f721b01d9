"""Tests of progress: plain lines, as in a pipe or a log, and bars in a terminal."""

import re
from io import StringIO

import pytest
from rich.console import Console

from analysis import progress


def test_one_unit_is_named_in_the_singular():
    stream = StringIO()
    with progress.Lines(stream).stage("draw", 1, "figures"):
        pass
    assert stream.getvalue().startswith("draw: 1 figure\ndraw: done in ")


@pytest.mark.parametrize("width", [70, 80, 100])
def test_a_bar_in_a_narrow_terminal_cuts_neither_counts_nor_times(width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")  # a terminal without cursor movements, "dumb", would get no bar that moves
    out = StringIO()
    bars = progress.Bars(Console(file=out, width=width, force_terminal=True))
    # An interrupted stage is shown as it was, with its note; otherwise only a clock would redraw the bar.
    with pytest.raises(KeyboardInterrupt), bars.stage("train", 72000, "meta-iterations") as advance:
        advance(12345)
        advance(12345, "maml-shot seed 0  loss 1.24")
        raise KeyboardInterrupt
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert re.search(r"24690/72000 meta-iterations \d:\d\d:\d\d left [\d-]:[\d-]{2}:[\d-]{2}", shown)
    assert re.search(r" 0/72000 meta-iterations +\d:\d\d:\d\d left -:--:--", shown)
    assert max(map(len, shown.replace("\r", "\n").splitlines())) <= width


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
