"""The meta-parameters that training begins from, in the order that ``hessian_tools.inner.parameters`` describes."""

from math import sqrt

import torch
from torch import Tensor

from hessian_tools.batches import cast_like
from hessian_tools.inner.features import features
from hessian_tools.inner.leo import latent_parameters
from hessian_tools.inner.parameters import meta_parameters
from hessian_tools.loss import Loss
from hessian_tools.rng import stream
from hessian_tools.runs import checkpoints
from hessian_tools.train.config import TrainConfig
from hessian_tools.train.outer import training_source


def first_parameters(config: TrainConfig, loss: Loss, theta: Tensor) -> Tensor:
    """The first meta-parameters [meta] of a run.

    The network's parameters come first. They are followed by learned step sizes, by a head for all training classes, or
    by the parameters of LEO's own networks (LEO is latent embedding optimisation). The projector of pre-training comes
    last. ``theta`` is the untrained network [param].
    """
    network = _network(config, theta)
    parts = [meta_parameters(config.learner, loss.layout, network)]
    if config.learner.outer == "classes":
        parts.append(_class_head(config, loss, network))
    if config.learner.latent is not None:
        generator, width = stream(config.seed, "latent"), _feature_width(config, loss, network)
        parts.append(latent_parameters(config.learner, width=width, generator=generator))
    if config.pretraining is not None:
        parts.append(config.pretraining.initial(config.tasks.outputs, stream(config.seed, "projector")))
    return torch.cat([part.to(theta) for part in parts]).detach().clone()


def _network(config: TrainConfig, theta: Tensor) -> Tensor:
    """The network's parameters, from the checkpoint that the run starts from; ``theta`` if it starts from none."""
    if config.start is None:
        return theta
    if not config.start.exists():
        raise ValueError(f"start={config.start} does not exist; give a checkpoint file of another run")
    stored = checkpoints.load(config.start)["theta"]
    if len(stored) < len(theta):
        raise ValueError(
            f"start={config.start} holds {len(stored)} parameters, but this network has {len(theta)};"
            " build the same one"
        )
    return stored[: len(theta)].to(theta)


def _class_head(config: TrainConfig, loss: Loss, theta: Tensor) -> Tensor:
    """Matrix and bias of a head for all training classes, drawn as torch draws a linear layer.

    All entries are uniform between plus and minus one over the square root of the number of features.
    """
    width = _feature_width(config, loss, theta)
    classes = training_source(config).outputs
    drawn = torch.rand(classes * (width + 1), generator=stream(config.seed, "class head"), device="cpu")
    return ((2 * drawn - 1) / sqrt(width)).to(theta)


def _feature_width(config: TrainConfig, loss: Loss, theta: Tensor) -> int:
    """The number of features that the network gives to its head."""
    first = cast_like(config.tasks.episode(seed=config.seed, split="train", index=0), theta)
    return features(loss, theta, first.query[0]).shape[1]
