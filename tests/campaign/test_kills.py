"""Commands that are killed, stopped, or find the disk full: the same command then ends with the undisturbed results."""

import errno
import os
import random
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import ALL, COMMANDS, Ended, Stages, at_write, num_writes, results, run, scratch
from outcomes import BAD, record
from processes import PATIENCE, children, measuring_has_begun, start_study, stop_when, training_has_begun

pytestmark = pytest.mark.campaign

KILLS_AT_WRITES, KILLS_BY_TIME = 12, 8  # of each command
STOPS, KILLED_WORKERS = 14, 6
FULL_DISKS = 4  # of each command and each kind


def trials(name: str, number: int) -> Iterator[tuple[int, random.Random]]:
    """The numbers of the trials of a part, each with random choices of its own."""
    return ((trial, random.Random(f"{name} {trial}")) for trial in range(number))


def goes_on(stages: Stages, command: str, folder: Path, arguments: list[str]) -> str:
    """Run the same command again; returns what is wrong, or "" if it ends with the undisturbed results."""
    again = run(arguments, folder)
    if again.status != 0:
        return f"{again.outcome}: {again}"
    found, expected = _results(folder), stages.after(command)
    different = sorted(name for name in found | expected if found.get(name) != expected.get(name))
    return f"wrong: other files than undisturbed: {different[:5]}" if different else ""


def _results(folder: Path) -> dict[str, str]:
    return results(folder / "study")


def tell(part: str, problems: list[str], trial: str, outcome: str) -> None:
    record(part, outcome, trial)
    if outcome.partition(":")[0] in BAD:
        problems.append(f"{trial}: {outcome}")


def killed_at(number: int) -> Callable[[], None]:
    return at_write(number, lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_goes_on_to_the_undisturbed_results(tmp_path: Path, stages: Stages, command: str) -> None:
    arguments, problems = COMMANDS[command], []
    with scratch(tmp_path / "counted") as folder:
        writes = num_writes(arguments, stages.before(command, folder))
    for trial, rng in trials(f"kill {command}", KILLS_AT_WRITES + KILLS_BY_TIME):
        seconds = stages.seconds[command] * rng.uniform(0.05, 0.9)
        ended = None
        while ended is None or ended.status == 0:  # a command that had ended before it was killed is run again
            with scratch(tmp_path / "trial") as folder:
                stages.before(command, folder)
                if trial < KILLS_AT_WRITES:
                    ended = run(arguments, folder, prepare=killed_at(rng.randrange(writes)))
                else:
                    ended, seconds = run(arguments, folder, sent=signal.SIGKILL, after=seconds), 0.7 * seconds
                if ended.status != 0:
                    found = goes_on(stages, command, folder, arguments) if ended.status == -9 else f"wrong: {ended}"
                    tell("SIGKILL", problems, f"{command} {trial}", found or "right")
    assert not problems, "\n\n".join(problems)


def test_a_stopped_study_says_so_and_goes_on(tmp_path: Path, stages: Stages) -> None:
    problems: list[str] = []
    whole = sum(stages.seconds.values())
    for trial, rng in trials("stop", STOPS):
        sent, seconds = rng.choice([signal.SIGTERM, signal.SIGINT]), whole * rng.uniform(0.02, 0.8)
        ended = None
        while ended is None or ended.status == 0:
            with scratch(tmp_path / "trial") as folder:
                stages.before("train", folder)
                ended, seconds = run(ALL, folder, sent=sent, after=seconds), 0.7 * seconds
                said = ended.errors == "hessian-tools: stopped; the same command goes on from here\n"
                if ended.status != 0:
                    plain = ended.status == 1 and said
                    found = goes_on(stages, "report", folder, ALL) if plain else f"{_bad(ended)}: {ended}"
                    tell("SIGTERM and Ctrl-C", problems, f"{sent.name} {trial}", found or "right")
    assert not problems, "\n\n".join(problems)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks processes up in /proc")
def test_a_killed_worker_is_named_and_the_study_goes_on(tmp_path: Path, stages: Stages) -> None:
    """On the real command, because the workers are started by an interpreter of their own."""
    problems: list[str] = []
    for trial, rng in trials("worker", KILLED_WORKERS):
        with scratch(tmp_path / "trial") as folder:
            stages.before("train", folder)
            two_seeds = (folder / "small.yaml").read_text().replace("seeds: [0]", "seeds: [0, 1]")
            (folder / "two.yaml").write_text(two_seeds)
            process = start_study(folder / "study", workers=2, source=str(folder / "two.yaml"))
            begun = training_has_begun if trial % 2 else measuring_has_begun
            stop_when(process, lambda folder=folder, begun=begun: begun(folder / "study"), signal.SIGCONT)
            time.sleep(rng.uniform(0, 0.3))
            workers = children(process.pid)[1:]  # the first child tracks the resources of multiprocessing
            for worker in workers[-1:]:
                os.kill(worker, signal.SIGKILL)
            _, errors = process.communicate(timeout=PATIENCE)
            named = re.match(r"hessian-tools: worker process \d ended \(exit code -9\) while it was \w+", errors)
            again = run([*ALL[:1], "two.yaml", *ALL[2:]], folder)
            if process.returncode == 0 or (process.returncode == 1 and named):
                outcome = "right" if again.status == 0 else f"{_bad(again)}: {again}"
            else:
                outcome = f"{'traceback' if 'Traceback' in errors else 'wrong'}: {process.returncode} {errors[-500:]}"
            first_seed = _results(folder)
            same = all(
                first_seed[name] == digest
                for name, digest in stages.after("report").items()
                if name.startswith("runs/") and not name.endswith("manifest.json")
            )
            tell("killed worker", problems, f"worker {trial}", outcome if same else "wrong: other results")
    assert not problems, "\n\n".join(problems)


def _bad(ended: Ended) -> str:
    return ended.outcome if ended.outcome in BAD else "wrong"


def full_at(number: int) -> Callable[[], None]:
    """From a change of the disk on, whose number is given, there is no space left."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill() -> None:
        for name in ("fsync", "replace", "rename"):
            setattr(os, name, fail)
        fail()

    return at_write(number, fill)


def no_file_above(size: int) -> Callable[[], None]:
    """No file can be longer than a number of bytes, so that the system itself refuses a write half-way."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("command", COMMANDS)
def test_on_a_full_disk_a_command_says_so_and_goes_on_afterwards(tmp_path: Path, stages: Stages, command: str) -> None:
    arguments, problems = COMMANDS[command], []
    with scratch(tmp_path / "counted") as folder:
        writes = num_writes(arguments, stages.before(command, folder))
    for trial, rng in trials(f"full {command}", 2 * FULL_DISKS):
        with scratch(tmp_path / "trial") as folder:
            stages.before(command, folder)
            prepare = full_at(rng.randrange(writes)) if trial < FULL_DISKS else no_file_above(rng.choice([700, 900]))
            ended = run(arguments, folder, prepare=prepare)
            found = goes_on(stages, command, folder, arguments) if ended.outcome == "refused" else _bad(ended)
            if ended.outcome == "right" and trial >= FULL_DISKS:
                found = goes_on(stages, command, folder, arguments)  # all of its files are shorter than the limit
            tell("full disk", problems, f"{command} {trial} {ended}", found or ended.outcome)
    assert not problems, "\n\n".join(problems)
