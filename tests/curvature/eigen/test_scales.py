"""For matrices so small or large that squares underflow or overflow in float32, results scale with the matrix."""

from typing import Literal

import pytest
import torch
from cases import symmetric
from eigenvalue_checks import Matrices, operator
from spectra_with_outliers import spectrum_with_outliers
from torch import Tensor

from hessian_tools.curvature import spectral_density, spectrum, top_eigenpairs

# Scaling by a power of two makes no rounding error, so all results must scale exactly with the matrix.
SCALES = [2.0**-110, 2.0**-66, 2.0**66, 2.0**110]


def low_rank() -> Tensor:
    """One float32 matrix with 200 rows, of rank 8, with eigenvalues of both signs."""
    values = torch.tensor([9.0, -7.0, 5.0, 4.0, -3.0, 2.0, 1.0, 0.5]).double()
    return symmetric(torch.cat([values, torch.zeros(192).double()]), points=1).float()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", ["lanczos", "exact"])
def test_eigenpairs_and_their_residuals_scale(method: Literal["lanczos", "exact"], scale: float) -> None:
    A = low_rank()
    usual, scaled = (top_eigenpairs(operator(c * A), k=3, rtol=1e-3, method=method, vectors=True) for c in (1.0, scale))
    assert scaled.vectors is not None
    torch.testing.assert_close(scaled.values / scale, usual.values)
    true = A.double() @ scaled.vectors.double() - scaled.vectors.double() * (scaled.values.double() / scale)[:, None]
    assert (true.norm(dim=-2) <= 1.1 * scaled.residuals.double() / scale + 1e-5).all()
    assert scaled.converged.all() and scaled.complete.all()
    assert (scaled.residuals > 0).all()


@pytest.mark.parametrize("scale", SCALES)
def test_whole_spectra_scale(scale: float) -> None:
    A = low_rank()
    result = spectrum(operator(scale * A), method="range finder")
    truth = torch.linalg.eigvalsh(A.double()) * scale
    assert ((result.values.double().sort(-1).values - truth).abs().amax(-1) <= result.error.double()).all()
    assert (result.error > 0).all() and (result.rank == 8).all()
    torch.testing.assert_close(result.frobenius / scale, A.flatten(1).norm(dim=-1))


@pytest.mark.parametrize("scale", SCALES)
def test_densities_scale(scale: float) -> None:
    A = symmetric(spectrum_with_outliers(), points=1).float()
    usual, scaled = (spectral_density(operator(c * A), num_probes=2, num_matvecs=12) for c in (1.0, scale))
    torch.testing.assert_close(scaled.nodes / scale, usual.nodes, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scaled.width / scale, usual.width, rtol=1e-3, atol=0)


def test_max_matvecs_is_kept_although_the_exact_method_could_need_more() -> None:
    """At full rank the range finder fails, and the products of the whole matrix are needed in addition."""
    A = symmetric(torch.linspace(1, 2, 200).double(), points=1)
    for budget in (250, 300, 345, 346):
        assert (top_eigenpairs(Matrices(A), k=50, max_matvecs=budget).num_matvecs <= budget).all(), budget
