"""Meta-training: tasks, network, learner and a run on disk, put together.

Where training diverges (a meta-loss or meta-gradient that is not finite) the stated rule is: stop,
record the meta-iteration, keep what was saved before it; later checkpoints do not exist and are
reported as diverged by whatever reads the run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hessian_tools.inner.collapse import ALIKE
from hessian_tools.inner.meta_loss import Aux
from hessian_tools.inner.shot import squared_error
from hessian_tools.layout import flatten
from hessian_tools.loss import Loss, make_loss
from hessian_tools.nets import seeded
from hessian_tools.runs import checkpoints, metrics
from hessian_tools.runs.files import read_json, write_json
from hessian_tools.train.config import Checkpoint, TrainConfig
from hessian_tools.train.evaluate import evaluate
from hessian_tools.train.outer import accumulate_gradient
from hessian_tools.train.ownership import claim
from hessian_tools.train.replay import Replay
from hessian_tools.train.warm_start import first_parameters
from hessian_tools.train.workers import Workers

DIVERGED = "diverged.json"
SAVE_SECONDS = 10.0

Progress = Callable[[int, float], None]


@dataclass
class _State:
    loss: Loss
    theta: Tensor
    optimiser: torch.optim.Optimizer
    meta_step: int = 0
    saved_at: float = field(default_factory=monotonic)
    replay: Replay = field(default_factory=Replay)
    workers: Workers | None = None


def task_loss(config: TrainConfig) -> tuple[Loss, Tensor]:
    """The loss of the run's tasks, and the untrained parameters [param] on the run's device."""
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={config.device!r} is not there; this torch sees no GPU: use 'cpu'")
    model = seeded(config.network, seed=config.seed)
    theta, layout = flatten(model, head=config.head)
    criterion = F.cross_entropy if config.tasks.kind == "classification" else squared_error
    return make_loss(model.to(config.device), criterion, layout), theta.to(config.device)


def meta_train(config: TrainConfig, *, progress: Progress | None = None) -> Iterator[Checkpoint]:
    """Train; yield each checkpoint as it is reached.

    With ``config.folder`` the run is on disk and the same call resumes it: checkpoints that are
    there are yielded again from disk, and training goes on from the newest saved state with the same
    numbers an undisturbed run would have had (CPU, same number of threads). ForeignRunError where the folder
    holds a run of another learner, seed, network or the like.
    progress: called with (meta-iteration, query loss) after every outer step.
    """
    state = _start(config)
    try:
        yield from _checkpoints(state, config, progress)
    finally:
        if state.workers:
            state.workers.close()


def _checkpoints(state: _State, config: TrainConfig, progress: Progress | None) -> Iterator[Checkpoint]:
    for meta_step in config.checkpoints:
        if config.folder and checkpoints.checkpoint_path(config.folder, meta_step).exists():
            read = _read(config.folder, meta_step)
            yield replace(read, theta=read.theta.to(state.theta.device))
            continue
        if config.folder and state.meta_step > meta_step:
            yield _made_again(config, config.folder, meta_step, progress)
            continue
        finite = _advance(state, config, meta_step, progress)
        if not finite:
            yield Checkpoint(meta_step, state.theta.detach().clone(), float("nan"), float("nan"), diverged=True)
            return
        checkpoint = _validate(state, config, meta_step)
        if config.folder:
            _save_checkpoint(config.folder, checkpoint)
            _save_state(state, config.folder)
        yield checkpoint


def _made_again(config: TrainConfig, folder: Path, meta_step: int, progress: Progress | None) -> Checkpoint:
    """A checkpoint that was removed though training is past it: trained to once more, with the same numbers."""
    *_, checkpoint = meta_train(replace(config, folder=None, checkpoints=(meta_step,)), progress=progress)
    _save_checkpoint(folder, checkpoint)
    return checkpoint


def diverged_at(folder: Path) -> int | None:
    """The meta-iteration at which a run on disk left the finite numbers, or None."""
    path = folder / DIVERGED
    return int(read_json(path)["meta_step"]) if path.exists() else None


def saved_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run on disk, first to last."""
    found = sorted(int(path.stem) for path in (folder / checkpoints.FOLDER).glob("[0-9]*.safetensors"))
    return [_read(folder, meta_step) for meta_step in found]


def _start(config: TrainConfig) -> _State:
    loss, theta = task_loss(config)
    first = config.tasks.episode(seed=config.seed, split="train", index=0)
    _refuse_unfit(config, loss, theta, first.support[0])
    loss.refuse_hidden_state(theta, first.support)
    theta = first_parameters(config, loss, theta).requires_grad_()
    claim(config, loss.layout)
    state = _State(loss, theta, _optimiser(config, theta))
    if config.folder and checkpoints.state_path(config.folder).exists():
        saved = checkpoints.load(checkpoints.state_path(config.folder))
        state.meta_step = checkpoints.restore(state.optimiser, theta, saved)
        metrics.keep_until(config.folder / metrics.NAME, state.meta_step)
    elif config.folder:
        metrics.keep_until(config.folder / metrics.NAME, -1)
    return state


def _refuse_unfit(config: TrainConfig, loss: Loss, theta: Tensor, x: Tensor) -> None:
    """ValueError where the network cannot answer the tasks; more outputs than classes do no harm."""
    name, wanted = type(loss.model).__name__, config.tasks.outputs
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = loss.outputs(theta, x)
    except RuntimeError as e:
        said = str(e).splitlines()[0]
        raise ValueError(f"{name} cannot take examples of shape {tuple(x.shape[1:])}: {said}") from e
    found = outputs.shape[-1]
    if outputs.shape[:-1] != x.shape[:1] or found < wanted or (config.tasks.kind == "regression" and found != wanted):
        raise ValueError(
            f"{name} makes shape {tuple(outputs.shape)} of {len(x)} examples; the tasks need ({len(x)}, {wanted})"
        )


def _advance(state: _State, config: TrainConfig, until: int, progress: Progress | None) -> bool:
    """Outer steps up to a meta-iteration; False when one of them was not finite."""
    if config.learner.outer == "none":
        state.meta_step = max(state.meta_step, until)
    while state.meta_step < until:
        aux, finite = _outer_step(state, config)
        if not finite:
            if config.folder:
                write_json(config.folder / DIVERGED, {"meta_step": state.meta_step + 1})
            return False
        state.meta_step += 1
        row = _row(state.meta_step, aux)
        if config.folder:
            metrics.append(config.folder / metrics.NAME, row)
            if _save_is_due(state, config):
                _save_state(state, config.folder)
        if progress:
            progress(state.meta_step, row["query_loss"])
    return True


def _optimiser(config: TrainConfig, theta: Tensor) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.SGD
    return kind([theta], lr=config.learning_rate)


def _outer_step(state: _State, config: TrainConfig) -> tuple[list[Aux], bool]:
    state.optimiser.zero_grad()
    seen = _gradient(state, config)
    gradient = state.theta.grad
    losses = torch.stack([aux.query_loss for aux in seen])
    if gradient is None or not (torch.isfinite(gradient).all() and torch.isfinite(losses).all()):
        return seen, False
    state.optimiser.step()
    return seen, True


def _gradient(state: _State, config: TrainConfig) -> list[Aux]:
    if config.workers == 1:
        return accumulate_gradient(config, state.loss, state.theta, state.meta_step, replay=state.replay)
    state.workers = state.workers or Workers(config, state.loss, state.theta)
    return state.workers.accumulate_gradient(state.theta, state.meta_step)


def _row(meta_step: int, aux: list[Aux]) -> dict[str, Any]:
    mean = {name: float(torch.stack([getattr(a, name) for a in aux]).mean()) for name in Aux.__dataclass_fields__}
    collapsed = {"collapsed": mean["output_variation"] < ALIKE}
    return {"meta_step": meta_step} | {k: (None if v != v else v) for k, v in mean.items()} | collapsed


def _validate(state: _State, config: TrainConfig, meta_step: int) -> Checkpoint:
    theta = state.theta.detach().clone()
    if not config.validation_tasks:
        return Checkpoint(meta_step, theta, float("nan"), float("nan"))
    losses, accuracies = evaluate(
        config.learner,
        state.loss,
        theta,
        config.tasks,
        split="val",
        num_tasks=config.validation_tasks,
        seed=config.validation_seed,
        transductive=config.transductive,
    )
    return Checkpoint(meta_step, theta, float(losses.mean()), float(accuracies.mean()))


def _save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    numbers = torch.tensor(
        [checkpoint.validation_loss, checkpoint.validation_accuracy], dtype=torch.float64, device="cpu"
    )
    path = checkpoints.checkpoint_path(folder, checkpoint.meta_step)
    checkpoints.save(path, {"theta": checkpoint.theta, "validation": numbers})


def _read(folder: Path, meta_step: int) -> Checkpoint:
    tensors = checkpoints.load(checkpoints.checkpoint_path(folder, meta_step))
    return Checkpoint(meta_step, tensors["theta"], *tensors["validation"].tolist())


def _save_is_due(state: _State, config: TrainConfig) -> bool:
    every = config.save_every
    return bool(every and state.meta_step % every == 0) or monotonic() - state.saved_at > SAVE_SECONDS


def _save_state(state: _State, folder: Path) -> None:
    checkpoints.save(checkpoints.state_path(folder), checkpoints.state(state.optimiser, state.theta, state.meta_step))
    state.saved_at = monotonic()
