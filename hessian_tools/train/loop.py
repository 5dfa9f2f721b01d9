"""Meta-training: the loop that trains a learner's network on tasks.

Training has diverged when a meta-loss or a meta-gradient is not finite. The run then stops, the meta-iteration is
recorded, and what was saved before it is kept. Later checkpoints do not exist, and whatever reads the run reports them
as diverged.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hessian_tools.inner.collapse import COLLAPSE_THRESHOLD
from hessian_tools.inner.meta_loss import Aux
from hessian_tools.inner.parameters import without_projector
from hessian_tools.progress import bar
from hessian_tools.runs.files import locked
from hessian_tools.train.config import Checkpoint, TrainConfig
from hessian_tools.train.evaluate import evaluation_chunks, query_scores
from hessian_tools.train.group_step import GroupStep
from hessian_tools.train.outer import SharedStep, accumulate_gradient, training_chunks
from hessian_tools.train.replay import Replay
from hessian_tools.train.run import Progress, Run, start, task_loss
from hessian_tools.train.stacking import can_be_stacked, name_of, naming_the_run, refuse_differing
from hessian_tools.train.task_chunks import TaskChunks
from hessian_tools.train.warm_start import first_parameters


@dataclass
class _Stack:
    """Runs that take their outer steps together: those of several seeds, or a single one.

    The tasks of several runs are computed at once, so what is learned of the memory and of the operations of a step
    serves all of them.

    all_runs: the runs of the call, which may be in several stacks.
    chunks, validation_chunks: how many tasks are computed at once in an outer step, and in validation.
    replay: the trace of the batched outer step of ``num_replayed`` runs, used where tasks are computed at once.
    shared: the processes that share the tasks of each outer step of a single run; None until they are started, or
        where there are none.
    """

    runs: list[Run]
    all_runs: list[Run]
    chunks: TaskChunks
    validation_chunks: TaskChunks
    replay: Replay | None = None
    num_replayed: int = 0
    shared: SharedStep | GroupStep | None = None

    def close(self) -> None:
        """End the processes that share the tasks."""
        if self.shared:
            self.shared.close()


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
    the errors of ``meta_train``. An error ends all runs. Where it is raised by the gradient of an outer step or by a
    validation, the states of all runs that have not ended are saved first, whatever the error is. Where it is the error
    of some runs alone, as of one whose task cannot be read, a note of the error (``__notes__``) names them, and says
    from where the same call resumes the others.
    """
    refuse_differing(configs)
    reports = [None] * len(configs) if progress is None else progress
    if len(reports) != len(configs):
        raise ValueError(f"progress holds {len(reports)} functions for {len(configs)} runs; give one for each run")
    with ExitStack() as contexts:
        for config in configs:
            if config.folder:
                contexts.enter_context(locked(config.folder))
        runs: list[Run] = []
        for config, report in zip(configs, reports, strict=True):
            try:
                runs.append(start(config, report))
            except Exception as error:
                if len(configs) > 1:
                    error.add_note(f"It was raised as {name_of(config)} began; the other runs are as they were.")
                raise
        stacks = _stacks(runs)
        for stack in stacks:
            contexts.callback(stack.close)
        yield from _checkpoints(stacks)


def _bar_of_iterations(total: int) -> Progress:
    """A function that shows the progress of ``total`` meta-iterations; the bar appears with the first of them."""
    show = bar()
    return lambda meta_step, query_loss: show(meta_step, total)


def _stacks(runs: list[Run]) -> list[_Stack]:
    """One stack of all runs, if their tasks can be computed at once, or else one of each run."""
    config, device = runs[0].config, runs[0].theta.device
    together = len(runs) > 1 and can_be_stacked(config, [run.loss for run in runs], [run.theta for run in runs])
    return [
        _Stack(stacked, runs, training_chunks(config, device), evaluation_chunks(config.tasks_at_once, device))
        for stacked in ([runs] if together else [[run] for run in runs])
    ]


def _checkpoints(stacks: list[_Stack]) -> Iterator[list[Checkpoint]]:
    """The checkpoints of the runs of all stacks, in their order: for each meta-iteration that is kept, one of each."""
    for meta_step in stacks[0].runs[0].config.checkpoints:
        for stack in stacks:
            _advance(stack, meta_step)
        yield [checkpoint for stack in stacks for checkpoint in _checkpoints_at(stack, meta_step)]
        if all(run.end for run in stacks[0].all_runs):
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
            (stack,) = _stacks([start(config, progress)])
            stack.shared = group
            for (checkpoint,) in _checkpoints([stack]):
                group.tell("checkpoint", replace(checkpoint, theta=checkpoint.theta.cpu()))
                yield checkpoint
    except BaseException as raised:
        # GeneratorExit means that the caller takes no more checkpoints. That is no error to tell the other processes.
        error = None if isinstance(raised, GeneratorExit) else raised
        raise
    finally:
        group.close(error)


def _checkpoints_at(stack: _Stack, meta_step: int) -> list[Checkpoint]:
    """The checkpoints of a stack's runs at a meta-iteration up to which they have been trained.

    Those that are not on disk are validated together.
    """
    ready = [run for run in stack.runs if run.end is None and not run.is_on_disk(meta_step)]
    passed = [run for run in ready if run.meta_step > meta_step]
    validated = [run for run in ready if run.meta_step <= meta_step]
    when = f"in its validation at meta-iteration {meta_step}"
    with naming_the_run(validated, stack.all_runs, when, lambda run: _validate(stack, [run], meta_step)):
        made = _validate(stack, validated, meta_step)
    for run, checkpoint in zip(validated, made, strict=True):
        # The state comes first. If the process ended between the two with the checkpoint alone, the next call would cut
        # the metrics back to an older state, and read this checkpoint instead of writing the lines up to it again.
        run.save_state()
        run.save_checkpoint(checkpoint)
    for run in passed:
        # The file was removed after training had passed it. Training anew up to it gives the same numbers.
        alone = replace(run.config, folder=None, checkpoints=(meta_step,))
        *_, checkpoint = meta_train(alone, progress=run.progress)
        run.save_checkpoint(checkpoint)
        made.append(checkpoint)
    new = dict(zip(map(id, validated + passed), made, strict=True))
    return [run.end or new.get(id(run)) or run.saved_checkpoint(meta_step) for run in stack.runs]


def _advance(stack: _Stack, until: int) -> None:
    """Take outer steps up to a meta-iteration, or until training diverges; not in runs that are on disk at it.

    Those runs that stand at the smallest meta-iteration take the next step, so that all of them soon stand together.
    """
    runs = [run for run in stack.runs if not run.is_on_disk(until)]
    for run in runs:
        if not run.config.learner.is_trained:  # the untrained control takes no steps
            run.meta_step = max(run.meta_step, until)
    while going_on := [run for run in runs if run.meta_step < until and run.end is None]:
        smallest = min(run.meta_step for run in going_on)
        _outer_step(stack, [run for run in going_on if run.meta_step == smallest], until)


def _outer_step(stack: _Stack, runs: list[Run], until: int) -> None:
    """One step of the outer optimiser of some runs, which is taken only where the losses and the gradient are finite.

    until: the meta-iteration of the next checkpoint, which a run that diverges has in place of its own.
    """
    when = f"at meta-iteration {runs[0].meta_step + 1}"
    with naming_the_run(runs, stack.all_runs, when, partial(_try_gradient, stack)):
        aux = _add_gradients(stack, runs)
    # The numbers of all runs are read together, because each reading makes the CPU wait for the GPU.
    numbers = torch.stack([_numbers(run.theta.grad, parts) for run, parts in zip(runs, aux, strict=True)]).tolist()
    for run, (is_finite, *means) in zip(runs, numbers, strict=True):
        if is_finite:
            run.optimiser.step()
            run.finish_step(_row(means))
        else:
            run.diverge(until)


def _add_gradients(stack: _Stack, runs: list[Run]) -> list[list[Aux]]:
    """Put the mean meta-gradient of the next step of some runs into their ``theta.grad``.

    Returns, for each run, the numbers of each of its tasks for the metrics, such as its query loss.
    """
    first, *others = runs
    for run in runs:
        run.optimiser.zero_grad()
    if first.config.workers > 1 or stack.shared is not None:  # such a run is alone in its stack
        stack.shared = stack.shared or SharedStep(first.config, first.loss, first.theta)
        return [stack.shared.accumulate_gradient(first.theta, first.meta_step)]
    if len(runs) != stack.num_replayed:
        # A CUDA graph for another number of runs would go on holding its memory, so it is dropped.
        stack.replay, stack.num_replayed = Replay(), len(runs)
    aux = accumulate_gradient(
        first.config,
        first.loss,
        first.theta,
        first.meta_step,
        replay=stack.replay,
        chunks=stack.chunks,
        others=[(run.config, run.theta) for run in others],
    )
    count = first.config.meta_batch
    return [aux[i * count : (i + 1) * count] for i in range(len(runs))]


def _try_gradient(stack: _Stack, run: Run) -> None:
    """Compute the gradient of the next step of a run alone, and forget it."""
    theta = run.theta.detach().clone().requires_grad_()
    accumulate_gradient(run.config, stack.runs[0].loss, theta, run.meta_step, chunks=stack.chunks)


def _numbers(gradient: Tensor | None, aux: list[Aux]) -> Tensor:
    """What is read of a step: 1 if its gradient and query losses are finite, else 0; then the means over its tasks."""
    columns = Aux(*map(torch.stack, zip(*aux, strict=True)))
    means = torch.stack([column.mean() for column in columns])
    if gradient is None:
        return torch.cat([means.new_zeros(1), means])
    is_finite = torch.isfinite(gradient).all() & torch.isfinite(columns.query_loss).all()
    return torch.cat([is_finite[None].to(means), means])


def _row(means: list[float]) -> dict[str, Any]:
    """The entries of a line of the metrics, with None for NaN, which JSON does not have."""
    mean = dict(zip(Aux._fields, means, strict=True))
    # A network has collapsed where its outputs hardly differ between examples; see ``hessian_tools.inner.collapse``.
    collapsed = {"collapsed": mean["output_variation"] < COLLAPSE_THRESHOLD}
    return {k: (None if v != v else v) for k, v in mean.items()} | collapsed


def _validate(stack: _Stack, runs: list[Run], meta_step: int) -> list[Checkpoint]:
    """The checkpoints of the present parameters of some runs, with their means over the validation tasks.

    The runs have the same validation tasks, because their configurations agree in all that these depend on. All runs
    are therefore computed in one pass.
    """
    if not runs:
        return []
    config, loss = runs[0].config, stack.runs[0].loss
    thetas = [run.theta.detach().clone() for run in runs]
    if not config.validation_tasks:
        return [Checkpoint(meta_step, theta, float("nan"), float("nan")) for theta in thetas]
    scores = query_scores(
        config.learner,
        loss,
        torch.stack([without_projector(config.learner, loss, theta) for theta in thetas]),
        partial(config.tasks.episode, seed=config.validation_seed, split="val"),
        config.validation_tasks,
        transductive=config.transductive,
        chunks=stack.validation_chunks,
    )
    # The means of all runs are read together, because each reading makes the CPU wait for the GPU.
    means = torch.stack([torch.stack([row.mean() for row in score]).double() for score in scores]).tolist()
    return [Checkpoint(meta_step, *numbers) for numbers in zip(thetas, *means, strict=True)]
