"""Trained on one data set, judged on the test classes of another."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from analysis.progress import reporter
from benchmarks.learning.experiments import SETTINGS, SHAPES, open_source
from benchmarks.learning.results import held, write
from benchmarks.learning.runs import STEP_SIZES, Work, finished, trials
from benchmarks.learning.sources import Source
from benchmarks.learning.trial import RESULT, Trial, numbers
from benchmarks.machine import facts
from hessian_tools.runs.checkpoints import load_theta
from hessian_tools.runs.files import read_json, write_json
from hessian_tools.train import evaluate, task_loss

LEARNERS = ("untrained", "supervised", "maml", "fomaml", "anil", "boil")  # and those of them with SHOT


def judge_elsewhere(places: Mapping[str, Path | None], *, tasks: int, out: Path, results: Path) -> Path:
    """Every trained network on every other set, at its own image shape; what is on disk is not done again."""
    torch.set_num_threads(1)
    trained = [name for name in SHAPES if name in held(results)]
    pairs = [(name, target) for name in trained for target in SHAPES if target != name and _at_hand(target, places)]
    if not pairs:
        raise ValueError(f"{results} has no trained networks for the data given; run the experiments first")
    found: list[dict[str, Any]] = []
    with (say := reporter(True)).stage("transfer", len(pairs), "pairs of sets") as stage:
        for name, target in pairs:
            found += _rows(_work(name, places, out, results), target, places, tasks, out)
            stage.advance(1, f"{name} -> {target}")
    say.say(f"{len(found)} networks judged")
    return write(results / "transfer.json", {"experiment": "transfer", "tasks": tasks, "machine": facts("cpu")}, found)


def _at_hand(name: str, places: Mapping[str, Path | None]) -> bool:
    return name == "quickdraw" or places[name] is not None


def _work(name: str, places: Mapping[str, Path | None], out: Path, results: Path) -> Work:
    setting = SETTINGS[name]
    source = open_source(name, places.get(name), setting.queries, cache=out / "cache")
    return Work(name, setting, source, out / name, tuple(held(results)[name]["seeds"]))


def _rows(
    work: Work, target: str, places: Mapping[str, Path | None], tasks: int, out: Path
) -> Iterator[dict[str, Any]]:
    there = open_source(target, places.get(target), 1, cache=out / "cache", shape=SHAPES[work.name])
    for trial in trials(work, read_json(work.folder / STEP_SIZES)):
        if trial.name.removesuffix("-shot") in LEARNERS and (trial.folder / RESULT).exists():
            path = out / "transfer" / f"{trial.folder.name}-{work.name}-on-{target}.json"
            row = _judged(_whole(work, trial), there, path, tasks)
            yield row | {"name": trial.name, "trained_on": work.name, "judged_on": target}


def _whole(work: Work, trial: Trial) -> Trial:
    """The trial with the second part of its training, if it has one."""
    step = read_json(trial.folder / RESULT)["judged_at"]
    second = finished(work, trial, step) if work.setting.finishing else trial
    return second if (second.folder / RESULT).exists() else trial


def _judged(trial: Trial, there: Source, path: Path, tasks: int) -> dict[str, Any]:
    """Of a trial's chosen checkpoint, on the other set's test tasks."""
    if path.exists():
        return read_json(path)
    result = read_json(trial.folder / RESULT)
    found = evaluate(
        trial.config.learner,
        task_loss(trial.config)[0],
        load_theta(trial.folder, result["judged_at"]),
        there.judging,
        split="test",
        num_tasks=tasks,
        seed=trial.seed,
    )
    row = {name: result[name] for name in ("name", "learner", "shot", "seed")}
    row["test"] = numbers(found) | {"tasks": tasks}
    write_json(path, row)
    return row
