"""One outer step's gradient: over the tasks in turn, or over all of them at once."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils import _pytree as pytree

from hessian_tools.data import CrossDomainTasks, Episode, ImageTasks, TaskSource
from hessian_tools.loss import Loss, cast_like
from hessian_tools.meta.objective import Aux, meta_loss
from hessian_tools.meta.pretraining import pretraining_loss
from hessian_tools.rng import stream
from hessian_tools.train.classes import ClassBatches
from hessian_tools.train.config import TrainConfig

Objective = Callable[[Tensor, Episode], tuple[Tensor, Aux]]
_NAMES = tuple(Aux.__dataclass_fields__)


def accumulate_gradient(config: TrainConfig, loss: Loss, theta: Tensor, meta_step: int) -> list[Aux]:
    """Add the mean meta-gradient of the outer step's tasks to ``theta.grad``; what each task's loss was made of."""
    episodes = [_episode(config, meta_step * config.meta_batch + j) for j in range(config.meta_batch)]
    objective = _objective(config, loss, meta_step)
    if is_batched(config, loss.model):
        gradient, aux = batched_gradient(partial(objective, noise=None), theta.detach(), episodes)
        theta.grad = gradient
        return aux
    seen = []
    for j, episode in enumerate(episodes):
        noise = stream(config.seed, "noise", meta_step * config.meta_batch + j) if config.learner.latent else None
        value, aux_of_task = objective(theta, cast_like(episode, theta), noise=noise)
        (value / config.meta_batch).backward()
        seen.append(aux_of_task)
    return seen


def batched_gradient(objective: Objective, theta: Tensor, episodes: Sequence[Episode]) -> tuple[Tensor, list[Aux]]:
    """Mean over the tasks of each task's own gradient.

    vmap is outside and grad inside: the gradient of a vmapped loss is silently wrong in second order
    through torch's batch normalisation, this is exact for every network.
    """

    def values(t: Tensor, episode: Episode) -> tuple[Tensor, tuple[Tensor, ...]]:
        value, aux = objective(t, episode)
        return value, tuple(getattr(aux, name) for name in _NAMES)

    stacked = cast_like(pytree.tree_map(lambda *leaves: torch.stack(leaves), *episodes), theta)
    gradients, seen = vmap(grad(values, has_aux=True), in_dims=(None, 0))(theta, stacked)
    return gradients.mean(0), [Aux(*numbers) for numbers in zip(*seen, strict=True)]


def is_batched(config: TrainConfig, model: nn.Module) -> bool:
    """As the config says; else where it is faster: more than one task, and no convolution, which vmap would group."""
    if config.batched is not None:
        return config.batched
    if config.learner.latent is not None:  # draws per task, which vmap has not
        return False
    convolutional = any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    return config.meta_batch > 1 and not convolutional


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
            return pretraining_loss(config.learner, loss, theta, *episode, shot=shot, pretraining=config.pretraining)
        return meta_loss(config.learner, loss, theta, *episode, shot=shot, noise=noise)

    return objective
