"""Cross-entropy of a linear layer's outputs, for vocabularies so large that the logits are the largest tensors of all.

The loss, its gradient and its second derivative in a direction are computed in closed form for a chunk of the tokens at
a time. Only the logits of one chunk are in memory at the same time.

For one token with hidden state h, logits z = W h + b and probabilities p = softmax(z), the derivative in z is
q = p - e_target. In the direction (u, U, c) of (h, W, b) the logits move by t = W u + U h + c, and q moves by
r = p * (t - <p, t>). The derivative in h is W'q, and moves by W'r + U'q. The derivative in W is q h', and moves by
r h' + q u'. The derivative in b is q, and moves by r. A prime marks a transpose.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional as F

# Bytes of the logits of a chunk, if the user does not choose its size.
CHUNK_BYTES = 2**25


def linear_cross_entropy(
    hidden: Float[Tensor, "*batch width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, "*batch"],
    bias: Float[Tensor, " vocabulary"] | None = None,
    *,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """``F.cross_entropy(hidden @ weight.T + bias, targets)`` without a tensor of all logits, differentiable twice.

    ignore_index: tokens with this target do not count. chunk: how many tokens are computed at once; None takes so many
    that their logits fill 32 MiB. Raises ValueError for a wrong option, and for a target outside the vocabulary.

    >>> h, W = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> targets = torch.tensor([0, 2])
    >>> float(linear_cross_entropy(h, W, targets, chunk=1) - F.cross_entropy(h @ W.T, targets))
    0.0
    """
    vocabulary, width = weight.shape
    tokens, targets = hidden.reshape(-1, width), targets.reshape(-1)
    counted = targets != ignore_index
    size = chunk or max(1, CHUNK_BYTES // (vocabulary * hidden.element_size()))
    bias = weight.new_zeros(()).expand(vocabulary) if bias is None else bias
    try:
        total = _Total.apply(tokens, weight, bias, targets, counted, size)
    except IndexError:
        raise ValueError(f"targets holds a number that is not in 0 to {vocabulary - 1}, nor {ignore_index}") from None
    return total if reduction == "sum" else total / counted.sum()


class _InChunks(Function):
    """The base of both functions, which are given h, W, b, the targets, which tokens count, and the size of a chunk."""

    generate_vmap_rule = True  # lets torch.func.vmap batch the function

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.size = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)


class _Total(_InChunks):
    """The summed cross-entropy of the tokens that count."""

    @staticmethod
    def forward(h: Tensor, W: Tensor, b: Tensor, y: Tensor, counted: Tensor, size: int) -> Tensor:  # type: ignore[override]
        sums = _Sums()
        for part, _, target, counts in _chunks(h, y, counted, size):
            losses = F.cross_entropy(torch.addmm(b, part, W.mT), target, reduction="none")
            sums.add(torch.where(counts, losses, 0).sum())
        return sums.parts[0]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return *(slope * part for part in _Gradient.apply(*ctx.saved_tensors, ctx.size)), None, None, None

    @staticmethod
    def jvp(ctx: Any, u: Tensor, U: Tensor, c: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        gradient = _Gradient.apply(*ctx.saved_tensors, ctx.size)
        return sum((part * d).sum() for part, d in zip(gradient, (u, U, c), strict=True) if d is not None)


class _Gradient(_InChunks):
    """The derivatives of the summed cross-entropy in h, W and b.

    Their own derivative is a Hessian and therefore symmetric, so ``backward`` and ``jvp`` compute the same products.
    """

    @staticmethod
    def forward(h: Tensor, W: Tensor, b: Tensor, y: Tensor, counted: Tensor, size: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        rows, sums = [], _Sums()
        for part, _, target, counts in _chunks(h, y, counted, size):
            q = _residual(torch.addmm(b, part, W.mT), target, counts)
            rows.append(q @ W)
            sums.add(q.mT @ part, q.sum(0))
        return torch.cat(rows), *sums.parts

    @staticmethod
    def backward(ctx: Any, u: Tensor, U: Tensor, c: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return *_second_derivative(ctx.saved_tensors, ctx.size, u, U, c), None, None, None

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        pairs = zip(ctx.saved_tensors[:3], directions[:3], strict=True)
        u, U, c = (torch.zeros_like(t) if d is None else d for t, d in pairs)
        return _second_derivative(ctx.saved_tensors, ctx.size, u, U, c)


def _second_derivative(at: tuple[Tensor, ...], size: int, u: Tensor, U: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """How the derivatives in h, W and b move in the direction (u, U, c), by the formulas at the top of this file."""
    h, W, b, y, counted = at
    rows, sums = [], _Sums()
    for part, where, target, counts in _chunks(h, y, counted, size):
        z = torch.addmm(b, part, W.mT)
        p, q = torch.softmax(z, -1), _residual(z, target, counts)
        t = u[where] @ W.mT + part @ U.mT + c
        r = p * (t - (p * t).sum(-1, keepdim=True)) * counts[:, None]
        rows.append(r @ W + q @ U)
        sums.add(r.mT @ part + q.mT @ u[where], r.sum(0))
    return torch.cat(rows), *sums.parts


def _residual(z: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """softmax(z) - e_target for tokens that count, and 0 for the others."""
    target = target[:, None]
    return torch.softmax(z, -1).scatter_add(-1, target, -torch.ones_like(target, dtype=z.dtype)) * counts[:, None]


def _chunks(h: Tensor, y: Tensor, counted: Tensor, size: int) -> Iterator[tuple[Tensor, slice, Tensor, Tensor]]:
    """For each chunk the hidden states, their rows, the targets (0 where they do not count), and which tokens count."""
    for start in range(0, max(1, len(h)), size):  # without any tokens there is one empty chunk
        where = slice(start, start + size)
        yield h[where], where, torch.where(counted[where], y[where], 0), counted[where]


class _Sums:
    """Sums over the chunks, each in the memory of its first term."""

    parts: tuple[Tensor, ...] = ()

    def add(self, *terms: Tensor) -> None:
        """Add the terms of a chunk."""
        if self.parts:
            for total, term in zip(self.parts, terms, strict=True):
                total.add_(term)
        else:
            self.parts = terms
