"""The Hessian's eigenpairs compared with those of Gauss-Newton, on dense references and on cases in closed form."""

from dataclasses import replace

import pytest
import torch
from cases import LINEAR, Case, conv_batchnorm, gauss_newton_case, tanh_mlp

from hessian_tools.curvature import (
    EigenPairs,
    GaussNewtonShare,
    Spectrum,
    gauss_newton_share,
    gauss_newton_spectrum,
    hessian,
    subspace_overlap,
    top_eigenpairs,
)


def share_of(case: Case, *, k: int = 4, which: str = "LA", rtol: float = 1e-10, **options: object) -> GaussNewtonShare:
    """The comparison at all points of a case. options: those of ``top_eigenpairs``."""
    H = hessian(case.loss, case.thetas, case.batch)
    pairs = top_eigenpairs(H, k=k, which=which, rtol=rtol, vectors=True, **options)
    return gauss_newton_share(
        pairs, gauss_newton_spectrum(case.loss, case.thetas, case.batch, vectors=True), which=which
    )


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_the_hessian_of_a_linear_network_is_its_gauss_newton_matrix(case: Case) -> None:
    result = share_of(case)
    torch.testing.assert_close(result.share, torch.ones_like(result.share))
    torch.testing.assert_close(result.hessian, result.gauss_newton)
    torch.testing.assert_close(result.overlap, torch.ones_like(result.overlap), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["LA", "LM"])
@pytest.mark.parametrize("case", [tanh_mlp(), conv_batchnorm()], ids=lambda case: case.name)
def test_it_agrees_with_dense_matrices(case: Case, which: str) -> None:
    result, G = share_of(case, which=which), gauss_newton_case(case).dense
    values, vectors = torch.linalg.eigh(case.dense)
    order = (values.abs() if which == "LM" else values).argsort(dim=-1, descending=True)[:, :4]
    values, V = values.gather(-1, order), vectors.gather(-1, order[:, None].expand(-1, vectors.shape[-2], -1))
    torch.testing.assert_close(result.hessian, values)
    torch.testing.assert_close(result.share, (V * (G @ V)).sum(-2) / values, rtol=1e-5, atol=1e-5)
    levels, U = torch.linalg.eigh(G)
    torch.testing.assert_close(result.gauss_newton, levels.flip(-1)[:, :4])
    for j in range(1, 5):
        torch.testing.assert_close(
            result.overlap[:, j - 1], subspace_overlap(V[..., :j], U.flip(-1)[..., :j]), rtol=1e-5, atol=1e-5
        )


def test_the_errors_cover_the_difference_between_loose_and_exact_pairs() -> None:
    case = tanh_mlp()
    exact, loose = share_of(case, k=5), share_of(case, k=5, rtol=1e-2, method="lanczos", copies=False)
    assert ((loose.share - exact.share).abs() <= loose.share_error + 1e-9).all()
    assert ((loose.overlap - exact.overlap).abs() <= loose.overlap_error + 1e-9).all()
    assert loose.share_error[:, :2].max() > 100 * exact.share_error[:, :2].max()
    assert (loose.overlap_error[:, -1] == 1).all()
    assert (exact.overlap_error[:, :2] < 1e-6).all()


def test_the_error_includes_every_source_of_error() -> None:
    """The error of share times the eigenvalue is |G| sine + error of G + share * residual.

    Here H = diag(4, 2, 1) has the residuals .2, .1, 0, and G has the error .01.
    """
    values, residuals = torch.tensor([4.0, 2.0, 1.0]), torch.tensor([0.2, 0.1, 0.0])
    e, yes = torch.eye(3), torch.ones(3, dtype=torch.bool)
    pairs = EigenPairs(values, residuals, yes, e, torch.tensor(9), yes[0])
    result = gauss_newton_share(pairs, Spectrum(torch.tensor([3.0, 2.0]), torch.tensor(0.01), e[:, [0, 2]]))
    torch.testing.assert_close(result.share, torch.tensor([0.75, 0.0, 2.0]))
    sines = [0.2 / (4 - 2 - 0.1), 0.1 / (2 - 1), 1.0]
    off = [3 * sine + 0.01 + share * r for sine, share, r in zip(sines, (0.75, 0.0, 2.0), (0.2, 0.1, 0.0), strict=True)]
    torch.testing.assert_close(result.share_error, torch.tensor(off) / values)


def test_pairs_beyond_the_rank_of_gauss_newton_have_no_overlap() -> None:
    """With seven examples of one output G has rank 7, so the Hessian's eighth pair has no counterpart."""
    result = share_of(tanh_mlp(), k=9)
    assert result.overlap.isnan().all(0).tolist() == [False] * 7 + [True] * 2
    assert (result.gauss_newton[:, 7:] == 0).all()


def test_single_points_and_wrong_arguments() -> None:
    case = tanh_mlp()
    theta, batch, _ = case.at(1)
    pairs = top_eigenpairs(hessian(case.loss, theta, batch), k=3, which="LA", rtol=1e-10, vectors=True)
    spectrum = gauss_newton_spectrum(case.loss, theta, batch, vectors=True)
    result = gauss_newton_share(pairs, spectrum, which="LA")
    whole = share_of(case, k=3)
    torch.testing.assert_close(result.share, whole.share[1])
    torch.testing.assert_close(result.overlap, whole.overlap[1], rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="vectors=True"):
        gauss_newton_share(replace(pairs, vectors=None), spectrum)
    with pytest.raises(ValueError, match="same points"):
        gauss_newton_share(pairs, gauss_newton_spectrum(case.loss, case.thetas, case.batch, vectors=True))


def test_errors_of_negative_eigenvalues_are_positive_and_the_gap_below_the_last_value_of_g_is_known() -> None:
    """H is diag(-4, 2, 0) up to residuals of 0.1, and G is diag(0, 0, 3)."""
    e, yes = torch.eye(3), torch.ones(2, dtype=torch.bool)
    residuals = torch.tensor([0.1, 0.1])
    pairs = EigenPairs(torch.tensor([-4.0, 2.0]), residuals, yes, e[:, :2], torch.tensor(9), yes[0])
    result = gauss_newton_share(pairs, Spectrum(torch.tensor([3.0]), torch.tensor(0.06), e[:, 2:]))
    assert (result.share_error > 0).all()
    # Sines of at most 0.1 / (4 - 2 - 0.1), from H, and 0.06 / (3 - 0.06), because all other eigenvalues of G are zero.
    assert float(result.overlap_error[0]) == pytest.approx(0.1 / 1.9 + 0.06 / 2.94)
