"""Trace, Frobenius norm and diagonal from the same products: means and standard errors against closed forms."""

import pytest
import torch
from cases import NETWORKS, SPECTRA, Case, quadratic, randn, symmetric, without_type_checks
from torch import Tensor

from hessian_tools.curvature import Hessian, diagonal, frobenius_squared, hessian, moments, rademacher, trace

NAMES = ("decaying", "indefinite", "outliers")
REPEATS = 200


def operator(A: Tensor) -> Hessian:
    """The Hessians of quadratic functions, which are the matrices A."""
    return hessian(quadratic, torch.zeros(A.shape[:-1], dtype=A.dtype), A)


def off_diagonal(A: Tensor) -> Tensor:
    return A - torch.diag_embed(A.diagonal(dim1=-2, dim2=-1))


def repeated(A: Tensor, num_probes: int) -> tuple[Hessian, Tensor]:
    """The operator and probes of REPEATS independent estimates for one matrix, each at a point of its own."""
    probes = rademacher(24, num_probes * REPEATS).view(24, REPEATS, num_probes).permute(1, 0, 2)
    return operator(A.expand(REPEATS, 24, 24)), probes


def check_errors(value: Tensor, stderr: Tensor, truth: Tensor, exact: Tensor) -> None:
    """Asserts that errors have the standard deviation ``exact`` of the closed form, and that stderr agrees with it."""
    z = (value - truth) / exact
    assert (z.mean(0).abs() < 4.5 / REPEATS**0.5).all()
    assert ((z.std(0) > 0.8) & (z.std(0) < 1.2)).all()
    mean_square = (stderr**2).mean(0).sqrt() / exact
    assert ((mean_square > 0.9) & (mean_square < 1.1)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_probes", [16, 40])
def test_means_and_standard_errors_are_right(name: str, num_probes: int) -> None:
    A = symmetric(SPECTRA[name], points=1)[0]
    H, probes = repeated(A, num_probes)
    result = moments(H, probes=probes)
    squared = A @ A
    variance = 2 * (off_diagonal(squared) ** 2).sum()
    estimate = result.frobenius_squared
    check_errors(estimate.value, estimate.stderr, (A**2).sum(), (variance / num_probes).sqrt())
    entries = (off_diagonal(A) ** 2).sum(-1)
    check_errors(result.diagonal.value, result.diagonal.stderr, A.diagonal(), (entries / num_probes).sqrt())
    variance = 2 * (off_diagonal(A) ** 2).sum()
    check_errors(result.trace.value, result.trace.stderr, A.trace(), (variance / num_probes).sqrt())
    assert (result.diagonal.num_matvecs == num_probes).all()


@pytest.mark.slow
@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_moments_of_networks(case: Case) -> None:
    """With fewer probes than parameters they are estimates, with more they are exact."""
    result = moments(hessian(case.loss, case.thetas, case.batch), num_probes=50)
    truth = (case.dense**2).sum((-2, -1))
    assert ((result.frobenius_squared.value - truth).abs() < 4 * result.frobenius_squared.stderr).all()
    entries = case.dense.diagonal(dim1=-2, dim2=-1)
    assert ((result.diagonal.value - entries).abs() < 5.5 * result.diagonal.stderr + 1e-12).float().mean() > 0.99
    exact = moments(hessian(case.loss, case.thetas, case.batch), num_probes=300)
    torch.testing.assert_close(exact.frobenius_squared.value, truth)
    torch.testing.assert_close(exact.diagonal.value, entries)


def test_it_is_the_same_trace_from_the_same_products() -> None:
    A = symmetric(SPECTRA["indefinite"])
    result, alone = moments(operator(A), num_probes=20, seed=3), trace(operator(A), num_probes=20, seed=3)
    assert torch.equal(result.trace.samples, alone.samples)
    assert torch.equal(result.trace.stderr, alone.stderr)
    Z = rademacher(24, 20, seed=3).double()
    torch.testing.assert_close(result.frobenius_squared.samples, ((A @ Z) ** 2).sum(-2))
    products = Z * (A @ Z)
    torch.testing.assert_close(result.diagonal.value, products.mean(-1))
    torch.testing.assert_close(result.diagonal.stderr, products.std(-1) / 20**0.5)
    torch.testing.assert_close(result.diagonal.value.sum(-1), result.trace.value)
    assert torch.equal(frobenius_squared(operator(A), num_probes=20, seed=3).value, result.frobenius_squared.value)
    assert torch.equal(diagonal(operator(A), num_probes=20, seed=3).stderr, result.diagonal.stderr)


def test_small_matrices_are_computed_exactly() -> None:
    A = symmetric(SPECTRA["decaying"])
    result = moments(operator(A), num_probes=24)
    torch.testing.assert_close(result.trace.value, A.diagonal(dim1=-2, dim2=-1).sum(-1))
    torch.testing.assert_close(result.frobenius_squared.value, (SPECTRA["decaying"] ** 2).sum().expand(3))
    torch.testing.assert_close(result.diagonal.value, A.diagonal(dim1=-2, dim2=-1))
    for estimate in (result.trace, result.frobenius_squared, result.diagonal):
        assert (estimate.stderr == 0).all()
        assert estimate.converged.all()
        assert (estimate.num_matvecs == 24).all()
    assert result.trace.samples.shape == (3, 24)
    assert float(result.trace.samples.std(-1).abs().max()) < 1e-12


@pytest.mark.parametrize("num_probes", [4, 40], ids=["estimated", "exact"])
def test_a_single_point_and_a_point_with_nan(num_probes: int) -> None:
    A = symmetric(SPECTRA["decaying"])
    single = moments(operator(A[0]), num_probes=num_probes)
    assert (single.trace.value.shape, single.diagonal.value.shape, single.diagonal.num_matvecs.shape) == ((), (24,), ())
    A[1] = torch.nan
    with_nan = moments(operator(A), num_probes=num_probes)
    for estimate in (with_nan.trace, with_nan.frobenius_squared):
        assert estimate.value.isnan().tolist() == estimate.stderr.isnan().tolist() == [False, True, False]
        assert estimate.converged.tolist() == [True, False, True]
    assert with_nan.diagonal.converged.all(-1).tolist() == [True, False, True]


def test_progress_counts_every_product_once() -> None:
    reports: list[tuple[int, int]] = []
    H = operator(symmetric(SPECTRA["decaying"]))
    moments(H, num_probes=20, progress=lambda done, total: reports.append((done, total)))
    frobenius_squared(H, num_probes=30, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(16, 20), (20, 20), (24, 24)]


def test_wrong_options_are_refused_in_plain_words() -> None:
    H = operator(symmetric(SPECTRA["decaying"]))
    with pytest.raises(ValueError, match="num_probes=1"):
        moments(H, num_probes=1)
    with pytest.raises(ValueError, match="2 probes or more"):
        moments(H, probes=randn(24, 1, stream_name="one"))


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e18, 1e30])
def test_extreme_scales_in_single_precision(scale: float) -> None:
    """The errors of the diagonal stay right, and a norm whose squares leave the range of float32 is not converged."""
    A = symmetric(SPECTRA["indefinite"], points=1)[0]
    expected = moments(operator(A), num_probes=20)
    result = moments(operator((A * scale).float()), num_probes=20)
    ratio = result.diagonal.stderr.double() / scale / expected.diagonal.stderr
    assert float((ratio - 1).abs().max()) < 1e-3
    assert result.diagonal.converged.all()
    assert not result.frobenius_squared.converged
    from_dense = moments(operator((A * scale).float()), num_probes=24)
    assert not from_dense.frobenius_squared.converged


def test_a_zero_matrix_has_zero_moments() -> None:
    result = moments(operator(torch.zeros(30, 30)), num_probes=8)
    assert result.frobenius_squared.converged and float(result.frobenius_squared.value) == 0
    assert result.diagonal.converged.all() and float(result.diagonal.stderr.abs().max()) == 0


def test_a_number_of_probes_that_is_not_whole_is_refused() -> None:
    with without_type_checks(), pytest.raises(ValueError, match="num_probes=2.5 is not a whole number"):
        moments(operator(torch.eye(3)), num_probes=2.5)
