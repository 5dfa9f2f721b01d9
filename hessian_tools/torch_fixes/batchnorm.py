"""Batch normalisation with short derivatives: the same function in fewer passes over its activations.

torch's own second derivative of ``F.batch_norm`` makes some 44 tensors of the size of the activations, which on a
Conv4 is two thirds of a Hessian-vector product. The derivative that is written out here makes 12. It is used while a
product is traced, and is compared there with torch's own derivative.

For each channel, let u' be the mean of u over its n examples and pixels, r = (var + eps)^-1/2 and h = r (x - x'). Let
g, gx, gw and gb be the gradients of the loss with respect to the output y, the input x, the weight w and the bias b.

    P(u)  = u - u' - h (hu)'                                   so that  dh = r P(dx),  dr = -r^2 (h dx)'
    y     = w h + b,                                           dy = w r P(dx) + h dw + db
    gx    = w r P(g),   gw = n (hg)',   gb = n g'
    d gx  = (r dw + w dr) P(g) + w r [P(dg) - (hg)' dh - h (g dh)']
    d gw  = n [(h dg)' + (g dh)'],   d gb = n (dg)'

These hold for eps > 0 as well, because h is nowhere assumed to have unit variance.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class ShortBatchNorm(TorchFunctionMode):
    """While it is entered, ``F.batch_norm`` on batch statistics has the first and second derivatives of this file."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            call = signature(func).bind(*args, **(kwargs or {}))
            call.apply_defaults()
            x, running_mean, running_var, weight, bias, training, _, eps = call.args
            if training and running_mean is None and running_var is None:
                weight = x.new_ones(x.shape[1]) if weight is None else weight
                bias = x.new_zeros(x.shape[1]) if bias is None else bias
                return _Forward.apply(x, weight, bias, eps)
        return func(*args, **(kwargs or {}))


class _SavesInputs(Function):
    """Saves the tensors, and eps as the last input, for both modes of differentiation."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)


class _Forward(_SavesInputs):
    """Batch normalisation (x, w, b) -> y."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
        # This is torch's own value to the last bit, because another rounding could fall on the other side of a kink.
        # The call is the one that F.batch_norm makes: on CUDA it runs cuDNN's kernel, whose rounding differs from that
        # of native_batch_norm. That kernel refuses images with gaps, which convolutions as matrix products make.
        return torch.batch_norm(x.contiguous(), w, b, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w, _ = ctx.saved_tensors
        return *_Backward.apply(g, x, w, ctx.eps), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dw: Tensor, db: Tensor, _: None) -> Tensor:
        """dy."""
        x, w, _b = ctx.saved_tensors
        h, r = _standardised(x, ctx.eps)
        scale = w * r
        factor_h = dw - scale * _mean(h * dx)
        offset = db - scale * _mean(dx)
        return _combined(x, offset, (dx, scale), (h, factor_h))


class _Backward(_SavesInputs):
    """Its backward pass (g, x, w) -> the gradients gx, gw, gb."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        h, r = _standardised(x, eps)
        n, hg, mean_g = x.numel() // x.shape[1], _mean(h * g), _mean(g)
        scale = w * r
        return _combined(x, -scale * mean_g, (g, scale), (h, -scale * hg)), n * hg, n * mean_g

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("third derivatives are not written out here; leave ShortBatchNorm for them")

    @staticmethod
    def jvp(ctx: Any, dg: Tensor, dx: Tensor, dw: Tensor, _: None) -> tuple[Tensor, Tensor, Tensor]:
        """d gx, d gw and d gb."""
        g, x, w = ctx.saved_tensors
        h, r = _standardised(x, ctx.eps)
        # In the names, hg stands for (hg)', hdx for (h dx)', hdg for (h dg)' and gdh for (g dh)'.
        n, hg, mean_g = x.numel() // x.shape[1], _mean(h * g), _mean(g)
        hdx, mean_dx, hdg, mean_dg = _mean(h * dx), _mean(dx), _mean(h * dg), _mean(dg)
        gdh = r * (_mean(g * dx) - mean_dx * mean_g - hdx * hg)
        scale, factor_g = w * r, r * (dw - w * r * hdx)
        factor_dx = -scale * r * hg
        factor_h = -factor_g * hg - factor_dx * hdx - scale * (hdg + gdh)
        offset = -factor_g * mean_g - factor_dx * mean_dx - scale * mean_dg
        dgx = _combined(x, offset, (dg, scale), (dx, factor_dx), (g, factor_g), (h, factor_h))
        return dgx, n * (hdg + gdh), n * mean_dg


def _combined(x: Tensor, offset: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """The sum of tensors like x, each times its factor per channel, and an offset per channel."""
    tensor, factor = terms[0]
    total = tensor * _channels(factor, x)
    for tensor, factor in terms[1:]:
        total = total.addcmul(tensor, _channels(factor, x))
    return total + _channels(offset, x)


def _standardised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """h and r. They are not saved for reuse, because a traced graph computes equal expressions only once."""
    centred = x - _channels(_mean(x), x)
    r = (_mean(centred * centred) + eps).rsqrt()
    return centred * _channels(r, x), r


def _mean(x: Tensor) -> Tensor:
    """The mean of each channel over examples and pixels."""
    return x.mean([d for d in range(x.ndim) if d != 1])


def _channels(per_channel: Tensor, like: Tensor) -> Tensor:
    """A number for each channel, in the shape in which it broadcasts with a tensor [example, channel, ...]."""
    return per_channel.reshape(1, -1, *(1 for _ in like.shape[2:]))
