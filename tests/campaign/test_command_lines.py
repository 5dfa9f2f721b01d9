"""Wrong command lines, for every subcommand: exit status 2 and one to three plain lines."""

import random
import shutil
from pathlib import Path

import pytest
from forked import Stages, run
from outcomes import BAD, record

pytestmark = pytest.mark.campaign

TRIALS = 300
# A valid line of each subcommand; "end" is the folder of a finished study.
VALID = {
    "demo": ["demo", "--out", "new", "--workers", "0"],
    "study": ["study", "small.yaml", "--out", "study", "--workers", "0"],
    "train": ["train", "small.yaml", "--out", "study", "--workers", "0"],
    "measure": ["measure", "study", "--workers", "0"],
    "test": ["test", "study"],
    "figures": ["figures", "study"],
    "report": ["report", "study"],
    "keep": ["keep", "study", "--out", "kept"],
    "compare": ["compare", "study", "study"],
    "info": ["info", "study"],
    "verify": ["verify", "study"],
    "explore": ["explore", "study", "--out", "new.html"],
    "new": ["new", "mine"],
}
TEXTS = ["", " ", "x", "é", "\u202ex", "-", "--", "-1", "1.5", "1e9", "9" * 400, "x" * 5000, "nan", "[]", "{", "a b"]
TEXTS += [
    "../..",
    "/dev/zero",
    "/dev/null",
    "/",
    "~nobody",
    "file.txt",
    "nowhere",
    "*",
    "$HOME",
    "\udcff",
    "a\nb\nc\nd",
]
NUMBERS = ["", "x", "1.5", "-1", "1e3", "nan", "9" * 5000, "0x10", "é", "--", "[1]", "1,2"]
OPTIONS = {"--workers": NUMBERS, "--device": TEXTS, "--seeds": NUMBERS, "--claims": TEXTS, "--data": TEXTS}
OPTIONS |= {"--from": TEXTS, "--out": ["file.txt", "/dev/zero", "/proc/nowhere", "file.txt/x"]}
MISSPELT = ["--worker", "-w", "--SEEDS", "--trust=maybe", "--yes=3", "--no-trust", "--progress", "---out", "-", "--é"]


def wrong_line(rng: random.Random, valid: list[str]) -> list[str]:
    """A valid command line in which one thing is made wrong."""
    command, *rest = valid
    kind = rng.randrange(7)
    if kind == 0:  # an option that there is not
        return [command, *rest, rng.choice(MISSPELT), rng.choice(["", "1", "x"])]
    if kind == 1:  # an option without a value
        return [command, *rest, rng.choice(list(OPTIONS))]
    if kind == 2:  # a wrong value
        option = rng.choice(list(OPTIONS))
        return [command, *rest, option, rng.choice(OPTIONS[option])]
    if kind == 3:  # a folder or a file that is none
        return [command, rng.choice(TEXTS), *rest[1:]]
    if kind == 4:  # too many or too few words
        return (
            [command]
            if rng.random() < 0.3 and command != "demo"
            else [command, *rest, rng.choice(TEXTS), rng.choice(TEXTS)]
        )
    if kind == 5:  # another command
        return [rng.choice([command.upper(), command + "x", "", "é", "-" + command, command[:-1]]), *rest]
    order = [command, *rest, "--seeds", "x"]
    rng.shuffle(order)
    return order


def test_a_wrong_command_line_is_refused_in_plain_lines(tmp_path: Path, stages: Stages) -> None:
    problems, names = [], list(VALID)
    for trial in range(TRIALS):
        rng = random.Random(f"line {trial}")
        line = wrong_line(rng, VALID[names[trial % len(names)]])
        folder = tmp_path / "folder"
        if not folder.exists():
            shutil.copytree(stages.folders["end"], folder)
            (folder / "file.txt").write_text("no study")
        ended = run(line, folder)
        outcome = ended.outcome
        record("command line", outcome, (trial, line))
        if outcome in BAD:
            problems.append(f"{trial} {outcome} {[word[:40] for word in line]}: {ended}")
        if ended.status != 2:
            shutil.rmtree(folder)
    assert not problems, "\n\n".join(problems)
