"""Which nodes of a density are isolated, and that residuals bound the distance of nodes to an eigenvalue."""

import pytest
import torch
from cases import SPECTRA, operator, symmetric
from spectra_with_outliers import OUTLIERS, bulk, spectrum_with_outliers

from hessian_tools.curvature import spectral_density as density


def test_residuals_bound_the_distance_to_an_eigenvalue() -> None:
    A = symmetric(spectrum_with_outliers(80))
    result = density(operator(A), num_probes=3, num_matvecs=12)
    values = torch.linalg.eigvalsh(A)[:, None, None]
    distance = (result.nodes[..., None] - values).abs().amin(-1)
    assert (distance <= result.residuals + 1e-12 * 40).all()
    assert (result.residuals[..., -1] < 1e-6).all()  # the largest outlier
    assert (result.residuals.amax(-1) > 1e-2).all()  # somewhere in the bulk
    assert (density(operator(A), num_matvecs=80).residuals == 0).all()


def test_isolated_nodes_are_the_outliers_of_a_known_spectrum() -> None:
    result = density(operator(symmetric(spectrum_with_outliers())), num_probes=6, num_matvecs=48)
    for point in range(3):
        marked = result.nodes[point][result.isolated[point]]
        assert len(marked) == 6 * len(OUTLIERS)
        assert ((marked[:, None] - OUTLIERS).abs().amin(-1) < 1e-8).all()


@pytest.mark.parametrize("num_matvecs", [20, 24], ids=["lanczos", "exact"])
def test_isolated_nodes_of_a_low_rank_matrix_are_its_eigenvalues_and_zero(num_matvecs: int) -> None:
    result = density(operator(symmetric(SPECTRA["low_rank"])), num_matvecs=num_matvecs)
    marked = result.nodes[result.isolated]
    assert {round(value, 6) + 0.0 for value in marked.tolist()} == {7.0, -5.0, 2.0, 0.0}


def test_a_bulk_alone_has_no_isolated_nodes() -> None:
    for num_probes in (2, 8):
        assert not density(operator(symmetric(bulk(300))), num_probes=num_probes, num_matvecs=24).isolated.any()


def test_two_values_within_two_widths_are_not_isolated() -> None:
    spectrum = torch.cat([torch.tensor([10.0, 9.0, -8.0]).double(), torch.zeros(60).double()])
    for width, expected in ((0.4, {10.0, 9.0, -8.0, 0.0}), (0.6, {-8.0, 0.0})):
        result = density(operator(symmetric(spectrum)), num_matvecs=12, width=width)
        assert {round(value, 6) + 0.0 for value in result.nodes[result.isolated].tolist()} == expected
