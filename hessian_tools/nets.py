"""The networks of the study: ordinary modules, no state beyond their parameters."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from hessian_tools.rng import stream_seed

NORMALISATIONS = ("batch", "none")


class Conv4(nn.Module):
    """Four blocks of convolution, normalisation, ReLU and max-pooling, then a linear head (Vinyals 2016).

    Batch normalisation always uses the statistics of the batch at hand and tracks none, so the
    forward pass is a function of parameters and input. Convolutions followed by it have no bias:
    the normalisation would cancel it and leave a null direction in every Hessian.
    """

    def __init__(
        self,
        outputs: int,
        *,
        width: int = 64,
        input_shape: tuple[int, int, int] = (1, 28, 28),
        normalisation: str = "batch",
    ) -> None:
        super().__init__()
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"normalisation={normalisation!r} is not one of {', '.join(NORMALISATIONS)}")
        channels, height, wide = input_shape
        if min(height, wide) < 16:
            raise ValueError(f"images of {height}x{wide} vanish in four poolings; use at least 16x16")
        widths = [channels, *[width] * 4]
        blocks = [_block(widths[i], width, normalised=normalisation == "batch") for i in range(4)]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(width * (height // 16) * (wide // 16), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images [example, channel, height, width] -> outputs [example, output]."""
        return self.head(self.body(x).flatten(1))


class MLP(nn.Module):
    """Linear layers with an activation between them; inputs are flattened."""

    def __init__(self, sizes: Sequence[int], *, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"sizes={list(sizes)} needs at least an input and an output size")
        hidden: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes[:-1]):
            hidden += [nn.Linear(inputs, outputs), activation()]
        self.body = nn.Sequential(*hidden)
        self.head = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [example, ...] -> outputs [example, output]."""
        return self.head(self.body(x.flatten(1)))


def seeded(build: Callable[[], nn.Module], *, seed: int) -> nn.Module:
    """A network whose initial parameters depend on the seed alone; the global random state is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(stream_seed(seed, "initial parameters")[:7], "little"))
        return build()


def normalised_weights(model: nn.Module) -> tuple[str, ...]:
    """Names of the weights whose filters a batch or instance normalisation follows.

    The loss does not change when such a filter (a slice along dimension 0) is rescaled. Found by
    looking: a convolution or linear layer directly before the normalisation in an ``nn.Sequential``.
    """
    norms = nn.modules.batchnorm._NormBase
    found = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        children = list(module.named_children())
        for (name, layer), (_, after) in pairwise(children):
            if isinstance(after, norms) and isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                found.append(".".join(part for part in (path, name, "weight") if part))
    return tuple(found)


def _block(inputs: int, outputs: int, *, normalised: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=not normalised)]
    if normalised:
        layers.append(nn.BatchNorm2d(outputs, track_running_stats=False))
    return nn.Sequential(*layers, nn.ReLU(), nn.MaxPool2d(2))
