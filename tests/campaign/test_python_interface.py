"""Hostile calls of the Python interface: every public function, with one argument replaced and the others valid.

``pytest -m campaign tests/campaign`` runs all calls. ``python tests/campaign/test_python_interface.py`` prints the
numbers of outcomes, and every call whose outcome is not wanted. A hostile value that is accepted counts as wrong.
"""

import inspect
import re
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from argument_values import BENIGN, HOSTILE
from outcomes import record
from public_functions import Entry, entries

import analysis
import hessian_tools as ht
from hessian_tools import curvature, data, nets, train, trajectory

RIGHT, REFUSED, DEEP, WRONG, HANG = "right", "refused by name", "deep error", "wrong", "hang"
LIMIT_S = 20
LONGEST_MESSAGE = 1000

# What a message may call an argument besides its name.
ALSO_CALLED = {
    **{name: ["batch", "batches", "support"] for name in ("batch", "data", "support", "query")},
    **{"start": ["theta"], "end": ["theta"], "v": ["V"], "states": ["state"], "input_shape": ["shape", "images"]},
    **{"checkpoints": ["checkpoint"], "evaluations": ["evaluation"], "trajectories": ["trajectory"]},
    **{"target": ["import path", "module"], "options": ["called with"], "network": ["build"], "loss": ["network"]},
    "vectors": ["columns"],
    **{"source": ["study", "such"], "path": ["folder", "such"], "folder": ["such"], "name": ["such"]},
}  # fmt: skip


def arguments(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """The named arguments of a function; options that are a TypedDict are its keys."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield parameter


@dataclass(frozen=True)
class Trial:
    """One call: an argument of a function, the value it is given, and whether that value must be accepted."""

    entry: Entry
    argument: str
    value: Any
    benign: bool

    def run(self) -> tuple[str, str]:
        """The outcome of the call, and what it raised or returned."""
        try:
            with warnings.catch_warnings(), _time_limit(LIMIT_S):
                warnings.simplefilter("ignore")
                result = self.entry.function(**{**self.entry.valid, self.argument: self.value})
        except _TooLong:
            return HANG, ""
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if self.benign:  # some valid calls are refused as well, such as those on an empty folder
                return (RIGHT if text == self._valid_error() else WRONG), text
            return (REFUSED if self._names_the_argument(error) else DEEP), text
        return (RIGHT if self.benign else WRONG), f"returned a {type(result).__name__}"

    def _valid_error(self) -> str:
        """What the valid call raises; "" if it succeeds."""
        try:
            self.entry.function(**self.entry.valid)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _names_the_argument(self, error: Exception) -> bool:
        words = "|".join([re.escape(self.argument), *ALSO_CALLED.get(self.argument, [])])
        is_kind = isinstance(error, TypeError | ValueError | OSError | analysis.UserError)
        return is_kind and len(str(error)) <= LONGEST_MESSAGE and bool(re.search(rf"\b({words})\b", str(error)))

    def __str__(self) -> str:
        value = " ".join(repr(self.value).split())
        return f"{self.entry.title}({self.argument}={value[:60]})"


class _TooLong(BaseException):
    """A call ran for longer than the limit."""


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def trials(scratch: Path) -> Iterator[Trial]:
    """All calls, one after the other."""
    for each in entries(scratch):
        for parameter in arguments(each.function):
            kind = each.kind(parameter.name)
            if kind == "-":
                continue
            for value in HOSTILE[kind]:
                may_be_none = value is None and parameter.default is None
                if not may_be_none:
                    yield Trial(each, parameter.name, value, benign=False)
            given = each.valid.get(parameter.name, parameter.default)
            of_numpy = [np.array(given)[()]] if isinstance(given, int | float) else []
            for value in (*BENIGN.get(kind, []), *of_numpy):
                yield Trial(each, parameter.name, value, benign=True)


def campaign(show: Callable[[str], None] = lambda line: None) -> dict[str, Counter[str]]:
    """Runs all calls. Returns the number of calls by function and outcome; shows each call that went wrong."""
    table: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for trial in trials(Path(scratch)):
            outcome, text = trial.run()
            table.setdefault(trial.entry.title, Counter())[outcome] += 1
            if outcome in (DEEP, WRONG, HANG):
                show(f"{outcome:10s} {trial}: {' '.join(text.split())[:150]}")
    return table


@pytest.mark.campaign
def test_no_hostile_call_gives_a_deep_error_a_wrong_number_or_hangs() -> None:
    wrong: list[str] = []
    total = sum(campaign(wrong.append).values(), Counter())
    names = {REFUSED: "refused", DEEP: "traceback"}
    for outcome in total.elements():
        record("call of the Python interface", names.get(outcome, outcome))
    assert not wrong, "\n".join(wrong)


def test_every_public_function_has_an_entry_and_every_argument_a_kind(tmp_path: Path) -> None:
    """It belongs to the plain suite, so that whoever adds a function or an argument learns of it at once."""
    listed = entries(tmp_path)
    without = [
        f"{each.title}({parameter.name})"
        for each in listed
        for parameter in arguments(each.function)
        if each.kind(parameter.name) not in {*HOSTILE, "-"}
    ]
    assert not without, "give these arguments a kind in public_functions.py"
    titles = {each.title for each in listed}
    packages = (ht, curvature, data, nets, train, trajectory, analysis)
    public = {name for package in packages for name in package.__all__ if inspect.isfunction(getattr(package, name))}
    # These two are not called with arguments of a user.
    assert public - {"load_quickdraw", "check_choice"} <= titles, "enter these functions in public_functions.py"


def main() -> None:
    """Print every call that went wrong, and the table."""
    torch.set_num_threads(1)
    total = sum(campaign(print).values(), Counter())
    print(
        f"tried {total.total()}; " + "; ".join(f"{name} {total[name]}" for name in (RIGHT, REFUSED, DEEP, WRONG, HANG))
    )


if __name__ == "__main__":
    main()
