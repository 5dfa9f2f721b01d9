"""From a setting to its trials: step sizes chosen, each learner with and without SHOT, each seed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

from torch import nn

from analysis.progress import Reporter, Stage
from benchmarks.learning.settings import (
    LEARNERS,
    OMNIGLOT_STEPS,
    REGRESSION_SHOT,
    REGRESSION_STEPS,
    SHOT,
    TUNING_SEED,
    Setting,
)
from benchmarks.learning.sources import Source
from benchmarks.learning.trial import Progress, Trial, run_trial
from hessian_tools.inner.learners import Learner, maml
from hessian_tools.nets import MLP, Conv4
from hessian_tools.runs.checkpoints import checkpoint_path
from hessian_tools.runs.files import read_json, write_json
from hessian_tools.train import TrainConfig, evaluate, meta_train, task_loss

STEP_SIZES = "step_sizes.json"
FINISH, FINISHING_SEEDS = "finish", 2000  # a seed of its own, or the first part's tasks would come again
OWN_STEP_SIZE = {"leo": 1.0}  # what its learned step size starts from


@dataclass(frozen=True)
class Work:
    """An experiment about to be run: its budget, its data, and where its runs lie."""

    name: str
    setting: Setting
    source: Source
    folder: Path
    seeds: tuple[int, ...]


def run(work: Work, reporter: Reporter) -> dict[str, Any]:
    """Everything of an experiment, resumed where it stopped: the step sizes and what each trial found."""
    chosen = _step_sizes(work, reporter)
    due = trials(work, chosen)
    second = work.setting.finishing.meta_steps if work.setting.finishing else 0
    with reporter.stage(work.name, sum(trial.meta_steps + second for trial in due), "outer steps") as stage:
        found = [result for trial in due for result in _parts(work, trial, partial(_advance, stage))]
    return {"step_sizes": chosen, "trials": found}


def _parts(work: Work, trial: Trial, progress: Progress) -> Iterator[dict[str, Any]]:
    """The trial, and the second part of its training if the setting has one."""
    yield (first := run_trial(trial, progress=progress))
    if work.setting.finishing:
        second = finished(work, trial, first["judged_at"])
        yield run_trial(second, progress=progress) | {"begun_at": first["judged_at"]}


def finished(work: Work, trial: Trial, meta_step: int) -> Trial:
    """The second part of a trial's training, from its checkpoint at ``meta_step``; its tasks are new ones."""
    setting = work.setting.finishing
    assert setting is not None, f"{work.name} has no second part"
    config = replace(
        trial.config,
        start=checkpoint_path(trial.folder, meta_step),
        seed=FINISHING_SEEDS + trial.config.seed,
        checkpoints=setting.checkpoints,
        meta_batch=setting.meta_batch,
        learning_rate=setting.learning_rate,
        folder=trial.folder.with_name(f"{trial.folder.name}-{FINISH}"),
    )
    return replace(trial, name=f"{trial.name}-{FINISH}", config=config, cpu_seconds=setting.cpu_seconds)


def trials(work: Work, chosen: dict[str, Any]) -> list[Trial]:
    """Of each seed, each learner with its chosen step size, and the same with SHOT."""
    return [_trial(work, name, seed, chosen) for seed in work.seeds for name in work.setting.names()]


def _advance(stage: Stage, steps: int, note: str) -> None:
    if steps:  # a stage cannot tell the time left before anything is done
        stage.advance(steps, note)


def _step_sizes(work: Work, reporter: Reporter) -> dict[str, Any]:
    """For each learner the candidate with the best validation accuracy after a short training without SHOT."""
    path = work.folder / STEP_SIZES
    held = read_json(path) if path.exists() else {}
    wanted = [name for name in work.setting.learners if name not in held]
    with reporter.stage(f"{work.name}: step sizes", len(wanted), "learners") as stage:
        for name in wanted:
            held[name] = _chosen(work, name)
            write_json(path, held)
            stage.advance(1, f"{name} {held[name]['step_size']:g}")
    return {name: held[name] for name in work.setting.learners}


def _chosen(work: Work, name: str) -> dict[str, Any]:
    candidates = (OWN_STEP_SIZE[name],) if name in OWN_STEP_SIZE else work.setting.candidates
    if len(candidates) == 1:
        return {"step_size": candidates[0], "tried": {}, "cpu_seconds": 0.0}
    began = process_time()
    tried = {f"{alpha:g}": _short_run(work, name, alpha) for alpha in candidates}
    best = max(tried, key=tried.__getitem__)
    return {"step_size": float(best), "tried": tried, "cpu_seconds": round(process_time() - began, 1)}


def _short_run(work: Work, name: str, alpha: float) -> float:
    """Validation accuracy after the short training; 0 where it diverged."""
    steps = work.setting.tuning_steps
    config = replace(_config(work, name, TUNING_SEED, alpha), folder=None, checkpoints=(steps,))
    *_, last = meta_train(config)
    if last.diverged:
        return 0.0
    found = evaluate(
        config.learner,
        task_loss(config)[0],
        last.theta,
        work.source.judging,
        split="val",
        num_tasks=work.setting.tuning_tasks,
        seed=TUNING_SEED,
    )
    return round(found.accuracy[0], 4)


def _trial(work: Work, name: str, seed: int, chosen: dict[str, Any]) -> Trial:
    setting = work.setting
    alpha = chosen[name.removesuffix("-shot")]["step_size"]
    return Trial(
        name,
        _config(work, name, seed, alpha),
        work.source.judging,
        seed,
        validation_tasks=setting.validation_tasks,
        test_tasks=setting.test_tasks,
        target=setting.target,
        cpu_seconds=setting.cpu_seconds,
        judged="last" if work.name == "regression" else "best",
    )


def _config(work: Work, name: str, seed: int, alpha: float) -> TrainConfig:
    setting, tasks = work.setting, work.source.training
    penalty = REGRESSION_SHOT if work.name == "regression" else SHOT
    return TrainConfig(
        _learner(work, name.removesuffix("-shot"), alpha),
        tasks,
        _network(setting, tasks.input_shape, tasks.outputs),
        seed=seed,
        shot=penalty if name.endswith("-shot") else None,
        checkpoints=setting.checkpoints,
        meta_batch=setting.meta_batch,
        learning_rate=setting.learning_rate,
        validation_tasks=0,
        folder=work.folder / f"{name}-seed{seed}",
    )


def _learner(work: Work, name: str, alpha: float) -> Learner:
    if work.name == "regression":
        return maml(REGRESSION_STEPS, alpha, first_order=True)
    if work.name == "omniglot":
        return maml(OMNIGLOT_STEPS[0], alpha, evaluation_steps=OMNIGLOT_STEPS[1])
    return LEARNERS[name](alpha)


def _network(setting: Setting, shape: tuple[int, ...], outputs: int) -> Callable[[], nn.Module]:
    if len(shape) == 1:
        return partial(MLP, (shape[0], setting.width, setting.width, outputs))
    channels, height, width = shape
    return partial(Conv4, outputs, width=setting.width, input_shape=(channels, height, width))
