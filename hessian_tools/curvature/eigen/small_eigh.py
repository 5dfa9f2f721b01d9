"""Eigenproblems as small as a support set, made safe for LAPACK; points that are not finite are set aside.

Up to ``ON_CPU`` rows they are solved on the CPU wherever the matrices lie: a GPU takes about a millisecond for each
matrix above 32 rows, one after another, by solvers that changed with almost every release of torch.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Rows up to which a symmetric matrix is solved on the CPU.
ON_CPU = 256


def eigh(A: Float[Tensor, "*point n n"]) -> tuple[Float[Tensor, "*point n"], Float[Tensor, "*point n n"]]:
    """Eigenvalues, rising, and vectors of symmetric matrices, where they lie."""
    values, vectors = torch.linalg.eigh(_moved(A))
    return values.to(A.device), vectors.to(A.device)


def eigvalsh(A: Float[Tensor, "*point n n"]) -> Float[Tensor, "*point n"]:
    """Eigenvalues alone."""
    return torch.linalg.eigvalsh(_moved(A)).to(A.device)


def _moved(A: Tensor) -> Tensor:
    return A.cpu() if A.shape[-1] <= ON_CPU else A


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


def set_nan(A: Float[Tensor, "point ..."], bad: Bool[Tensor, " point"]) -> Float[Tensor, "point ..."]:
    """NaN at the bad points."""
    return A.masked_fill(bad.view(-1, *[1] * (A.ndim - 1)), torch.nan)
