"""Meta-training: the loop that trains a learner's network on tasks, and keeps the run on disk.

Training has diverged when a meta-loss or a meta-gradient is not finite. The run then stops, the meta-iteration is
recorded, and what was saved before it is kept. Later checkpoints do not exist, and whatever reads the run reports them
as diverged.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
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
from hessian_tools.train.stacking import can_be_stacked, refuse_differing
from hessian_tools.train.task_chunks import TaskChunks
from hessian_tools.train.warm_start import first_parameters

DIVERGED = "diverged.json"  # the file in a run's folder that records a divergence
SAVE_SECONDS = 10.0  # the work of at most this time is lost when a run is killed

Progress = Callable[[int, float], None]  # called with (meta-iteration, query loss)


@dataclass
class _Run:
    """A run while it trains.

    theta: the meta-parameters [meta]. meta_step: the number of outer steps that have been taken.
    saved_at: the time of the last save, by the clock ``monotonic``.
    replays: the trace of the batched outer step, used where tasks are computed at once, by the number of runs that are
        trained together.
    chunks, validation_chunks: how many tasks are computed at once in an outer step, and in validation.
    shared: the processes that share the tasks of each outer step; None until they are started, or for one process.
    digest: the digest of the training; None without a folder.
    end: what is yielded in place of further checkpoints, once training has diverged.
    """

    config: TrainConfig
    progress: Progress | None
    loss: Loss
    theta: Tensor
    optimiser: torch.optim.Optimizer
    meta_step: int = 0
    saved_at: float = field(default_factory=monotonic)
    replays: defaultdict[int, Replay] = field(default_factory=lambda: defaultdict(Replay))
    chunks: TaskChunks = field(default_factory=TaskChunks)
    validation_chunks: TaskChunks = field(default_factory=TaskChunks)
    shared: SharedStep | GroupStep | None = None
    digest: str | None = None
    end: Checkpoint | None = None


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
    for (checkpoint,) in meta_train_runs([config], progress=[report]):
        yield checkpoint


def meta_train_runs(
    configs: Sequence[TrainConfig], *, progress: Sequence[Progress | None] | None = None
) -> Iterator[list[Checkpoint]]:
    """Train runs of one learner that differ in their seed; yields a checkpoint of each run as all have reached it.

    The runs take their outer steps together, and the tasks of all runs are computed at once, as those of one run are.
    The numbers of each run are those of ``meta_train`` up to rounding. This is meant for a GPU, which one run hardly
    keeps busy. Where the tasks of a run are not computed at once, or where the networks of two seeds differ in more
    than their parameters, the runs are trained in turn.

    configs: the runs. They differ in ``seed``, ``folder`` and ``start`` only; their networks are built by functions,
        which cannot be compared.
    progress: for each run a function that is called with (meta-iteration, query loss) after each of its outer steps.

    Each run has its own folder, from which it is resumed as by ``meta_train``. A run that was saved further on than
    others waits for them. A run that diverges takes no more steps, and its last checkpoint is yielded again in place of
    its further ones, until no run is left. Raises ValueError where the configurations differ in other settings, and
    the errors of ``meta_train``.
    """
    refuse_differing(configs)
    reports = [None] * len(configs) if progress is None else progress
    if len(reports) != len(configs):
        raise ValueError(f"progress holds {len(reports)} functions for {len(configs)} runs; give one for each run")
    with ExitStack() as stack:
        for config in configs:
            if config.folder:
                stack.enter_context(locked(config.folder))
        runs = [_start(*each) for each in zip(configs, reports, strict=True)]
        try:
            yield from _checkpoints(runs)
        finally:
            for run in runs:
                if run.shared:
                    run.shared.close()


def _bar_of_iterations(total: int) -> Progress:
    """A function that shows the progress of ``total`` meta-iterations; the bar appears with the first of them."""
    show = bar()
    return lambda meta_step, query_loss: show(meta_step, total)


def _checkpoints(runs: list[_Run]) -> Iterator[list[Checkpoint]]:
    """The checkpoints of some runs: for each meta-iteration that is kept, those of all runs."""
    first, *others = runs
    losses, thetas = [run.loss for run in runs], [run.theta for run in runs]
    together = [[run] for run in runs]
    if others and can_be_stacked(first.config, losses, thetas):
        together = [runs]
        for run in others:  # what is learned of the memory and the operations of a step serves all runs
            run.replays, run.chunks, run.validation_chunks = first.replays, first.chunks, first.validation_chunks
    for meta_step in first.config.checkpoints:
        for group in together:
            _advance([run for run in group if not _is_on_disk(run, meta_step)], meta_step)
        yield [_checkpoint(run, meta_step) for run in runs]
        if all(run.end for run in runs):
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
            run = _start(config, progress)
            run.shared = group
            for (checkpoint,) in _checkpoints([run]):
                group.tell("checkpoint", replace(checkpoint, theta=checkpoint.theta.cpu()))
                yield checkpoint
    except BaseException as raised:
        # GeneratorExit means that the caller takes no more checkpoints. That is no error to tell the other processes.
        error = None if isinstance(raised, GeneratorExit) else raised
        raise
    finally:
        group.close(error)


def _is_on_disk(run: _Run, meta_step: int) -> bool:
    """Whether the run has a checkpoint at this meta-iteration, in a file of its folder."""
    folder = run.config.folder
    return folder is not None and checkpoints.checkpoint_path(folder, meta_step).exists()


def _checkpoint(run: _Run, meta_step: int) -> Checkpoint:
    """The checkpoint of a run at a meta-iteration up to which it has been trained, unless it is on disk."""
    config, folder = run.config, run.config.folder
    if run.end is not None:
        return run.end
    if folder and _is_on_disk(run, meta_step):
        checkpoint = _read(folder, meta_step)
        return replace(checkpoint, theta=checkpoint.theta.to(run.theta.device))
    if folder and run.meta_step > meta_step:
        # The file was removed after training had passed it. Training anew up to it gives the same numbers.
        alone = replace(config, folder=None, checkpoints=(meta_step,))
        *_, checkpoint = meta_train(alone, progress=run.progress)
        _save_checkpoint(config, folder, checkpoint)
        return checkpoint
    checkpoint = _validate(run, meta_step)
    if folder:
        # The state comes first. If the process ended between the two with the checkpoint alone, the next call would cut
        # the metrics back to an older state, and read this checkpoint instead of writing the lines up to it again.
        _save_state(run, folder)
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


def _start(config: TrainConfig, progress: Progress | None) -> _Run:
    """The run in the state that training goes on from: the newest saved one, or that of a new run."""
    loss, theta = task_loss(config)
    first_episode = config.tasks.episode(seed=config.seed, split="train", index=0)
    _refuse_unfit(config, loss, theta, first_episode.support[0])
    loss.refuse_hidden_state(theta, first_episode.support)
    theta = first_parameters(config, loss, theta).requires_grad_()
    optimiser_class = torch.optim.Adam if config.optimiser == "adam" else torch.optim.SGD
    run = _Run(config, progress, loss, theta, optimiser_class([theta], lr=config.learning_rate))
    run.chunks = training_chunks(config, theta.device)
    run.validation_chunks = evaluation_chunks(config.tasks_at_once, theta.device)
    if config.folder is None:
        return run
    record_ownership(config.folder, "training", config.identity(loss.layout))
    run.digest = training_digest(config.folder)
    saved = checkpoints.state_path(config.folder)
    if saved.exists():
        run.meta_step = checkpoints.restore(run.optimiser, theta, saved, run=run.digest)
    # Lines are numbered from 1. Where no state was saved, ``meta_step`` is 0, so every line is dropped.
    metrics.keep_until(config.folder / metrics.NAME, run.meta_step)
    return run


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


def _advance(runs: list[_Run], until: int) -> None:
    """Take outer steps up to a meta-iteration, or until training diverges.

    Those runs that stand at the smallest meta-iteration take the next step, so that all of them soon stand together.
    """
    for run in runs:
        if not run.config.learner.is_trained:  # the untrained control takes no steps
            run.meta_step = max(run.meta_step, until)
    while going_on := [run for run in runs if run.meta_step < until and run.end is None]:
        smallest = min(run.meta_step for run in going_on)
        _outer_step([run for run in going_on if run.meta_step == smallest], until)


def _outer_step(runs: list[_Run], until: int) -> None:
    """One step of the outer optimiser of each run, which is taken only where its losses and its gradient are finite.

    until: the meta-iteration of the next checkpoint, which a run that diverges has in place of its own.
    """
    aux = _add_gradients(runs)
    # One value is read for each run, and all together, because each reading makes the CPU wait for the GPU.
    finite = torch.stack([_is_finite(run.theta.grad, parts) for run, parts in zip(runs, aux, strict=True)]).tolist()
    stepping = [(run, parts) for run, parts, is_finite in zip(runs, aux, finite, strict=True) if is_finite]
    for run, is_finite in zip(runs, finite, strict=True):
        if is_finite:
            run.optimiser.step()
        else:
            _record_divergence(run, until)
    for (run, _), row in zip(stepping, _rows([parts for _, parts in stepping]), strict=True):
        run.meta_step += 1
        row = {"meta_step": run.meta_step} | row
        config, folder = run.config, run.config.folder
        if folder:
            metrics.append(folder / metrics.NAME, row, run=run.digest)
            save_is_due = config.save_every and run.meta_step % config.save_every == 0
            if save_is_due or monotonic() - run.saved_at > SAVE_SECONDS:
                _save_state(run, folder)
        if run.progress:
            run.progress(run.meta_step, row["query_loss"])


def _add_gradients(runs: list[_Run]) -> list[list[Aux]]:
    """Put the mean meta-gradient of each run's next step into its ``theta.grad``.

    Returns, for each run, the numbers of each of its tasks for the metrics, such as its query loss.
    """
    first, *others = runs
    for run in runs:
        run.optimiser.zero_grad()
    if first.config.workers > 1 or first.shared is not None:  # such a run is never trained together with others
        first.shared = first.shared or SharedStep(first.config, first.loss, first.theta)
        return [first.shared.accumulate_gradient(first.theta, first.meta_step)]
    if len(runs) not in first.replays:
        first.replays.clear()  # a CUDA graph for another number of runs would go on holding its memory
    aux = accumulate_gradient(
        first.config,
        first.loss,
        first.theta,
        first.meta_step,
        replay=first.replays[len(runs)],
        chunks=first.chunks,
        others=[(run.config, run.theta) for run in others],
    )
    count = first.config.meta_batch
    return [aux[i * count : (i + 1) * count] for i in range(len(runs))]


def _is_finite(gradient: Tensor | None, aux: list[Aux]) -> Tensor:
    """Whether the gradient and the query losses of a step are finite, as one truth value."""
    losses = torch.stack([task_aux.query_loss for task_aux in aux])
    if gradient is None:
        return torch.zeros_like(losses[0], dtype=torch.bool)
    return torch.isfinite(gradient).all() & torch.isfinite(losses).all()


def _record_divergence(run: _Run, until: int) -> None:
    """End a run whose next step would not be finite."""
    if run.config.folder:
        fsync(run.config.folder / metrics.NAME)
        write_json(run.config.folder / DIVERGED, {"meta_step": run.meta_step + 1})
    run.end = Checkpoint(until, run.theta.detach().clone(), float("nan"), float("nan"), diverged=True)


def _rows(aux: list[list[Aux]]) -> list[dict[str, Any]]:
    """The line of the metrics of each run: means over its tasks, and None for NaN, which JSON does not have."""
    if not aux:
        return []
    # All means are read from the device together, because each reading makes the CPU wait for the GPU.
    means = [torch.stack([torch.stack(numbers).mean() for numbers in zip(*parts, strict=True)]) for parts in aux]
    rows = []
    for values in torch.stack(means).tolist():
        mean = dict(zip(Aux._fields, values, strict=True))
        # A network has collapsed where its outputs hardly differ between examples; see ``inner.collapse``.
        collapsed = {"collapsed": mean["output_variation"] < COLLAPSE_THRESHOLD}
        rows.append({k: (None if v != v else v) for k, v in mean.items()} | collapsed)
    return rows


def _validate(run: _Run, meta_step: int) -> Checkpoint:
    """The checkpoint of the present parameters, with their mean loss and accuracy over the validation tasks."""
    config, theta = run.config, run.theta.detach().clone()
    if not config.validation_tasks:
        return Checkpoint(meta_step, theta, float("nan"), float("nan"))
    losses, accuracies = query_scores(
        config.learner,
        run.loss,
        without_projector(config.learner, run.loss, theta),
        partial(config.tasks.episode, seed=config.validation_seed, split="val"),
        config.validation_tasks,
        transductive=config.transductive,
        chunks=run.validation_chunks,
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


def _save_state(run: _Run, folder: Path) -> None:
    tensors = checkpoints.state(run.optimiser, run.theta, run.meta_step)
    fsync(folder / metrics.NAME)  # a resumed run relies on the lines up to the state
    checkpoints.save(checkpoints.state_path(folder), tensors, **_file_facts(run.config, folder, run.meta_step))
    run.saved_at = monotonic()


def _file_facts(config: TrainConfig, folder: Path, meta_step: int) -> dict[str, Any]:
    """The facts that a saved file holds about itself: its run (by the digest), learner, seed and meta-iteration."""
    run_facts = {"run": training_digest(folder), "learner": config.learner.name, "seed": config.seed}
    return run_facts | {"meta_step": meta_step}
