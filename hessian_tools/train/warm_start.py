"""The meta-parameters that training begins from, parts in the order of ``hessian_tools.inner.parameters``."""

from math import sqrt

import torch
from torch import Tensor

from hessian_tools.inner.features import features
from hessian_tools.inner.leo import latent_parameters
from hessian_tools.inner.parameters import meta_parameters
from hessian_tools.loss import Loss, cast_like
from hessian_tools.rng import stream
from hessian_tools.runs import checkpoints
from hessian_tools.train.config import TrainConfig
from hessian_tools.train.outer import training_source


def first_parameters(config: TrainConfig, loss: Loss, theta: Tensor) -> Tensor:
    """The network's, then learned step sizes, a head for all training classes or LEO's own, then a projector."""
    begun = meta_parameters(config.learner, loss.layout, _network(config, theta))
    if config.learner.outer == "classes":
        begun = torch.cat([begun, _class_head(config, loss, begun)])
    if config.learner.latent is not None:
        generator = stream(config.seed, "latent")
        drawn = latent_parameters(config.learner, width=_feature_width(config, loss, begun), generator=generator)
        begun = torch.cat([begun, drawn.to(begun)])
    if config.pretraining is not None:
        drawn = config.pretraining.initial(config.tasks.outputs, stream(config.seed, "projector"))
        begun = torch.cat([begun, drawn.to(begun)])
    return begun.detach().clone()


def _network(config: TrainConfig, theta: Tensor) -> Tensor:
    if config.start is None:
        return theta
    if not config.start.exists():
        raise ValueError(f"start={config.start} does not exist; give a checkpoint file of another run")
    stored = checkpoints.load(config.start).get("theta", torch.zeros(0, device="cpu"))
    if len(stored) < len(theta):
        raise ValueError(
            f"start={config.start} holds {len(stored)} parameters, this network has {len(theta)}; build the same one"
        )
    return stored[: len(theta)].to(theta)


def _class_head(config: TrainConfig, loss: Loss, theta: Tensor) -> Tensor:
    """Matrix and bias, uniform within one over the root of the number of features, as torch draws a linear layer."""
    width = _feature_width(config, loss, theta)
    classes = training_source(config).outputs
    drawn = torch.rand(classes * (width + 1), generator=stream(config.seed, "class head"), device="cpu")
    return ((2 * drawn - 1) / sqrt(width)).to(theta)


def _feature_width(config: TrainConfig, loss: Loss, theta: Tensor) -> int:
    first = cast_like(config.tasks.episode(seed=config.seed, split="train", index=0), theta)
    return features(loss, theta, first.query[0]).shape[1]
