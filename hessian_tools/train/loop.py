"""Meta-training: the loop that trains a learner's network on tasks, and keeps the run on disk.

Training has diverged when a meta-loss or a meta-gradient is not finite. The run then stops, the meta-iteration is
recorded, and what was saved before it is kept. Later checkpoints do not exist, and whatever reads the run reports them
as diverged.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hessian_tools.failures import first_line
from hessian_tools.inner.collapse import COLLAPSE_THRESHOLD
from hessian_tools.inner.meta_loss import Aux
from hessian_tools.inner.parameters import without_projector
from hessian_tools.inner.shot import squared_error
from hessian_tools.layout import flatten
from hessian_tools.loss import Loss, make_loss
from hessian_tools.nets import seeded
from hessian_tools.progress import bar
from hessian_tools.random_states import restored_random_states
from hessian_tools.runs import checkpoints, metrics
from hessian_tools.runs.files import fsync, locked, read_json, write_json
from hessian_tools.runs.manifest import record_ownership, training_digest
from hessian_tools.train.config import Checkpoint, TrainConfig
from hessian_tools.train.evaluate import evaluation_chunks, query_scores
from hessian_tools.train.group_step import GroupStep
from hessian_tools.train.outer import SharedStep, accumulate_gradient, training_chunks
from hessian_tools.train.replay import Replay
from hessian_tools.train.task_chunks import TaskChunks
from hessian_tools.train.warm_start import first_parameters

DIVERGED = "diverged.json"  # the file in a run's folder that records a divergence
SAVE_SECONDS = 10.0  # the work of at most this time is lost when a run is killed

Progress = Callable[[int, float], None]  # called with (meta-iteration, query loss)


@dataclass
class _State:
    """The part of a run that changes while it trains.

    theta: the meta-parameters [meta]. meta_step: the number of outer steps that have been taken.
    saved_at: the time of the last save, by the clock ``monotonic``.
    replay: the trace of the batched outer step, used where tasks are computed at once.
    chunks, validation_chunks: how many tasks are computed at once in an outer step, and in validation.
    shared: the processes that share the tasks of each outer step; None until they are started, or for one process.
    run: the digest of the training; None without a folder.
    """

    loss: Loss
    theta: Tensor
    optimiser: torch.optim.Optimizer
    meta_step: int = 0
    saved_at: float = field(default_factory=monotonic)
    replay: Replay = field(default_factory=Replay)
    chunks: TaskChunks = field(default_factory=TaskChunks)
    validation_chunks: TaskChunks = field(default_factory=TaskChunks)
    shared: SharedStep | GroupStep | None = None
    run: str | None = None


def task_loss(config: TrainConfig) -> tuple[Loss, Tensor]:
    """The loss of the run's tasks, and the network's untrained parameters [param], on the run's device."""
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={config.device!r} is not available, because torch finds no GPU; use 'cpu'")
    model = seeded(config.network, seed=config.seed)
    theta, layout = flatten(model, head=config.head)
    criterion = F.cross_entropy if config.tasks.kind == "classification" else squared_error
    return make_loss(model.to(config.device), criterion, layout), theta.to(config.device)


def meta_train(
    config: TrainConfig, *, process_group: Any = None, progress: Progress | bool | None = None
) -> Iterator[Checkpoint]:
    """Train a learner, and yield each checkpoint as it is reached.

    With ``config.folder`` the run is kept on disk, and the same call resumes it. Checkpoints that exist are then read
    from disk and yielded again, and training goes on from the newest saved state with the same numbers that an
    uninterrupted run would have had (on the CPU, with the same number of threads).
    process_group: a group of ``torch.distributed``, such as ``torch.distributed.group.WORLD`` in a script that
        ``torchrun`` has started. Its processes all call meta_train with the same configuration, share the tasks of each
        outer step and yield the same checkpoints, equal to the bit to those of one process with ``batched=False``. Only
        the first one uses the folder, validates and calls ``progress``.
    progress: called with (meta-iteration, query loss) after every outer step; True shows a bar of the meta-iterations.

    Training may be interrupted at any moment, as with Ctrl-C: what is saved is whole, and the same call goes on from
    there. Without a folder it begins anew.

    Raises ForeignRunError where the folder holds a run that differs in ``TrainConfig.identity``, such as in its learner
    or seed, and FolderInUseError where another process trains in it.
    """
    report = _bar_of_iterations(config.checkpoints[-1]) if progress is True else progress or None
    if process_group is not None:
        yield from _in_group(config, process_group, report)
        return
    with locked(config.folder) if config.folder else nullcontext():
        state = _start(config)
        try:
            yield from _checkpoints(state, config, report)
        finally:
            if state.shared:
                state.shared.close()


def _bar_of_iterations(total: int) -> Progress:
    """A function that shows the progress of ``total`` meta-iterations; the bar appears with the first of them."""
    show = bar()
    return lambda meta_step, query_loss: show(meta_step, total)


def _checkpoints(state: _State, config: TrainConfig, progress: Progress | None) -> Iterator[Checkpoint]:
    for meta_step in config.checkpoints:
        checkpoint = _next_checkpoint(state, config, meta_step, progress)
        yield checkpoint
        if checkpoint.diverged:
            return


def _in_group(config: TrainConfig, process_group: Any, progress: Progress | None) -> Iterator[Checkpoint]:
    """The checkpoints of a run whose outer steps the processes of a group share; the first one keeps its folder."""
    loss, theta = task_loss(config)
    group = GroupStep(config, loss, theta, process_group)
    if not group.leads:
        theta = first_parameters(config, loss, theta).requires_grad_()
        yield from group.follow(theta)
        return
    error: BaseException | None = None
    try:
        with locked(config.folder) if config.folder else nullcontext():
            state = _start(config)
            state.shared = group
            for checkpoint in _checkpoints(state, config, progress):
                group.tell("checkpoint", replace(checkpoint, theta=checkpoint.theta.cpu()))
                yield checkpoint
    except BaseException as raised:
        # GeneratorExit means that the caller takes no more checkpoints. That is no error to tell the other processes.
        error = None if isinstance(raised, GeneratorExit) else raised
        raise
    finally:
        group.close(error)


def _next_checkpoint(state: _State, config: TrainConfig, meta_step: int, progress: Progress | None) -> Checkpoint:
    """The checkpoint at a meta-iteration: from disk if it is there, else by training up to it."""
    folder = config.folder
    if folder and checkpoints.checkpoint_path(folder, meta_step).exists():
        checkpoint = _read(folder, meta_step)
        return replace(checkpoint, theta=checkpoint.theta.to(state.theta.device))
    if folder and state.meta_step > meta_step:
        # The file was removed after training had passed it. Training anew up to it gives the same numbers.
        *_, checkpoint = meta_train(replace(config, folder=None, checkpoints=(meta_step,)), progress=progress)
        _save_checkpoint(config, folder, checkpoint)
        return checkpoint
    if not _advance(state, config, meta_step, progress):
        return Checkpoint(meta_step, state.theta.detach().clone(), float("nan"), float("nan"), diverged=True)
    checkpoint = _validate(state, config, meta_step)
    if folder:
        # The state comes first. If the process ended between the two with the checkpoint alone, the next call would cut
        # the metrics back to an older state, and read this checkpoint instead of writing the lines up to it again.
        _save_state(state, config, folder)
        _save_checkpoint(config, folder, checkpoint)
    return checkpoint


def diverged_at(folder: str | Path) -> int | None:
    """The meta-iteration at which a run on disk diverged; None where it did not."""
    path = Path(folder) / DIVERGED
    return int(read_json(path, "meta_step")["meta_step"]) if path.exists() else None


def saved_checkpoints(folder: str | Path) -> list[Checkpoint]:
    """The checkpoints of a run on disk, from the first to the last."""
    folder = Path(folder)
    meta_steps = sorted(int(path.stem) for path in (folder / checkpoints.FOLDER).glob("[0-9]*.safetensors"))
    return [_read(folder, meta_step) for meta_step in meta_steps]


def _start(config: TrainConfig) -> _State:
    """The state that training goes on from: the newest saved one, or that of a new run."""
    loss, theta = task_loss(config)
    first_episode = config.tasks.episode(seed=config.seed, split="train", index=0)
    _refuse_unfit(config, loss, theta, first_episode.support[0])
    loss.refuse_hidden_state(theta, first_episode.support)
    theta = first_parameters(config, loss, theta).requires_grad_()
    optimiser_class = torch.optim.Adam if config.optimiser == "adam" else torch.optim.SGD
    state = _State(loss, theta, optimiser_class([theta], lr=config.learning_rate))
    state.chunks = training_chunks(config, theta.device)
    state.validation_chunks = evaluation_chunks(config.tasks_at_once, theta.device)
    if config.folder is None:
        return state
    record_ownership(config.folder, "training", config.identity(loss.layout))
    state.run = training_digest(config.folder)
    saved = checkpoints.state_path(config.folder)
    if saved.exists():
        state.meta_step = checkpoints.restore(state.optimiser, theta, saved, run=state.run)
    # Lines are numbered from 1. Where no state was saved, ``meta_step`` is 0, so every line is dropped.
    metrics.keep_until(config.folder / metrics.NAME, state.meta_step)
    return state


def _refuse_unfit(config: TrainConfig, loss: Loss, theta: Tensor, x: Tensor) -> None:
    """Raise ValueError where the network's inputs or outputs do not fit the tasks.

    A classifier may have more outputs than there are classes, because no label names the further ones.
    """
    name, needed = type(loss.model).__name__, config.tasks.outputs
    try:
        with torch.no_grad(), restored_random_states():
            outputs = loss.outputs(theta, x)
    except RuntimeError as e:
        raise ValueError(f"{name} cannot take examples of shape {tuple(x.shape[1:])}: {first_line(e)}") from e
    width = outputs.shape[-1]
    if outputs.shape[:-1] != x.shape[:1] or width < needed or (config.tasks.kind == "regression" and width != needed):
        raise ValueError(
            f"{name} makes shape {tuple(outputs.shape)} of {len(x)} examples; the tasks need ({len(x)}, {needed})"
        )


def _advance(state: _State, config: TrainConfig, until: int, progress: Progress | None) -> bool:
    """Take outer steps up to a meta-iteration; returns False where training diverged on the way."""
    # The untrained control takes no steps.
    if not config.learner.is_trained:
        state.meta_step = max(state.meta_step, until)
    while state.meta_step < until:
        aux, finite = _outer_step(state, config)
        if not finite:
            if config.folder:
                fsync(config.folder / metrics.NAME)
                write_json(config.folder / DIVERGED, {"meta_step": state.meta_step + 1})
            return False
        state.meta_step += 1
        row = _row(state.meta_step, aux)
        if config.folder:
            metrics.append(config.folder / metrics.NAME, row, run=state.run)
            save_is_due = config.save_every and state.meta_step % config.save_every == 0
            if save_is_due or monotonic() - state.saved_at > SAVE_SECONDS:
                _save_state(state, config, config.folder)
        if progress:
            progress(state.meta_step, row["query_loss"])
    return True


def _outer_step(state: _State, config: TrainConfig) -> tuple[list[Aux], bool]:
    """One step of the outer optimiser, which is taken only where its losses and its gradient are finite.

    Returns the numbers of each task for the metrics, such as its query loss, and whether the step was taken.
    """
    state.optimiser.zero_grad()
    if config.workers == 1 and state.shared is None:
        aux = accumulate_gradient(
            config, state.loss, state.theta, state.meta_step, replay=state.replay, chunks=state.chunks
        )
    else:
        state.shared = state.shared or SharedStep(config, state.loss, state.theta)
        aux = state.shared.accumulate_gradient(state.theta, state.meta_step)
    gradient, losses = state.theta.grad, torch.stack([task_aux.query_loss for task_aux in aux])
    # Both are reduced to one truth value, because reading a value makes the CPU wait for the GPU.
    if gradient is None or not (torch.isfinite(gradient).all() & torch.isfinite(losses).all()):
        return aux, False
    state.optimiser.step()
    return aux, True


def _row(meta_step: int, aux: list[Aux]) -> dict[str, Any]:
    """A line of the metrics: means over the tasks, and None for NaN, which JSON does not have."""
    # All means are read from the device together, because each reading makes the CPU wait for the GPU.
    means = torch.stack([torch.stack(numbers).mean() for numbers in zip(*aux, strict=True)]).tolist()
    mean = dict(zip(Aux._fields, means, strict=True))
    # A network has collapsed where its outputs hardly differ between examples; see ``hessian_tools.inner.collapse``.
    collapsed = {"collapsed": mean["output_variation"] < COLLAPSE_THRESHOLD}
    return {"meta_step": meta_step} | {k: (None if v != v else v) for k, v in mean.items()} | collapsed


def _validate(state: _State, config: TrainConfig, meta_step: int) -> Checkpoint:
    """The checkpoint of the present parameters, with their mean loss and accuracy over the validation tasks."""
    theta = state.theta.detach().clone()
    if not config.validation_tasks:
        return Checkpoint(meta_step, theta, float("nan"), float("nan"))
    losses, accuracies = query_scores(
        config.learner,
        state.loss,
        without_projector(config.learner, state.loss, theta),
        partial(config.tasks.episode, seed=config.validation_seed, split="val"),
        config.validation_tasks,
        transductive=config.transductive,
        chunks=state.validation_chunks,
    )
    return Checkpoint(meta_step, theta, float(losses.mean()), float(accuracies.mean()))


def _save_checkpoint(config: TrainConfig, folder: Path, checkpoint: Checkpoint) -> None:
    numbers = torch.tensor(
        [checkpoint.validation_loss, checkpoint.validation_accuracy], dtype=torch.float64, device="cpu"
    )
    path = checkpoints.checkpoint_path(folder, checkpoint.meta_step)
    facts = _file_facts(config, folder, checkpoint.meta_step)
    checkpoints.save(path, {"theta": checkpoint.theta, "validation": numbers}, **facts)


def _read(folder: Path, meta_step: int) -> Checkpoint:
    tensors = checkpoints.load_checkpoint(folder, meta_step)
    return Checkpoint(meta_step, tensors["theta"], *tensors["validation"].tolist())


def _save_state(state: _State, config: TrainConfig, folder: Path) -> None:
    tensors = checkpoints.state(state.optimiser, state.theta, state.meta_step)
    fsync(folder / metrics.NAME)  # a resumed run relies on the lines up to the state
    checkpoints.save(checkpoints.state_path(folder), tensors, **_file_facts(config, folder, state.meta_step))
    state.saved_at = monotonic()


def _file_facts(config: TrainConfig, folder: Path, meta_step: int) -> dict[str, Any]:
    """The facts that a saved file holds about itself: its run (by the digest), learner, seed and meta-iteration."""
    run_facts = {"run": training_digest(folder), "learner": config.learner.name, "seed": config.seed}
    return run_facts | {"meta_step": meta_step}
