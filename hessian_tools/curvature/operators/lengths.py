"""Euclidean lengths of vectors, also where their squares leave the numbers of float32."""

import torch
from jaxtyping import Float
from torch import Tensor


def lengths(vectors: Float[Tensor, "*rows param"]) -> Float[Tensor, "*rows"]:
    """The length of each row, in float64.

    Squares of float32 numbers underflow below 1e-19 and overflow above 1e19. If such lengths were not computed again, a
    Hessian of size 1e-30 would have residuals of zero whatever the vectors, and one of size 1e20 would be called not
    finite. Vectors in float64 are taken as they are, because their squares hold from 1e-154 to 1e154.

    >>> [f"{length:.1e}" for length in lengths(torch.tensor([[3e-30, 4e-30], [3e30, 4e30]])).tolist()]
    ['5.0e-30', '5.0e+30']
    """
    if vectors.is_cuda:  # in float64 at once, because there it costs more to wait for the result and look at it
        return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    length = vectors.norm(dim=-1).double()
    limits = torch.finfo(vectors.dtype)
    # Below this length, squares that underflow could add up to more than the rounding of the sum.
    doubtful = ~((length > limits.tiny**0.5 / limits.eps) & length.isfinite())
    if vectors.dtype != torch.float64 and doubtful.any():  # done only where it matters, because it doubles the work
        length[doubtful] = torch.linalg.vector_norm(vectors[doubtful], dim=-1, dtype=torch.float64)
    return length
