"""The gradient of one outer step: its tasks are computed one by one, at once, or shared by worker processes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from hessian_tools.batches import cast_like
from hessian_tools.curvature.engines.compiled import recorded
from hessian_tools.data import CrossDomainTasks, Episode, ImageTasks, TaskSource
from hessian_tools.inner.meta_loss import Aux, meta_loss
from hessian_tools.inner.pretraining import pretraining_loss
from hessian_tools.loss import Batch, Loss
from hessian_tools.rng import stream
from hessian_tools.runs.worker_pool import Emit, WorkerPool
from hessian_tools.torch_fixes.convolutions import at_many_points
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.train.classes import ClassBatches
from hessian_tools.train.config import TrainConfig
from hessian_tools.train.replay import Replay
from hessian_tools.train.task_chunks import TaskChunks, stacked, task_chunks

P = ParamSpec("P")
R = TypeVar("R")


def _in_precision_of_run(
    function: Callable[Concatenate[TrainConfig, P], R],
) -> Callable[Concatenate[TrainConfig, P], R]:
    """Makes a function of a run compute products of float32 in float32, unless the run has ``reduced_precision``."""
    in_float32 = full_precision(function)

    @wraps(function)
    def called(config: TrainConfig, *args: P.args, **kwargs: P.kwargs) -> R:
        return (function if config.reduced_precision else in_float32)(config, *args, **kwargs)

    return called


@_in_precision_of_run
def accumulate_gradient(
    config: TrainConfig,
    loss: Loss,
    theta: Tensor,
    meta_step: int,
    *,
    replay: Replay | None = None,
    chunks: TaskChunks | None = None,
    others: Sequence[tuple[TrainConfig, Tensor]] = (),
) -> list[Aux]:
    """Add the mean meta-gradient of an outer step's tasks to ``theta.grad``; returns the parts of each task's loss.

    replay: the trace of the run's batched steps, or their CUDA graph; None computes every step directly.
    chunks: how many tasks are computed at once. A run passes the same object at each step, so that the memory of a task
        is measured only once; None makes a new one.
    others: the configuration and theta of further runs that take the same step. They differ from this run in their
        seed alone, so that the tasks of all runs can be computed at once. Each run gets the gradient of its own tasks.
        The parts of the loss are listed for the tasks of this run first, then for those of the next one, and so on.
    """
    configs, thetas = [config, *(each for each, _ in others)], [theta, *(each for _, each in others)]
    count = config.meta_batch
    tasks = [(run, j) for run in range(len(configs)) for j in range(count)]
    if not is_batched(config, loss.model):
        return [add_task_gradient(configs[run], loss, thetas[run], meta_step, j) for run, j in tasks]
    chunks = chunks or training_chunks(config, theta.device)
    # A trace holds the penalty's weight as a constant, so a penalty with a schedule is not replayed. A convolutional
    # network is not replayed either, because tracing it takes many seconds and saves no measurable time, unless it is
    # recorded as a CUDA graph, which takes no longer than a few steps.
    constant_weight = config.shot is None or config.shot.schedule == "constant"
    traceable = recorded.switched_on(theta.device) or not _is_convolutional(loss.model)
    replay = replay if constant_weight and traceable else None
    # vmap stands outside and grad inside: the gradient of a vmapped loss is silently wrong in second order through
    # torch's batch normalisation, whereas this order is exact for every network. The tasks of a single run share its
    # theta, which costs less than one for each task.
    step = vmap(grad(partial(_task_loss, config, loss, meta_step), has_aux=True), in_dims=(0 if others else None, 0))

    def chunk_gradients(chunk: range) -> tuple[dict[int, Tensor], list[Aux]]:
        """What some tasks contribute to the mean gradient of each run, and the parts of each task's loss."""
        part = tasks[chunk.start : chunk.stop]
        tasks_of_run = Counter(run for run, _ in part)
        episodes = None
        if not chunks.one_by_one:
            episodes = stacked([training_episode(configs[run], meta_step * count + j) for run, j in part])
        if episodes is None:  # vmap refuses the network, or the tasks differ in their shapes
            points = {run: thetas[run].detach().clone().requires_grad_() for run in tasks_of_run}
            aux = [add_task_gradient(configs[run], loss, points[run], meta_step, j) for run, j in part]
            return {run: torch.zeros_like(p) if p.grad is None else p.grad for run, p in points.items()}, aux
        point = torch.stack([thetas[run].detach() for run, _ in part]) if others else theta.detach()
        episodes = cast_like(episodes, theta)
        # The number of all tasks is given, so that the first task, which is computed alone to measure its memory, is
        # computed by the same operations as the others.
        with at_many_points(len(tasks), theta.device):
            gradients, columns = replay(step, point, episodes) if replay else step(point, episodes)
        shares = gradients.split(list(tasks_of_run.values()))
        means = {run: share.sum(0).div_(count) for run, share in zip(tasks_of_run, shares, strict=True)}
        return means, [Aux(*row) for row in zip(*columns, strict=True)]

    results = chunks.run(len(tasks), chunk_gradients)
    for gradients, _ in results:
        for run, gradient in gradients.items():
            total = thetas[run].grad
            thetas[run].grad = gradient if total is None else total.add_(gradient)
    return [aux for _, part in results for aux in part]


def training_chunks(config: TrainConfig, device: torch.device) -> TaskChunks:
    """How many tasks of an outer step are computed at once; it is used where ``is_batched`` is True."""
    return task_chunks(config.tasks_at_once, device, demanded=bool(config.batched))


@_in_precision_of_run
def add_task_gradient(config: TrainConfig, loss: Loss, theta: Tensor, meta_step: int, j: int) -> Aux:
    """Add to ``theta.grad`` the contribution of task j of an outer step to the mean."""
    index = meta_step * config.meta_batch + j
    episode = cast_like(training_episode(config, index), theta)
    noise = stream(config.seed, "noise", index) if config.learner.latent else None
    value, aux = _task_loss(config, loss, meta_step, theta, episode, noise)
    (value / config.meta_batch).backward()
    return aux


@dataclass(frozen=True)
class Share:
    """The tasks of an outer step that one worker computes."""

    meta_step: int
    tasks: list[int]

    def __str__(self) -> str:
        return f"computing tasks {self.tasks[0]} to {self.tasks[-1]} of outer step {self.meta_step + 1}"


class SharedStep:
    """Computes the outer steps of one run in ``config.workers`` processes, which share the tasks of each step.

    The sum of the gradients is that of one process, to the bit. Parameters and gradients lie in shared memory.
    ``close`` ends the processes.
    """

    def __init__(self, config: TrainConfig, loss: Loss, theta: Tensor) -> None:
        self.pool = WorkerPool(config.workers)
        self._theta = theta.detach().clone().share_memory_()
        self._gradients = theta.new_zeros(config.meta_batch, len(theta)).share_memory_()
        self._aux = theta.new_zeros(config.meta_batch, len(Aux._fields)).share_memory_()
        tasks = torch.arange(config.meta_batch, device="cpu")
        self._parts = [part.tolist() for part in tasks.tensor_split(config.workers)]
        self._work = partial(_do_share, config, loss, self._theta, self._gradients, self._aux)

    def accumulate_gradient(self, theta: Tensor, meta_step: int) -> list[Aux]:
        """Do in the workers what :func:`accumulate_gradient` does in one process; their errors are raised here."""
        with torch.no_grad():
            self._theta.copy_(theta)
        self.pool.run(self._work, [Share(meta_step, part) for part in self._parts])
        # The gradients are added one by one, in the order of the tasks, because this is how backward adds them in one
        # process.
        for gradient in self._gradients:
            theta.grad = gradient.clone() if theta.grad is None else theta.grad.add_(gradient)
        return [Aux(*row) for row in self._aux.clone()]

    def close(self) -> None:
        """End the worker processes."""
        self.pool.close()


def _do_share(
    config: TrainConfig, loss: Loss, theta: Tensor, gradients: Tensor, aux: Tensor, share: Share, emit: Emit
) -> None:
    """In a worker: write the gradient and the parts of the loss of each task of the share into the shared rows."""
    point = theta.clone().requires_grad_()
    for j in share.tasks:
        point.grad = None
        aux[j] = torch.stack(add_task_gradient(config, loss, point, share.meta_step, j))
        gradients[j] = torch.zeros_like(point) if point.grad is None else point.grad


def is_batched(config: TrainConfig, model: nn.Module) -> bool:
    """Whether an outer step computes its tasks at once, as ``config.batched`` or ``config.tasks_at_once`` say.

    Where both are None, it does so for several tasks if this is faster: on a GPU, and on a CPU for a network without
    convolutions, which vmap would turn into slower, grouped ones.
    """
    if config.batched is not None:
        return config.batched
    if config.tasks_at_once is not None:
        return config.tasks_at_once > 1
    # A latent learner draws its noise task by task, and checkpointing does not work inside torch.func.
    if config.learner.latent is not None or config.checkpointing or config.workers > 1:
        return False
    return config.meta_batch > 1 and (config.device.startswith("cuda") or not _is_convolutional(model))


def _is_convolutional(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())


def training_source(config: TrainConfig) -> TaskSource:
    """The source of training episodes: the run's tasks or, for supervised training, batches of all their classes."""
    if config.learner.outer != "classes":
        return config.tasks
    tasks = config.tasks.source if isinstance(config.tasks, CrossDomainTasks) else config.tasks
    if not isinstance(tasks, ImageTasks):
        raise ValueError(f"{config.learner.name} needs classes to train on; {type(config.tasks).__name__} has none")
    return ClassBatches(tasks)


def training_episode(config: TrainConfig, index: int) -> Episode:
    """Training task number ``index`` of a run, with whatever the run changes in it at random."""
    episode = training_source(config).episode(seed=config.seed, split="train", index=index)
    if config.shuffle_labels:
        generator = stream(config.seed, "shuffled labels", index)
        episode = Episode(*(_with_permuted_labels(batch, generator) for batch in episode))
    if config.pretraining is None or config.pretraining.augmentation is None:
        return episode
    support, (x, y) = episode
    augmented = config.pretraining.augmentation(x, stream(config.seed, "augmentation", index))
    return Episode(support, (augmented, y))


def _with_permuted_labels(batch: Batch, generator: torch.Generator) -> Batch:
    x, y = batch
    return x, y[torch.randperm(len(y), generator=generator, device="cpu")]


def _task_loss(
    config: TrainConfig,
    loss: Loss,
    meta_step: int,
    theta: Tensor,
    episode: Episode,
    noise: torch.Generator | None = None,
) -> tuple[Tensor, Aux]:
    """The value that an outer step descends on one task, and its parts."""
    shot = config.shot.at(meta_step) if config.shot else None
    task, checkpointing = (config.learner, loss, theta, episode.support, episode.query), config.checkpointing
    if config.pretraining is not None and shot is not None:
        return pretraining_loss(*task, shot=shot, pretraining=config.pretraining, checkpointing=checkpointing)
    return meta_loss(*task, shot=shot, penalty=config.penalty, noise=noise, checkpointing=checkpointing)
