"""Which runs may be trained together: those of one learner that differ in their seed alone."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hessian_tools.loss import Loss
from hessian_tools.outputs import tensors_of
from hessian_tools.random_states import restored_random_states
from hessian_tools.rng import stream
from hessian_tools.train.config import TrainConfig
from hessian_tools.train.outer import is_batched

# The settings in which runs that are trained together may differ. The functions that build their networks cannot be
# compared, so the networks themselves are.
OF_ONE_RUN = ("seed", "folder", "start", "network")


def refuse_differing(configs: Sequence[TrainConfig]) -> None:
    """Raise ValueError where the configurations differ in more than their seed and the files of their runs.

    Folders must differ, because each holds one run.
    """
    if not configs:
        raise ValueError("no configuration given; pass one for each run")
    folders = [config.folder for config in configs]
    for number, folder in enumerate(folders):
        if folder is not None and folder in folders[:number]:
            raise ValueError(
                f"runs {folders.index(folder)} and {number} have the same folder {folder}; give each run its own"
            )
    for name in (field.name for field in fields(TrainConfig) if field.name not in OF_ONE_RUN):
        first, *others = (_compared(config, name) for config in configs)
        for number, value in enumerate(others, start=1):
            if value != first:
                raise ValueError(
                    f"runs that are trained together differ only in seed, folder and start, but run {number} has"
                    f" {name}={value!r} and run 0 has {first!r}"
                )


def _compared(config: TrainConfig, name: str) -> Any:
    return config.tasks.digest if name == "tasks" else getattr(config, name)


def can_be_stacked(config: TrainConfig, losses: Sequence[Loss], thetas: Sequence[Tensor]) -> bool:
    """Whether the tasks of several runs can be computed at once, by the network of the first run.

    config: the settings of the runs. losses, thetas: the loss and the meta-parameters [meta] of each run.

    The first network then stands for those of the other seeds. This is right only if they are the same function of the
    parameters. A network with a random buffer or a frozen layer, drawn from the seed, is another function for each
    seed, so the outputs of all networks are compared with those of the first one, each near its own parameters.
    """
    loss = losses[0]
    if not is_batched(config, loss.model):
        return False
    if any(other.layout != loss.layout for other in losses) or len({(len(t), t.dtype) for t in thetas}) > 1:
        return False
    x = config.tasks.episode(seed=config.seed, split="train", index=0).support[0]
    return all(_same_outputs(loss, other, theta, x) for other, theta in zip(losses[1:], thetas[1:], strict=True))


def _same_outputs(one: Loss, other: Loss, theta: Tensor, x: Any) -> bool:
    """Whether two networks have the same outputs near a point, up to rounding."""
    network = theta.detach()[: one.layout.numel]  # what the learner learns besides follows the network's parameters
    # The point is moved at random. Otherwise a layer that starts at zero, as some heads and gates do, would hide how
    # the networks differ before it.
    noise = torch.randn(len(network), generator=stream(0, "same network"), dtype=torch.float32, device="cpu")
    network = network + 0.01 * noise.to(network)
    with torch.no_grad(), restored_random_states(theta.device):
        outputs = [torch.cat([t.flatten() for t in tensors_of(loss.outputs(network, x))]) for loss in (one, other)]
    scale = 100 * torch.finfo(theta.dtype).eps
    return bool((outputs[0] - outputs[1]).norm() <= scale * outputs[1].norm())
