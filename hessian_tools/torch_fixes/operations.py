"""Operations of torch written out by others, to the same values: for those whose derivatives torch has not, or wrong.

Silently wrong in torch 2.13: ``solve``, ``det`` and ``slogdet`` of one matrix under two ``vmap``, by factors of 10 to
10^9, and their third derivatives in forward mode, by 1 to 80 %; ``prelu``, ``cdist`` and ``pdist`` for several
pulled-back vectors at once; the forward derivative of ``cholesky_inverse``. The others have no second or no forward
derivative. :mod:`hessian_tools.torch_fixes.modes` puts them in place.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Callable[[Tensor], Tensor]
_REDUCTIONS: dict[str, Reduction] = {"mean": torch.mean, "sum": torch.sum, "none": lambda losses: losses}


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the length over all axes but one, or over all (-1)."""
    others = [axis for axis in range(v.ndim) if dim == -1 or axis != dim % v.ndim]
    return v * (g / (v**2).sum(others, keepdim=dim != -1).sqrt())


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """Slopes by channel, the second axis."""
    shape = [1, -1, *[1] * (input.ndim - 2)] if input.ndim > 1 else [1] * input.ndim
    return torch.where(input > 0, input, weight.reshape(shape) * input)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """A ramp from -3 to 3."""
    y = F.relu6(input + 3) / 6
    return input.copy_(y) if inplace else y


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """One half through a gate made of the other."""
    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


def rrelu(
    input: Tensor, lower: float | int = 1 / 8, upper: float | int = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """Its mean slope when evaluated; in training it draws random numbers."""
    if training:
        return F.rrelu(input, lower, upper, training, inplace)
    return F.leaky_relu(input, (lower + upper) / 2, inplace)


def conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """Convolution of [time, batch, channel]."""
    return F.conv1d(input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad).permute(2, 0, 1)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | int | None = None,
    norm_type: float | int = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sum or mean over each row of places; other bags are left to torch."""
    plain = offsets is None and max_norm is None and padding_idx is None and not scale_grad_by_freq
    if not plain or mode == "max" or input.ndim != 2:
        return F.embedding_bag(
            input,
            weight,
            offsets,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx,
        )
    entries = F.embedding(input, weight)
    if per_sample_weights is not None:
        entries = entries * per_sample_weights.unsqueeze(-1)
    return entries.sum(1) if mode == "sum" else entries.mean(1)


def cdist(x1: Tensor, x2: Tensor, p: float | int = 2.0, compute_mode: str | None = None) -> Tensor:
    """Distances of all pairs; as in torch, where two points coincide the derivative is taken as zero."""
    return _length(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def pdist(input: Tensor, p: float | int = 2.0) -> Tensor:
    """Distances of the pairs i < j."""
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _length(input[i] - input[j], p)


def _length(d: Tensor, p: float | int) -> Tensor:
    same = (d == 0).all(-1)
    d = torch.where(same.unsqueeze(-1), 1.0, d)  # a root has no derivative at zero
    if p == 0:
        length = (d != 0).to(d.dtype).sum(-1)
    elif p == float("inf"):
        length = d.abs().amax(-1)
    elif p == 2:
        length = (d**2).sum(-1).sqrt()
    else:
        length = (d.abs() ** p).sum(-1) ** (1 / p)
    return torch.where(same, 0.0, length)


def ldexp(input: Tensor, other: Tensor) -> Tensor:
    """input 2^other; to trace torch's own ends the process."""
    return input * 2.0**other


def cholesky_inverse(L: Tensor, upper: bool = False) -> Tensor:
    """(L L')^-1."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.cholesky_solve(eye.expand(L.shape), L, upper)


def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """A^-1 B, or B A^-1, by the inverse, whose derivatives are right (the triangular factors have no rule for vmap)."""
    inverse = torch.linalg.inv(A)
    if left and (B.ndim == 1 or B.shape == A.shape[:-1]):
        return (inverse @ B.unsqueeze(-1)).squeeze(-1)
    return inverse @ B if left else B @ inverse


def slogdet(A: Tensor) -> tuple[Tensor, Tensor]:
    """Sign and logarithm of the determinant, from the triangular factors."""
    sign, diagonal = _diagonal(A)
    return sign * torch.sgn(diagonal).prod(-1), diagonal.abs().log().sum(-1)


def det(A: Tensor) -> Tensor:
    """The determinant."""
    sign, diagonal = _diagonal(A)
    return sign * diagonal.prod(-1)


def logdet(A: Tensor) -> Tensor:
    """Its logarithm."""
    return det(A).log()


def _diagonal(A: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of the exchange of rows, and U's diagonal."""
    lu, pivots = torch.linalg.lu_factor(A)
    stays = torch.arange(1, A.shape[-1] + 1, device=A.device, dtype=pivots.dtype)
    return 1.0 - 2.0 * ((pivots != stays).sum(-1) % 2), lu.diagonal(dim1=-2, dim2=-1)


def mse_loss(input: Tensor, target: Tensor, *old: Any, reduction: str = "mean", **others: Any) -> Tensor:
    """Squared error; what is out of the ordinary is left to torch."""
    if _unusual(input, target, old, others):
        return F.mse_loss(input, target, *old, **{"reduction": reduction, **others})
    return _REDUCTIONS[reduction]((input - target) ** 2)


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float | int = 1.0, **others: Any
) -> Tensor:
    """Squared error near, absolute error far."""
    if _unusual(input, target, (), others):
        return F.huber_loss(input, target, reduction, delta, **others)
    far = (input - target).abs()
    return _REDUCTIONS[reduction](torch.where(far <= delta, far**2 / 2, delta * (far - delta / 2)))


def soft_margin_loss(input: Tensor, target: Tensor, *old: Any, reduction: str = "mean", **others: Any) -> Tensor:
    """log(1 + exp(-target input))."""
    if _unusual(input, target, old, others):
        return F.soft_margin_loss(input, target, *old, **{"reduction": reduction, **others})
    return _REDUCTIONS[reduction](F.softplus(-target * input))


def _unusual(input: Tensor, target: Tensor, old: tuple[Any, ...], others: dict[str, Any]) -> bool:
    """Broadcasting, of which torch warns; weights; options that torch has given up."""
    given = any(value is not None for value in (*old, *others.values()))
    return given or input.shape != target.shape or input.dtype != target.dtype
