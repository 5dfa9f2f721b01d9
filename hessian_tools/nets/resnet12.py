"""ResNet-12 as few-shot learning uses it (Oreshkin 2018, TADAM; Lee 2019, MetaOptNet), without dropout."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from hessian_tools.nets.layers import convolution, refuse_small_images

SLOPE = 0.1  # of the leaky ReLU


class ResNet12(nn.Module):
    """Four residual blocks of three 3x3 convolutions, each ending in max-pooling; global mean; a linear head.

    widths: filters of the blocks, (64, 128, 256, 512) or (64, 160, 320, 640). normalisation, groups:
    as in Conv4. residual: which blocks have their shortcut (1x1 convolution, normalisation); BOIL takes
    it from the last one, (True, True, True, False), so that the inner loop can change what the head sees
    (Oh 2021). Convolutions begin Kaiming-normal over their outputs, as in MetaOptNet. No dropout and no
    DropBlock: they draw random numbers, and a loss must be a function of its parameters.
    """

    def __init__(
        self,
        outputs: int,
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        input_shape: tuple[int, int, int] = (3, 84, 84),
        normalisation: str = "batch",
        groups: int = 8,
        residual: Sequence[bool] = (True, True, True, True),
    ) -> None:
        super().__init__()
        if len(widths) != 4 or len(residual) != 4:
            raise ValueError(f"widths={list(widths)} and residual={list(residual)} need four entries, one a block")
        refuse_small_images(input_shape, poolings=4)
        inputs = (input_shape[0], *widths[:3])
        conv = partial(convolution, normalisation=normalisation, groups=groups)
        blocks = [_Block(*sizes, conv=conv) for sizes in zip(inputs, widths, residual, strict=True)]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[3], outputs)
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [example, channel, height, width] -> outputs [example, output]."""
        return self.head(self.body(x).mean((-2, -1)))


class _Block(nn.Module):
    """max-pool(leaky ReLU(three convolutions + shortcut)); without the shortcut where it is not wanted."""

    def __init__(
        self, inputs: int, outputs: int, residual: bool, *, conv: Callable[..., tuple[nn.Module, ...]]
    ) -> None:
        super().__init__()
        first, second, third = conv(inputs, outputs), conv(outputs, outputs), conv(outputs, outputs)
        self.path = nn.Sequential(*first, nn.LeakyReLU(SLOPE), *second, nn.LeakyReLU(SLOPE), *third)
        self.shortcut = nn.Sequential(*conv(inputs, outputs, kernel=1)) if residual else None
        self.out = nn.Sequential(nn.LeakyReLU(SLOPE), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.path(x) if self.shortcut is None else self.path(x) + self.shortcut(x))
