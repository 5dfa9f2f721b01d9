"""One outer step's gradient: over the tasks in turn, or over all of them at once."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils import _pytree as pytree

from hessian_tools.data import CrossDomainTasks, Episode, ImageTasks, TaskSource
from hessian_tools.inner.meta_loss import Aux, meta_loss
from hessian_tools.inner.pretraining import pretraining_loss
from hessian_tools.loss import Loss, cast_like
from hessian_tools.rng import stream
from hessian_tools.train.classes import ClassBatches
from hessian_tools.train.config import TrainConfig
from hessian_tools.train.replay import Replay

Objective = Callable[[Tensor, Episode], tuple[Tensor, Aux]]
_NAMES = tuple(Aux.__dataclass_fields__)


def accumulate_gradient(
    config: TrainConfig, loss: Loss, theta: Tensor, meta_step: int, *, replay: Replay | None = None
) -> list[Aux]:
    """Add the mean meta-gradient of the outer step's tasks to ``theta.grad``; what each task's loss was made of.

    replay: of the run's batched steps, if it is to have one.
    """
    if not is_batched(config, loss.model):
        return [add_task_gradient(config, loss, theta, meta_step, j) for j in range(config.meta_batch)]
    episodes = [_episode(config, meta_step * config.meta_batch + j) for j in range(config.meta_batch)]
    replay = replay if _is_replayed(config, loss.model) else None
    objective = partial(_objective(config, loss, meta_step), noise=None)
    gradient, aux = batched_gradient(objective, theta.detach(), episodes, replay=replay)
    theta.grad = gradient
    return aux


def add_task_gradient(config: TrainConfig, loss: Loss, theta: Tensor, meta_step: int, j: int) -> Aux:
    """Add to ``theta.grad`` what task j of an outer step contributes to the mean."""
    index = meta_step * config.meta_batch + j
    episode = cast_like(_episode(config, index), theta)
    noise = stream(config.seed, "noise", index) if config.learner.latent else None
    value, aux = _objective(config, loss, meta_step)(theta, episode, noise=noise)
    (value / config.meta_batch).backward()
    return aux


def batched_gradient(
    objective: Objective, theta: Tensor, episodes: Sequence[Episode], *, replay: Replay | None = None
) -> tuple[Tensor, list[Aux]]:
    """Mean over the tasks of each task's own gradient.

    vmap is outside and grad inside: the gradient of a vmapped loss is silently wrong in second order
    through torch's batch normalisation, this is exact for every network.
    """

    def values(t: Tensor, episode: Episode) -> tuple[Tensor, tuple[Tensor, ...]]:
        value, aux = objective(t, episode)
        return value, tuple(getattr(aux, name) for name in _NAMES)

    stacked = cast_like(pytree.tree_map(lambda *leaves: torch.stack(leaves), *episodes), theta)
    step = vmap(grad(values, has_aux=True), in_dims=(None, 0))
    gradients, seen = replay(step, theta, stacked) if replay else step(theta, stacked)
    return gradients.mean(0), [Aux(*numbers) for numbers in zip(*seen, strict=True)]


def is_batched(config: TrainConfig, model: nn.Module) -> bool:
    """As the config says; else where it is faster: more than one task, and no convolution, which vmap would group."""
    if config.batched is not None:
        return config.batched
    if config.learner.latent is not None or config.checkpointing:  # draws per task, and vmap has neither
        return False
    if config.workers > 1:
        return False
    return config.meta_batch > 1 and not _is_convolutional(model)


def _is_replayed(config: TrainConfig, model: nn.Module) -> bool:
    """Where it pays, and the penalty's weight stays: a trace holds the one it has seen."""
    return not _is_convolutional(model) and (config.shot is None or config.shot.schedule == "constant")


def _is_convolutional(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())


def training_source(config: TrainConfig) -> TaskSource:
    """Where training episodes come from: the tasks, or labelled batches of their classes."""
    if config.learner.outer != "classes":
        return config.tasks
    tasks = config.tasks.source if isinstance(config.tasks, CrossDomainTasks) else config.tasks
    if not isinstance(tasks, ImageTasks):
        raise ValueError(f"{config.learner.name} needs classes to train on; {type(config.tasks).__name__} has none")
    return ClassBatches(tasks)


def _episode(config: TrainConfig, index: int) -> Episode:
    episode = training_source(config).episode(seed=config.seed, split="train", index=index)
    if config.pretraining is None or config.pretraining.augmentation is None:
        return episode
    support, (x, y) = episode
    augmented = config.pretraining.augmentation(x, stream(config.seed, "augmentation", index))
    return Episode(support, (augmented, y))


def _objective(config: TrainConfig, loss: Loss, meta_step: int) -> Callable[..., tuple[Tensor, Aux]]:
    shot = config.shot.at(meta_step) if config.shot else None

    def objective(theta: Tensor, episode: Episode, *, noise: torch.Generator | None) -> tuple[Tensor, Aux]:
        if config.pretraining is not None and shot is not None:
            return pretraining_loss(
                config.learner,
                loss,
                theta,
                *episode,
                shot=shot,
                pretraining=config.pretraining,
                checkpointing=config.checkpointing,
            )
        return meta_loss(
            config.learner, loss, theta, *episode, shot=shot, noise=noise, checkpointing=config.checkpointing
        )

    return objective
