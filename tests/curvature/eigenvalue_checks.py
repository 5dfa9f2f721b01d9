"""Helpers of the eigenvalue tests: matrices as operators, the wanted part of a spectrum, and checks of eigenpairs."""

from dataclasses import dataclass

import torch
from cases import quadratic
from torch import Tensor

from hessian_tools.curvature import EigenPairs, Hessian, Operator, hessian

# The largest by magnitude, the largest algebraic, the smallest algebraic, and both ends of the spectrum.
WHICH = ("LM", "LA", "SA", "BE")


@dataclass(frozen=True)
class Matrices(Operator):
    """Given matrices A [point, n, n] as an operator, whose products are plain matrix products."""

    A: Tensor

    @property
    def num_params(self) -> int:
        return self.A.shape[-1]

    @property
    def num_points(self) -> int:
        return len(self.A)

    @property
    def dtype(self) -> torch.dtype:
        return self.A.dtype

    @property
    def device(self) -> torch.device:
        return self.A.device

    def products(self, V: Tensor) -> Tensor:
        return self.A @ V

    def select(self, points: Tensor) -> "Matrices":
        return Matrices(self.A[points])


def operator(A: Tensor) -> Hessian:
    """The Hessians of quadratic functions, which are the given matrices A [point, n, n], or one matrix A [n, n]."""
    return hessian(quadratic, torch.zeros(A.shape[:-1], dtype=A.dtype), A)


def expected(values: Tensor, which: str, k: int) -> Tensor:
    """The k wanted values of the full spectra [..., n], in the documented order."""
    rising = values.sort(dim=-1).values
    if which == "LM":
        return values.gather(-1, values.abs().argsort(dim=-1, descending=True))[..., :k]
    if which == "SA":
        return rising[..., :k]
    falling = rising.flip(-1)
    low = k // 2 if which == "BE" else 0  # how many of them are from the lower end
    return torch.cat([falling[..., : k - low], falling[..., falling.shape[-1] - low :]], dim=-1)


def check_pairs(A: Tensor, pairs: EigenPairs) -> None:
    """Assert that the vectors are unit vectors with the stated residuals.

    Assert also that an exact eigenvalue lies within the residual of each computed one.
    """
    spectrum, X = torch.linalg.eigvalsh(A), pairs.vectors
    rounding = 1e3 * torch.finfo(A.dtype).eps * spectrum.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    true = (A @ X - X * pairs.values[..., None, :]).norm(dim=-2)
    assert (true <= pairs.residuals + rounding).all()
    assert (pairs.residuals <= true + rounding).all()
    torch.testing.assert_close(X.norm(dim=-2), torch.ones_like(pairs.values))
    distance = (pairs.values[..., None] - spectrum[..., None, :]).abs().amin(-1)
    assert (distance <= pairs.residuals + rounding).all()
