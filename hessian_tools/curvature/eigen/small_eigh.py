"""Eigenvalues and eigenvectors of small symmetric matrices, with the precautions that LAPACK needs.

LAPACK refuses matrices that are not finite. ``finite`` sets such points to zero before a solver is called, and
``set_nan`` sets their results to NaN afterwards.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Matrices of up to this many rows are solved on the CPU, even if they lie on a GPU. A GPU takes about a millisecond
# for each matrix above 32 rows, one after another, by solvers that changed with almost every release of torch.
MAX_CPU_ROWS = 256


def eigh(A: Float[Tensor, "*point n n"]) -> tuple[Float[Tensor, "*point n"], Float[Tensor, "*point n n"]]:
    """Rising eigenvalues and the eigenvectors of symmetric matrices, on the device of A."""
    values, vectors = torch.linalg.eigh(_on_fastest_device(A))
    return values.to(A.device), vectors.to(A.device)


def eigvalsh(A: Float[Tensor, "*point n n"]) -> Float[Tensor, "*point n"]:
    """Rising eigenvalues of symmetric matrices, on the device of A."""
    return torch.linalg.eigvalsh(_on_fastest_device(A)).to(A.device)


def _on_fastest_device(A: Tensor) -> Tensor:
    """The matrices on the device that solves them fastest."""
    return A.cpu() if A.shape[-1] <= MAX_CPU_ROWS else A


def solvable(A: Float[Tensor, "point n n"]) -> Float[Tensor, "point n n"]:
    """A in float64, with :func:`flushed` entries, for an eigensolver.

    LAPACK's float32 eigensolvers fail or give NaN where confident predictions underflow (torch 2.13): 12 % of softmax
    regressions at logits of 30 were refused. The matrices are small, so float64 costs next to nothing.
    """
    return flushed(A.double())


def flushed(A: Float[Tensor, "point _ _"]) -> Float[Tensor, "point _ _"]:
    """A with zeros for entries below eps^2 times the largest entry of its matrix, whose products would underflow."""
    threshold = torch.finfo(A.dtype).eps ** 2 * A.abs().amax((-2, -1), keepdim=True)
    return A.masked_fill(A.abs() < threshold, 0)


def finite(A: Float[Tensor, "point _ _"]) -> tuple[Float[Tensor, "point _ _"], Bool[Tensor, " point"]]:
    """A with zeros at the points that are not finite, and a mask of these points."""
    bad = ~A.isfinite().flatten(1).all(-1)
    return A.masked_fill(bad[:, None, None], 0), bad


def set_nan(A: Float[Tensor, "point ..."], bad: Bool[Tensor, " point"]) -> Float[Tensor, "point ..."]:
    """A with NaN at the bad points."""
    return A.masked_fill(bad.view(-1, *[1] * (A.ndim - 1)), torch.nan)
