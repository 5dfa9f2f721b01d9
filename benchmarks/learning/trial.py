"""One training run with its validation curve and its test, resumable at any moment."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessian_tools.data import TaskSource
from hessian_tools.loss import Loss
from hessian_tools.runs.checkpoints import load_theta
from hessian_tools.runs.files import read_json, write_json
from hessian_tools.train import (
    Checkpoint,
    Evaluation,
    TrainConfig,
    best_checkpoint,
    diverged_at,
    evaluate,
    meta_train,
    task_loss,
)

RESULT, CURVE, PER_TASK = "result.json", "curve.json", "test.npy"
Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class Trial:
    """A run and how it is judged.

    config: of the training, with a folder; its own validation is off. judging, seed: the tasks of the validation curve
    and of the test: all learners of a seed meet the same, seeds meet different ones.
    target, cpu_seconds: training ends at the first checkpoint whose validation accuracy reaches the one, or whose
    training has cost the other. judged: "best" by validation, or "last".
    """

    name: str
    config: TrainConfig
    judging: TaskSource
    seed: int
    validation_tasks: int = 100
    test_tasks: int = 600
    target: float | None = None
    cpu_seconds: float | None = None
    judged: str = "best"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        assert self.config.folder is not None, "a trial is always on disk"
        return self.config.folder

    @property
    def meta_steps(self) -> int:
        """The most outer steps it may take."""
        return self.config.checkpoints[-1]


def run_trial(trial: Trial, *, progress: Progress) -> dict[str, Any]:
    """Train, validate at each checkpoint, test once; what is on disk already is not done again.

    Processor seconds are this process's; those between a kill and the state saved before it are not counted.
    progress: called with the outer steps done since the last call, and a word on how it stands.
    """
    done = trial.folder / RESULT
    if done.exists():
        progress(trial.meta_steps, trial.name)
        return read_json(done)
    curve = _curve(trial, progress)
    chosen = curve[-1] if trial.judged == "last" else _best(curve)
    result = _facts(trial) | {
        "curve": curve,
        "judged_at": chosen["meta_step"],
        "reached": trial.target is not None and _number(chosen["accuracy"]) >= trial.target,
        "diverged_at": diverged_at(trial.folder),
        "test": _test(trial, chosen["meta_step"]),
    }
    write_json(done, result)
    return result


def _curve(trial: Trial, progress: Progress) -> list[dict[str, Any]]:
    """A row for each checkpoint, written as soon as it is known."""
    path = trial.folder / CURVE
    rows = {row["meta_step"]: row for row in read_json(path)["rows"]} if path.exists() else {}
    loss, _ = task_loss(trial.config)
    cpu, wall, at = process_time(), monotonic(), 0
    for checkpoint in meta_train(trial.config):
        if checkpoint.diverged:
            break
        step = checkpoint.meta_step
        if step not in rows:
            spent = _last(rows, "cpu_seconds") + process_time() - cpu, _last(rows, "wall_seconds") + monotonic() - wall
            rows[step] = _row(trial, loss, checkpoint) | dict(zip(("cpu_seconds", "wall_seconds"), spent, strict=True))
            write_json(path, {"rows": list(rows.values())})
        progress(step - at, f"{trial.name} seed {trial.seed}: {_standing(rows[step])}")
        at = step
        if _ends(trial, rows[step]):
            break
        cpu, wall = process_time(), monotonic()
    progress(trial.meta_steps - at, trial.name)
    return list(rows.values())


def _row(trial: Trial, loss: Loss, checkpoint: Checkpoint) -> dict[str, Any]:
    found = _evaluated(trial, loss, checkpoint.theta, "val", trial.validation_tasks)
    return {"meta_step": checkpoint.meta_step} | numbers(found)


def _test(trial: Trial, meta_step: int) -> dict[str, Any]:
    """On the test tasks, from the checkpoint; the values task by task are kept beside, for paired differences."""
    loss, _ = task_loss(trial.config)
    found = _evaluated(trial, loss, load_theta(trial.folder, meta_step), "test", trial.test_tasks)
    values = found.losses if trial.config.tasks.kind == "regression" else found.accuracies
    np.save(trial.folder / PER_TASK, values.double().numpy())
    return numbers(found) | {"tasks": trial.test_tasks}


def _evaluated(trial: Trial, loss: Loss, theta: Tensor, split: str, num_tasks: int) -> Evaluation:
    learner = trial.config.learner
    return evaluate(learner, loss, theta, trial.judging, split=split, num_tasks=num_tasks, seed=trial.seed)


def numbers(found: Evaluation) -> dict[str, Any]:
    """Mean and half-width of the 95 % interval over tasks, of loss and accuracy; None where there is none."""
    named = zip(("accuracy", "accuracy_half", "loss", "loss_half"), (*found.accuracy, *found.loss), strict=True)
    return {name: float(f"{value:.5g}") if isfinite(value) else None for name, value in named}


def _best(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """By the library's one rule."""
    found = [
        Checkpoint(row["meta_step"], torch.empty(0), _number(row["loss"]), _number(row["accuracy"])) for row in curve
    ]
    step = best_checkpoint(found).meta_step
    return next(row for row in curve if row["meta_step"] == step)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _ends(trial: Trial, row: dict[str, Any]) -> bool:
    passed = trial.target is not None and _number(row["accuracy"]) >= trial.target
    return passed or (trial.cpu_seconds is not None and row["cpu_seconds"] >= trial.cpu_seconds)


def _facts(trial: Trial) -> dict[str, Any]:
    config = trial.config
    return {
        "name": trial.name,
        "learner": config.learner.name,
        "shot": config.shot is not None,
        "seed": trial.seed,
        "step_size": config.learner.step_size,
        "inner_steps": [config.learner.steps, config.learner.evaluating().steps],
        "optimiser": [config.optimiser, config.learning_rate],
        "meta_batch": config.meta_batch,
    }


def _last(rows: dict[int, dict[str, Any]], name: str) -> float:
    return max((row[name] for row in rows.values()), default=0.0)


def _standing(row: dict[str, Any]) -> str:
    name = "loss" if row["accuracy"] is None else "accuracy"
    return f"validation {name} {_number(row[name]):.4g} +- {_number(row[f'{name}_half']):.2g}"
