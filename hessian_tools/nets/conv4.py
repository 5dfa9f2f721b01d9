"""The four-block convolutional network of few-shot learning."""

from torch import Tensor, nn

from hessian_tools.nets.layers import convolution, refuse_small_images


class Conv4(nn.Module):
    """Four blocks of convolution, normalisation, ReLU and max-pooling, then a linear head (Vinyals 2016).

    width: filters of each block; 32, 64 and 128 are usual. normalisation: "batch" (always the
    statistics of the batch at hand), "group" (``groups`` must divide the width) or "none".
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
        refuse_small_images(input_shape, poolings=4)
        channels, height, wide = input_shape
        widths = [channels, *[width] * 4]
        blocks = [_block(widths[i], width, normalisation=normalisation, groups=groups) for i in range(4)]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(width * (height // 16) * (wide // 16), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images [example, channel, height, width] -> outputs [example, output]."""
        return self.head(self.body(x).flatten(1))


def _block(inputs: int, outputs: int, *, normalisation: str, groups: int) -> nn.Sequential:
    layers = convolution(inputs, outputs, normalisation=normalisation, groups=groups)
    return nn.Sequential(*layers, nn.ReLU(), nn.MaxPool2d(2))
