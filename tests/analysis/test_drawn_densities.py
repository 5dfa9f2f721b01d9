"""Tests of drawn spectral densities.

The coordinates of the drawn lines are compared with the areas, positions and error bands of known spectra.
"""

import numpy as np
import pytest
import torch
from cases import CASES, operator, symmetric
from figure_contents import axes, line
from matplotlib.axes import Axes
from torch import Tensor

import analysis
import hessian_tools as ht

TANH = next(case for case in CASES if case.name == "tanh-mlp")
OUTLIERS = torch.tensor([40.0, 25.0, -12.0], dtype=torch.float64)
INDEFINITE = torch.cat([OUTLIERS, torch.linspace(-1.0, 1.0, 197, dtype=torch.float64)])


def drawn_density(spectrum: Tensor, **options: object) -> tuple[ht.Density, Axes]:
    """Estimate and draw the density of a matrix with this spectrum."""
    density = ht.spectral_density(operator(symmetric(spectrum, points=1)[0]), **options)
    return density, analysis.plot(density, axes())


def mass(ax: Axes, low: float, high: float) -> float:
    """The area under the drawn density between low and high."""
    x, y = line(ax, "density:").get_xydata().T
    inside = (x >= low) & (x <= high)
    return float(np.trapezoid(y[inside], x[inside]))


def agrees(mass: float, density: ht.Density, inside: Tensor, share: float) -> bool:
    """Whether a drawn area is right within four standard errors of the probes; it must be the mean over the probes.

    mass: the area drawn in some region. inside: which nodes of the density lie in this region. share: the fraction of
    the true eigenvalues that lie in it.
    """
    per_probe = (density.weights * inside).sum(-1)
    assert mass == pytest.approx(float(per_probe.mean()), abs=1e-3)
    return abs(mass - share) < 4 * float(per_probe.std()) / len(per_probe) ** 0.5


def test_the_drawn_density_of_a_bulk_with_outliers_is_right() -> None:
    """The areas are right, exactly the three outliers are drawn apart from the bulk, and the axis shows them."""
    density, ax = drawn_density(INDEFINITE, num_probes=20)
    assert agrees(mass(ax, -3, 3), density, density.nodes.abs() < 3, 197 / 200)
    assert mass(ax, -20, 50) == pytest.approx(1.0, abs=1e-3)
    heads = line(ax, "isolated:").get_xydata()
    positions = np.sort(np.unique(heads[:, 0].round(6)))
    np.testing.assert_allclose(positions, [-12, 25, 40], atol=1e-6)
    low, high = ax.get_ylim()
    assert ax.get_yscale() == "log"
    assert ((low < heads[:, 1]) & (heads[:, 1] < high)).all()
    assert high < 10 * line(ax, "density:").get_ydata().max()
    x, y = line(ax, "density:").get_xydata().T
    assert y[(x > 5) & (x < 20)].max() < low  # nothing is visible between the bulk and the outliers
    bulk = y[abs(x) < 0.9]
    assert abs(bulk.mean() / (197 / 400) - 1) < 0.05  # 197 of 200 eigenvalues are uniform on [-1, 1]


def test_the_drawn_density_of_a_matrix_of_low_rank_has_a_spike_at_zero() -> None:
    spectrum = torch.cat([torch.tensor([7.0, -5.0, 2.0]).double(), torch.zeros(197).double()])
    density, ax = drawn_density(spectrum, num_matvecs=40)
    assert agrees(mass(ax, -0.9, 0.9), density, density.nodes.abs() < 0.9, 197 / 200)
    positions = np.unique(line(ax, "isolated:").get_xdata().round(6) + 0.0)  # -0.0 becomes 0.0
    np.testing.assert_allclose(positions, [-5, 0, 2, 7], atol=1e-6)


def test_the_drawn_density_of_two_clusters_has_two_humps_with_the_right_areas() -> None:
    spectrum = torch.cat([torch.linspace(4.8, 5.2, 100).double(), torch.linspace(-1, 1, 200).double()])
    density, ax = drawn_density(spectrum, num_probes=16, num_matvecs=40)
    assert agrees(mass(ax, 3, 7), density, density.nodes > 3, 1 / 3)
    assert not any(one.get_gid() == "isolated:" and len(one.get_xdata()) for one in ax.lines)
    x, y = line(ax, "density:").get_xydata().T
    assert y[(x > 2) & (x < 4)].max() < ax.get_ylim()[0]


def test_the_drawn_band_is_the_band_of_the_density() -> None:
    result = ht.spectral_density(ht.hessian(TANH.loss, *TANH.at(0)[:2]), num_matvecs=12)
    ax = analysis.plot(result, axes())
    band = next(c for c in ax.collections if c.get_gid() == "band:").get_paths()[0].vertices
    low, high = (end.numpy() for end in result.band)
    shown = high > ax.get_ylim()[0]
    for x, expected in zip(result.grid.numpy()[shown], high[shown], strict=True):
        assert np.isclose(band[:, 1][np.isclose(band[:, 0], x)].max(), expected)
    assert (low <= high).all()


def test_the_densities_of_two_points_share_an_axis_that_shows_both() -> None:
    A = symmetric(INDEFINITE, points=2) * torch.tensor([1.0, 0.05]).double()[:, None, None]
    ds = analysis.to_xarray(ht.spectral_density(operator(A)), dims=["inner_step"], coords={"inner_step": [0, 3]})
    ax = analysis.plot(ds, axes())
    for step, outlier in ((0, 40.0), (3, 2.0)):
        positions = line(ax, f"isolated:inner step {step}").get_xdata()
        assert np.isclose(positions, outlier, rtol=1e-6).any()
    assert ax.get_xscale() == "asinh"
    assert "linear within ±2" in ax.get_xlabel()
    assert line(ax, "density:inner step 0").get_color() != line(ax, "density:inner step 3").get_color()
