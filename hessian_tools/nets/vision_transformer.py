"""A small Vision Transformer with all the derivatives that curvature needs, in forward and in reverse mode."""

import torch
from torch import Tensor, nn

# A depth such as 10**12 would fill the memory block by block. Published networks are far below this.
MAX_DEPTH = 1000


class VisionTransformer(nn.Module):
    """Patches, pre-norm transformer blocks, the mean over patches, and a linear head (Dosovitskiy 2021, small).

    outputs: the number of outputs for each image. patch: the side of a patch, which must divide both sides of an image.
    width: the length of the vector for each patch, which ``heads`` must divide. depth: the number of blocks. hidden:
    the number of units between the two linear layers of a block, twice the width by default. input_shape: (channels,
    height, width) of an image.

    There is no class token and no dropout. Attention is written out, because torch's fused attention lacks forward
    derivatives of its gradient. Layer normalisation is written out too, because that of torch 2.13 has wrong third
    derivatives, which Hessian products of a meta-objective and gradients of a Hessian penalty need; written out it
    takes about a third more time. Queries, keys and values come from one layer without bias, because the softmax would
    cancel a bias of the keys.
    """

    def __init__(
        self,
        outputs: int,
        *,
        patch: int = 7,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        hidden: int | None = None,
        input_shape: tuple[int, int, int] = (1, 28, 28),
    ) -> None:
        super().__init__()
        if depth > MAX_DEPTH:
            raise ValueError(f"depth={depth} is more blocks than any network has; give at most {MAX_DEPTH}")
        channels, height, columns = input_shape
        if height % patch or columns % patch:
            raise ValueError(f"patch={patch} does not divide images of {height}x{columns}; choose a divisor of both")
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}; choose a divisor")
        tokens = (height // patch) * (columns // patch)
        blocks = [_Block(width, heads=heads, hidden=hidden or 2 * width) for _ in range(depth)]
        self.body = nn.Sequential(_Patches(channels, patch, tokens, width), *blocks, _LayerNorm(width))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images [example, channel, height, width] -> outputs [example, output]."""
        return self.head(self.body(x).mean(1))


class _Patches(nn.Module):
    """Turns each patch into one vector, and adds a learned vector for its position in the image."""

    def __init__(self, channels: int, patch: int, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))  # the usual scale of position vectors

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(x).flatten(2).mT + self.position


class _Block(nn.Module):
    """Attention over the patches, then a perceptron for each patch; both take normalised inputs and are residual."""

    def __init__(self, width: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(_LayerNorm(width), _Attention(width, heads=heads))
        self.perceptron = nn.Sequential(
            _LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.perceptron(x)


class _Attention(nn.Module):
    """For each head softmax(q k' / sqrt(d)) v, written out; d is the length of a query, and k' the transpose of k."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # Queries, keys and values, each [example, head, patch, entry].
        q, k, v = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return self.output((weights @ v).transpose(1, 2).flatten(2))


class _LayerNorm(nn.Module):
    """Normalises to mean 0 and variance 1 over the last axis, then scales and shifts each entry (Ba 2016)."""

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight + self.bias
