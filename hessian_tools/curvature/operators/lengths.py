"""Euclidean lengths of vectors, also where their squares leave the numbers of float32."""

import torch
from jaxtyping import Float
from torch import Tensor


def lengths(vectors: Float[Tensor, "*rows param"]) -> Float[Tensor, "*rows"]:
    """The length of each row, in float64.

    Squares of float32 numbers underflow from 1e-19 down and overflow from 1e19 up: without the second look a
    Hessian of size 1e-30 had residuals of zero whatever the vectors, one of size 1e20 was called not finite. Vectors
    in float64 are taken as they are: their squares hold from 1e-154 to 1e154.

    >>> [f"{length:.1e}" for length in lengths(torch.tensor([[3e-30, 4e-30], [3e30, 4e30]])).tolist()]
    ['5.0e-30', '5.0e+30']
    """
    if vectors.is_cuda:  # in float64 at once: there a look at what came out costs more
        return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    found = vectors.norm(dim=-1).double()
    limits = torch.finfo(vectors.dtype)
    # Below this, squares that underflow could be more than rounding of the sum.
    doubtful = ~((found > limits.tiny**0.5 / limits.eps) & found.isfinite())
    if vectors.dtype != torch.float64 and doubtful.any():  # twice the work, so only where it matters
        found[doubtful] = torch.linalg.vector_norm(vectors[doubtful], dim=-1, dtype=torch.float64)
    return found
