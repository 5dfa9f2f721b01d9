"""Euclidean lengths of vectors, right also where the squares of float32 numbers underflow or overflow."""

import torch
from jaxtyping import Float
from torch import Tensor


def lengths(vectors: Float[Tensor, "*rows param"]) -> Float[Tensor, "*rows"]:
    """The length of each row, in float64.

    Squares of float32 numbers underflow below 1e-19 and overflow above 1e19, so lengths outside of this range are
    computed again in float64. Otherwise a Hessian of size 1e-30 would have residuals of zero for any vectors, and one
    of size 1e20 would be called not finite. Vectors in float64 are not treated so, because their squares are right from
    1e-154 to 1e154.

    >>> [f"{length:.1e}" for length in lengths(torch.tensor([[3e-30, 4e-30], [3e30, 4e30]])).tolist()]
    ['5.0e-30', '5.0e+30']
    """
    if vectors.is_cuda:  # all in float64, because waiting for the GPU to see which rows need it costs more
        return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    length = vectors.norm(dim=-1).double()
    limits = torch.finfo(vectors.dtype)
    # Below this length, squares that underflow could add up to more than the rounding of the sum.
    doubtful = ~((length > limits.tiny**0.5 / limits.eps) & length.isfinite())
    if vectors.dtype != torch.float64 and doubtful.any():  # only where needed, because it doubles the work
        length[doubtful] = torch.linalg.vector_norm(vectors[doubtful], dim=-1, dtype=torch.float64)
    return length
