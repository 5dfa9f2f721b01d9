"""What is kept of an experiment: one JSON file, small enough to lie beside the page that is made from it."""

import json
from dataclasses import asdict
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.runs import Work
from benchmarks.learning.trial import PER_TASK
from benchmarks.machine import facts
from hessian_tools.runs.files import read_json, write_text

COLUMNS = ("meta_step", "accuracy", "accuracy_half", "loss", "loss_half", "cpu_seconds", "wall_seconds")


def keep(work: Work, found: dict[str, Any], folder: Path) -> Path:
    """Write the experiment's file: its budget, machine and trials, each with its paired difference made by SHOT."""
    diverged = {(t["name"], t["seed"]) for t in found["trials"] if t["diverged_at"] is not None}
    trials = [_kept(trial) | _difference(work, trial, diverged) for trial in found["trials"]]
    head = {
        "experiment": work.name,
        "data": work.source.words,
        "seeds": list(work.seeds),
        "setting": asdict(work.setting),
        "machine": facts("cpu"),
        "step_sizes": found["step_sizes"],
        "columns": COLUMNS,
    }
    return write(folder / f"{work.name}.json", head, trials)


def write(path: Path, head: dict[str, Any], trials: list[dict[str, Any]]) -> Path:
    """JSON with a line for each entry of the head and each trial."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in head.items()]
    rows = ",\n  ".join(json.dumps(trial, allow_nan=False) for trial in trials)
    write_text(path, "{\n " + ",\n ".join([*lines, f'"trials": [\n  {rows}\n ]']) + "\n}\n")
    return path


def held(folder: Path) -> dict[str, dict[str, Any]]:
    """The experiments that a folder has results of, by name."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}


def _kept(trial: dict[str, Any]) -> dict[str, Any]:
    """The trial with its curve as rows of ``COLUMNS``; seconds to a tenth."""
    rows = [[_rounded(name, row[name]) for name in COLUMNS] for row in trial["curve"]]
    return trial | {"curve": rows}


def _rounded(name: str, value: Any) -> Any:
    return round(value, 1) if name.endswith("seconds") else value


def _difference(work: Work, trial: dict[str, Any], diverged: set[tuple[str, int]]) -> dict[str, Any]:
    """With SHOT less without it, on the same test tasks of the same seed: mean and half-width over tasks.

    Where either diverged there is none: what was tested then is an early checkpoint.
    """
    pair = {(trial["name"].removesuffix("-shot"), trial["seed"]), (trial["name"], trial["seed"])}
    if not trial["shot"] or pair & diverged:
        return {}
    plain, penalised = (
        _per_task(work, name, trial["seed"]) for name in (trial["name"].removesuffix("-shot"), trial["name"])
    )
    gained = penalised - plain
    half = 1.96 * gained.std(ddof=1) / sqrt(len(gained))
    return {"difference": [round(float(gained.mean()), 5), round(float(half), 5)]}


def _per_task(work: Work, name: str, seed: int) -> np.ndarray:
    return np.load(work.folder / f"{name}-seed{seed}" / PER_TASK)
