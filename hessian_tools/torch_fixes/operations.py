"""Replacements, with equal values, for operations whose second derivatives are wrong or missing in torch 2.13.

Each docstring says what is wrong in torch. Where it says nothing, torch has no second or no forward derivative of the
operation, and raises an error. Each function takes the arguments of its namesake in torch.
"""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# The named tuples that torch returns.
RETURN_TYPES: Any = torch.return_types
Reduction = Callable[[Tensor], Tensor]
_REDUCTIONS: dict[str, Reduction] = {"mean": torch.mean, "sum": torch.sum, "none": lambda losses: losses}


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Weight normalisation g v / |v|, where the length is taken over all axes but ``dim``, or over all for -1.

    torch's kernel has no forward derivative, and its second derivative in reverse mode is silently wrong and not
    symmetric, by 20 to 90 % on a 3-2 linear layer.
    """
    # The axes of the length.
    others = [axis for axis in range(v.ndim) if dim == -1 or axis != dim % v.ndim]
    return v * (g / (v**2).sum(others, keepdim=dim != -1).sqrt())


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """ReLU with a slope for each channel, the second axis.

    torch's derivative is silently wrong where several vectors are pulled back at once.
    """
    shape = [1, -1, *[1] * (input.ndim - 2)] if input.ndim > 1 else [1] * input.ndim
    return torch.where(input > 0, input, weight.reshape(shape) * input)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """0 below -3, 1 above 3, and linear between them."""
    y = F.relu6(input + 3) / 6
    return input.copy_(y) if inplace else y


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """The gated linear unit: one half of the input times the sigmoid of the other."""
    a, b = input.chunk(2, dim)
    return a * torch.sigmoid(b)


def rrelu(
    input: Tensor, lower: float | int = 1 / 8, upper: float | int = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """ReLU with the mean of two slopes; in training mode it is torch's own, which draws the slope at random."""
    if training:
        return F.rrelu(input, lower, upper, training, inplace)
    return F.leaky_relu(input, (lower + upper) / 2, inplace)


def conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """The convolution along the first axis of an input [time, batch, channel]."""
    return F.conv1d(input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad).permute(2, 0, 1)


def embedding_bag(*args: Any, **kwargs: Any) -> Tensor:
    """The sum or mean of the embeddings in each row; bags of other kinds are left to torch."""
    call = signature(F.embedding_bag).bind(*args, **kwargs)
    call.apply_defaults()
    option = call.arguments
    plain = option["offsets"] is None and option["max_norm"] is None and option["padding_idx"] is None
    if not plain or option["scale_grad_by_freq"] or option["mode"] == "max" or option["input"].ndim != 2:
        return F.embedding_bag(*args, **kwargs)
    entries: Tensor = F.embedding(option["input"], option["weight"])
    if option["per_sample_weights"] is not None:
        entries = entries * option["per_sample_weights"].unsqueeze(-1)
    return entries.sum(1) if option["mode"] == "sum" else entries.mean(1)


def cdist(x1: Tensor, x2: Tensor, p: float | int = 2.0, compute_mode: str | None = None) -> Tensor:
    """The distances of all pairs; as in torch, the derivative is taken as zero where two points coincide.

    torch's derivative is silently wrong where several vectors are pulled back at once.
    """
    return _length(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def pdist(input: Tensor, p: float | int = 2.0) -> Tensor:
    """The distances of the pairs i < j; torch's pdist has the same fault as its cdist, see :func:`cdist`."""
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _length(input[i] - input[j], p)


def _length(d: Tensor, p: float | int) -> Tensor:
    """The p-norm of the last axis; 0 with a zero derivative where d is 0."""
    same = (d == 0).all(-1)
    d = torch.where(same.unsqueeze(-1), 1.0, d)  # because a root has no derivative at zero
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
    """input 2^other; tracing torch's own operation crashes the process."""
    return input * 2.0**other


def cholesky_inverse(L: Tensor, upper: bool = False) -> Tensor:
    """(L L')^-1; torch's forward derivative of it is silently wrong."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.cholesky_solve(eye.expand(L.shape), L, upper)


def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """A^-1 B, or B A^-1 if not left.

    torch's derivatives are silently wrong: for one matrix under two nested ``vmap`` by factors of 10 to 10^9, and at
    third order in forward mode by 1 to 80 %. Those of :func:`slogdet` and :func:`det` have the same fault.
    """
    # The inverse is used because its derivatives are right. The triangular factors have no rule for vmap.
    return _times_inverse(torch.linalg.inv(A), B, left)


def solve_ex(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False) -> Any:
    """:func:`solve`, and the number that says whether A could be inverted (0 if so)."""
    inverse, info = torch.linalg.inv_ex(A, check_errors=check_errors)
    return RETURN_TYPES.linalg_solve_ex((_times_inverse(inverse, B, left), info))


def _times_inverse(inverse: Tensor, B: Tensor, left: bool) -> Tensor:
    """The inverse times B, which may hold vectors in place of matrices; or, if not left, B times the inverse."""
    if left and (B.ndim == 1 or B.shape == inverse.shape[:-1]):
        return (inverse @ B.unsqueeze(-1)).squeeze(-1)
    return inverse @ B if left else B @ inverse


def triangular_solve(
    b: Tensor, A: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Any:
    """A^-1 b for a triangular A, and A; torch's derivative is silently wrong by 40 % under two nested ``vmap``."""
    triangle = A.triu() if upper else A.tril()
    if transpose:
        triangle, upper = triangle.mT, not upper
    solution = torch.linalg.solve_triangular(triangle, b, upper=upper, unitriangular=unitriangular)
    return RETURN_TYPES.triangular_solve((solution, A))


def slogdet(A: Tensor) -> Any:
    """The sign and the logarithm of |determinant|, from the triangular factors; for torch's fault see :func:`solve`."""
    sign, diagonal = _diagonal(A)
    return RETURN_TYPES.linalg_slogdet((sign * torch.sgn(diagonal).prod(-1), diagonal.abs().log().sum(-1)))


def det(A: Tensor) -> Tensor:
    """The determinant; for torch's fault see :func:`solve`."""
    sign, diagonal = _diagonal(A)
    return sign * diagonal.prod(-1)


def logdet(A: Tensor) -> Tensor:
    """The logarithm of the determinant."""
    return det(A).log()


def _diagonal(A: Tensor) -> tuple[Tensor, Tensor]:
    """The determinant (+-1) of the permutation P in A = PLU, and the diagonal of U."""
    lu, pivots = torch.linalg.lu_factor(A)
    # A pivot that differs from its own position exchanges two rows, which changes the sign.
    in_place = torch.arange(1, A.shape[-1] + 1, device=A.device, dtype=pivots.dtype)
    return 1.0 - 2.0 * ((pivots != in_place).sum(-1) % 2), lu.diagonal(dim1=-2, dim2=-1)


def mse_loss(input: Tensor, target: Tensor, *deprecated: Any, reduction: str = "mean", **others: Any) -> Tensor:
    """The squared error; unusual calls are left to torch."""
    if _unusual(input, target, deprecated, others):
        return F.mse_loss(input, target, *deprecated, **{"reduction": reduction, **others})
    return _REDUCTIONS[reduction]((input - target) ** 2)


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float | int = 1.0, **others: Any
) -> Tensor:
    """The Huber loss: half the squared error up to delta, linear beyond it; unusual calls are left to torch."""
    if _unusual(input, target, (), others):
        return F.huber_loss(input, target, reduction, delta, **others)
    far = (input - target).abs()
    return _REDUCTIONS[reduction](torch.where(far <= delta, far**2 / 2, delta * (far - delta / 2)))


def soft_margin_loss(input: Tensor, target: Tensor, *deprecated: Any, reduction: str = "mean", **others: Any) -> Tensor:
    """log(1 + exp(-target input)); unusual calls are left to torch."""
    if _unusual(input, target, deprecated, others):
        return F.soft_margin_loss(input, target, *deprecated, **{"reduction": reduction, **others})
    return _REDUCTIONS[reduction](F.softplus(-target * input))


def padded_embedding(function: Callable[..., Tensor], args: Any, kwargs: Any) -> Callable[[], Tensor] | None:
    """A call of ``F.embedding`` whose row ``padding_idx`` is a constant in every mode; None where there is no such row.

    torch gives that row the gradient 0 in reverse mode, but lets it move in forward mode. Products that use both modes
    are therefore silently wrong and not symmetric, by 14 % on a small BERT.
    """
    option = signature(function).bind(*args, **kwargs).arguments
    row = option.pop("padding_idx", None)
    if row is None or not isinstance(option["input"], Tensor):
        return None

    def padded() -> Tensor:
        embedded = function(**option)
        is_padding = option["input"] == row % option["weight"].shape[0]
        # This hides the call from ``ForwardWatch``, which notes what the user's code detaches.
        with torch._C.DisableTorchFunction():
            constant = embedded.detach()
        return torch.where(is_padding.unsqueeze(-1), constant, embedded)

    return padded


def with_weights_like_input(function: Callable[..., Tensor], args: Any, kwargs: Any) -> partial[Tensor] | None:
    """A call of one of torch's losses with its weights in the dtype and on the device of its input.

    None where they are so already. torch raises an error for class weights in float32 and an input in float64.
    """
    option = signature(function).bind(*args, **kwargs).arguments
    x, cast = option["input"], dict(option)
    for name in ("weight", "pos_weight"):
        weight = option.get(name)
        if isinstance(weight, Tensor) and (weight.dtype != x.dtype or weight.device != x.device):
            cast[name] = weight.to(x)
    return partial(function, **cast) if any(cast[name] is not option[name] for name in option) else None


def _unusual(input: Tensor, target: Tensor, deprecated: tuple[Any, ...], others: dict[str, Any]) -> bool:
    """Whether a call broadcasts, mixes dtypes, or passes weights or options that torch has deprecated."""
    given = any(value is not None for value in (*deprecated, *others.values()))
    return given or input.shape != target.shape or input.dtype != target.dtype
