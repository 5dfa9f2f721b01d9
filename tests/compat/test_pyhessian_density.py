"""The spectral density by PyHessian's interface, for which PyHessian's release fails, and PyHessian's plot of it."""

import math

import numpy as np
import pytest
import torch
from pyhessian_reference import CRITERION, Batch, dense_reference, installed_pyhessian
from torch import Tensor, nn

import hessian_tools as ht
from hessian_tools.compat.pyhessian import hessian


def test_density_works_where_the_release_fails(model: nn.Module, data: Batch) -> None:
    with pytest.raises((RuntimeError, AttributeError)):
        installed_pyhessian(model, CRITERION, data=data).density(iter=5)
    nodes, weights = hessian(model, CRITERION, data=data, cuda=False).density(iter=30, n_v=3)
    assert [len(run) for run in nodes] == [len(run) for run in weights] == [30, 30, 30]
    assert isinstance(nodes[0], list)
    np.testing.assert_allclose(np.sum(weights, axis=1), 1.0, rtol=1e-5)
    dense = dense_reference(model, CRITERION, data)
    np.testing.assert_allclose(np.max(nodes, axis=1), float(torch.linalg.eigvalsh(dense)[-1]), rtol=1e-4)
    z = ht.curvature.rademacher(len(dense), 3).double()
    moment = (np.array(weights) * np.array(nodes) ** 2).sum(1)
    np.testing.assert_allclose(moment, ((dense @ z) ** 2).sum(0) / len(dense), rtol=1e-4)


def esd(nodes: list[list[float]], weights: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """The curve that PyHessian's get_esd_plot draws: the mean over runs of normal curves at the nodes.

    Their variance is 1e-5 max(1, range). The grid has 10 000 values and reaches 0.01 beyond the mean ends of the runs;
    the curve is scaled to an integral of one.
    """
    centres, masses = np.array(nodes), np.array(weights)
    low, high = centres.min(axis=1).mean() - 0.01, centres.max(axis=1).mean() + 0.01
    grid, variance = np.linspace(low, high, 10_000), 1e-5 * max(1.0, high - low)
    curves = np.exp(-((grid[:, None, None] - centres) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    density = (curves * masses).sum(-1).mean(-1)
    return density / (density.sum() * (grid[1] - grid[0])), grid


def test_the_density_plot_accepts_the_density(model: nn.Module, data: Batch) -> None:
    nodes, weights = hessian(model, CRITERION, data=data, cuda=False).density(20, 2)
    density, grid = esd(nodes, weights)
    assert (density >= 0).all()
    assert np.isfinite(density).all()
    mean = float((density * grid).sum() * (grid[1] - grid[0]))
    exact_mean = float(np.mean([np.dot(w, n) for w, n in zip(weights, nodes, strict=True)]))
    assert mean == pytest.approx(exact_mean, rel=0.02)


class Weight(nn.Module):
    """A model whose output is its weight, so that the criterion can be any function of the parameters."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight[None].expand(len(x), -1)


def test_the_density_plot_shows_outliers_and_their_shares_of_the_spectrum() -> None:
    """28 of 32 eigenvalues are 0, so twelve steps exhaust the Krylov space; all runs still have twelve nodes."""
    spectrum = torch.cat([torch.tensor([10.0, 6.0, 6.0, -5.0]), torch.zeros(28)])
    data = torch.zeros(4, 1), torch.zeros(4)
    measured = hessian(Weight(32), lambda out, _: (out**2 * spectrum).sum(-1).mean() / 2, data=data, cuda=False)
    nodes, weights = measured.density(iter=12, n_v=5)
    assert {len(run) for run in (*nodes, *weights)} == {12}
    density, grid = esd(nodes, weights)
    # The grid ends 0.01 beyond the outermost nodes, so that a part of the curves at 10 and at -5 is cut off.
    cut = (1 + math.erf(0.01 / math.sqrt(2 * 15e-5))) / 2
    shares = {10.0: cut / 32, 6.0: 2 / 32, -5.0: cut / 32, 0.0: 28 / 32}
    for value, share in shares.items():
        nearby = abs(grid - value) < 0.3
        peak = grid[nearby][density[nearby].argmax()]
        assert abs(peak - value) < 0.005
        # The matrix is diagonal and probes are signs, so each eigenvalue has its exact share of every probe.
        # The tolerance allows for half a grid cell at each end.
        assert density[nearby].sum() * (grid[1] - grid[0]) == pytest.approx(share / sum(shares.values()), rel=0.03)
