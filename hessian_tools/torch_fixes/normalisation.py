"""Normalisation computed from primitives (mean, square, square root), for derivatives of third order.

torch's own kernels (2.13) are right to second order, but some are silently wrong beyond: third derivatives through
training-mode ``F.batch_norm`` were 5-7 % off, and through ``F.layer_norm`` and ``F.instance_norm`` 3 to 180 %. The
functions here take the arguments of their namesakes in ``torch.nn.functional``. They read running statistics where a
module uses them, and never change them, so that the momentum has no effect. The last argument of ``torch.layer_norm``
and ``torch.group_norm``, which says whether cuDNN may be used, is ignored.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each channel over all examples and pixels, or by the running statistics in eval mode."""
    shape = _channel_shape(x)
    if training or running_mean is None or running_var is None:
        y = _standardised(x, [0, *range(2, x.ndim)], eps)
    else:
        y = (x - running_mean.reshape(shape)) / (running_var.reshape(shape) + eps).sqrt()
    return _scaled(y, weight, bias, shape)


def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each channel of each example over its pixels, or by the running statistics."""
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    return _scaled(_standardised(x, list(range(2, x.ndim)), eps), weight, bias, _channel_shape(x))


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Normalises each example over its last axes."""
    dims = list(range(-len(normalized_shape), 0))
    return _scaled(_standardised(x, dims, eps), weight, bias, list(normalized_shape))


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """Normalises each group of channels of each example."""
    groups = _standardised(x.reshape(x.shape[0], num_groups, -1), [-1], eps)
    return _scaled(groups.reshape(x.shape), weight, bias, _channel_shape(x))


def in_torch_order(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The norm with the arguments of ``torch.batch_norm`` or ``torch.instance_norm``: weight and bias come first."""

    def reordered(
        x: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, on_batch: bool, *rest: Any
    ) -> Tensor:
        momentum_and_eps = rest[:2]  # the argument after them says whether cuDNN may be used
        return norm(x, running_mean, running_var, weight, bias, on_batch, *momentum_and_eps)

    return reordered


def _standardised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """x with mean 0 and variance 1 over the given axes."""
    centred = x - x.mean(dims, keepdim=True)
    return centred / ((centred**2).mean(dims, keepdim=True) + eps).sqrt()


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    """x times the weight plus the bias, both in this shape."""
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _channel_shape(x: Tensor) -> list[int]:
    """The shape in which a vector over channels, the second axis, broadcasts with x."""
    return [1, -1, *[1] * (x.ndim - 2)]
