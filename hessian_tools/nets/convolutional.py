"""The convolutional networks of few-shot learning, Conv4 and ResNet-12, and the layers of which both consist."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from hessian_tools.validation import check_choice

NORMALISATIONS = ("batch", "group", "none")
NEGATIVE_SLOPE = 0.1  # the slope of ResNet-12's leaky ReLU below 0


class Conv4(nn.Module):
    """Four blocks of convolution, normalisation, ReLU and max-pooling, then a linear head (Vinyals 2016).

    outputs: the number of outputs for each image. width: the number of filters in each block; 32, 64 and 128 are
    usual. input_shape: (channels, height, width) of an image. normalisation: "batch" (by the mean and variance of the
    current batch, in training and in evaluation), "group" (``groups`` must divide the width) or "none".
    """

    def __init__(
        self,
        outputs: int,
        *,
        width: int = 64,
        input_shape: tuple[int, int, int] = (1, 28, 28),
        normalisation: str = "batch",
        groups: int = 8,
    ) -> None:
        super().__init__()
        _refuse_small_images(input_shape)
        channels, height, columns = input_shape
        blocks = []
        for inputs in (channels, width, width, width):
            layers = _convolution(inputs, width, normalisation=normalisation, groups=groups)
            blocks.append(nn.Sequential(*layers, nn.ReLU(), nn.MaxPool2d(2)))
        self.body = nn.Sequential(*blocks)
        # Each of the four poolings halves height and width, and leaves out a last row or column without a partner.
        self.head = nn.Linear(width * (height // 16) * (columns // 16), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images [example, channel, height, width] -> outputs [example, output]."""
        return self.head(self.body(x).flatten(1))


class ResNet12(nn.Module):
    """Four residual blocks of three 3x3 convolutions and max-pooling, the mean over all positions, and a linear head.

    This is ResNet-12 as few-shot learning uses it (Oreshkin 2018, TADAM; Lee 2019, MetaOptNet), but without dropout and
    DropBlock: these draw random numbers, and the loss must be a function of the parameters.

    widths: the number of filters in each block, usually (64, 128, 256, 512) or (64, 160, 320, 640). outputs,
    input_shape, normalisation, groups: as in Conv4. residual: for each block, whether it has a shortcut (a 1x1
    convolution and its normalisation). BOIL (Oh 2021) removes the shortcut of the last block, (True, True, True,
    False), so that the inner loop can change what the head sees. The weights of the convolutions are drawn by
    Kaiming-normal initialisation with fan-out, as in MetaOptNet.
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
            raise ValueError(
                f"widths={list(widths)} and residual={list(residual)} need four entries each, one for each block"
            )
        _refuse_small_images(input_shape)
        inputs = (input_shape[0], *widths[:3])
        convolution = partial(_convolution, normalisation=normalisation, groups=groups)
        blocks = [
            _ResidualBlock(size_in, size_out, has_shortcut, convolution=convolution)
            for size_in, size_out, has_shortcut in zip(inputs, widths, residual, strict=True)
        ]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[3], outputs)
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [example, channel, height, width] -> outputs [example, output]."""
        return self.head(self.body(x).mean((-2, -1)))


class _ResidualBlock(nn.Module):
    """max-pool(leaky ReLU(three convolutions + shortcut)), or the same without the shortcut."""

    def __init__(
        self, inputs: int, outputs: int, residual: bool, *, convolution: Callable[..., tuple[nn.Module, ...]]
    ) -> None:
        super().__init__()
        first, second, third = (convolution(size, outputs) for size in (inputs, outputs, outputs))
        self.path = nn.Sequential(*first, nn.LeakyReLU(NEGATIVE_SLOPE), *second, nn.LeakyReLU(NEGATIVE_SLOPE), *third)
        self.shortcut = nn.Sequential(*convolution(inputs, outputs, kernel=1)) if residual else None
        self.out = nn.Sequential(nn.LeakyReLU(NEGATIVE_SLOPE), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.path(x) if self.shortcut is None else self.path(x) + self.shortcut(x))


def _convolution(
    inputs: int, outputs: int, *, normalisation: str, kernel: int = 3, groups: int = 8
) -> tuple[nn.Module, ...]:
    """A convolution that keeps height and width, followed by its normalisation, if it has one.

    "batch" normalises by the mean and variance of the current batch; no running statistics are kept, so that the
    forward pass is a function of parameters and input. "group" normalises over ``groups`` groups of channels of each
    image (Wu and He 2018); with one channel in each group it is instance normalisation.
    """
    check_choice("normalisation", normalisation, NORMALISATIONS)
    if normalisation == "group" and (groups < 1 or outputs % groups):
        raise ValueError(f"groups={groups} does not divide {outputs} channels; choose a divisor, or another width")
    # A normalised convolution has no bias: the normalisation would cancel it, so it would only add zero eigenvalues to
    # every Hessian.
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=normalisation == "none")
    if normalisation == "batch":
        return conv, nn.BatchNorm2d(outputs, track_running_stats=False)
    return (conv, nn.GroupNorm(groups, outputs)) if normalisation == "group" else (conv,)


def _refuse_small_images(input_shape: tuple[int, ...]) -> None:
    height, width = input_shape[1:]
    if min(height, width) < 16:  # each of the four blocks halves height and width
        raise ValueError(f"images of {height}x{width} are too small for four poolings; use at least 16x16")
