"""Studies that are changed at random: each is accepted, or refused in one or two plain lines, and in time.

The mutations run in a forked process, in which torch is loaded already, with a limit of time and memory.
"""

import faulthandler
import json
import os
import random
import resource
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from outcomes import record

from analysis import pipeline
from analysis.cli import run
from analysis.errors import UserError
from analysis.study_file import BUNDLED, study_text

pytestmark = pytest.mark.campaign

NUM_MUTATIONS = 1000
SECONDS = 20  # for one mutation
MAX_MESSAGE = 1000
MEMORY = 2 << 30  # bytes, besides those that the process has at its start

HOSTILE: list[Any] = [
    None,
    True,
    "",
    "x",
    "a\x00b",
    "../..",
    "/dev/zero",
    "~nobody",
    "os:system",
    "x" * 5000,
    "é\n" * 9,
]
HOSTILE += [0, -1, 1, 3, 10**6, 10**12, 2**63, 10**30, 0.5, -0.0, 1e-300, 1e30, 1e300, float("nan"), float("inf")]
HOSTILE += [[], {}, [[]], [0, 10**12], ["a"] * 2000, {"a": {"b": "c"}}, {"weight": 1}, {"candidates": [0.1]}]
# What cannot be written by safe_dump is put into the text.
HOSTILE_TEXTS = [
    "!!int abc",
    "2001-13-45",
    "0x_",
    "9" * 5000,
    "*a",
    "&a [*a]",
    "? [a]",
    "[" * 3000,
    "{",
    "'",
    "!!set {a}",
]


def places(value: Any, path: tuple[Any, ...] = (), within: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a value; one that contains itself is entered once."""
    if any(value is outer for outer in within):
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key), (*within, value))


def mutated(text: str, rng: random.Random) -> str:
    """The text of a study in which one to three things are replaced, removed, nested or moved."""
    settings = yaml.safe_load(text)
    for _ in range(rng.randint(1, 3)):
        *parents, key = rng.choice(list(places(settings)))
        holder = settings
        for parent in parents:
            holder = holder[parent]
        kind = rng.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = {key: holder[key]} if rng.random() < 0.5 else [holder[key]]
        elif kind == 2:
            *_, other = rng.choice(list(places(settings)))
            if isinstance(holder, dict):
                holder[other] = holder[key]
        else:
            holder[key] = deepcopy(rng.choice(HOSTILE))  # a later change may be within it
        if not list(places(settings)):
            break
    written = yaml.safe_dump(settings, sort_keys=False)
    if rng.random() < 0.3:
        lines = written.split("\n")
        row = rng.randrange(len(lines))
        lines[row] = f"{lines[row].partition(':')[0]}: {rng.choice(HOSTILE_TEXTS)}"
        written = "\n".join(lines)
    return written


def outcome(file: Path) -> str:
    """What the command ``study`` makes of a file, up to the point where it would begin to work."""
    said = StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            status = run(["study", str(file), "--out", str(file.with_suffix(""))])
    except BaseException:
        return f"traceback: {traceback.format_exc()[-700:]}"
    message = said.getvalue().strip()
    if status != 2 or len(message) > MAX_MESSAGE or message.count("\n") > 1:
        return f"wrong: status {status}, {len(message)} characters: {message[:300]}"
    return "accepted" if "this study is accepted" in message else "refused"


def test_a_mutated_study_is_accepted_or_refused_in_plain_lines(tmp_path, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise UserError("this study is accepted")

    monkeypatch.setattr(pipeline, "session", stop)
    (tmp_path / "first.yaml").write_text(study_text("quickdraw"))
    assert outcome(tmp_path / "first.yaml") == "accepted"  # torch has then imported what it imports late
    written = tmp_path / "outcomes.jsonl"
    outcomes: dict[int, str] = {}
    while len(outcomes) < NUM_MUTATIONS:  # a process that hangs or is killed is followed by another
        child = os.fork()
        if child == 0:
            try_mutations(range(len(outcomes), NUM_MUTATIONS), written)
            os._exit(0)
        os.waitpid(child, 0)
        outcomes |= dict(json.loads(line) for line in written.read_text().splitlines())
    for number, found in outcomes.items():
        record("mutated study", found.replace("accepted", "right"), number)
    faults = [f"{number}: {found}" for number, found in outcomes.items() if found not in ("accepted", "refused")]
    assert not faults, "\n\n".join(faults)


def try_mutations(numbers: range, written: Path) -> None:
    """Write the outcome of each mutation to a file, and first that it hangs, in case it does."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with written.open("a") as lines, written.with_name("hangs.txt").open("a") as hangs:
        for number in numbers:
            rng = random.Random(number)
            file = written.with_name(f"{number}.yaml")
            file.write_text(mutated(study_text(rng.choice(BUNDLED)), rng))
            print(json.dumps([number, f"hang: {hangs.name} shows where"]), file=lines, flush=True)
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=hangs)
            found = outcome(file)
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps([number, found]), file=lines, flush=True)
