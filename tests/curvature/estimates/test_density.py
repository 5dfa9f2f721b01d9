"""The spectral density: moments, known spectra, outliers, bands, degenerate sizes."""

import math

import pytest
import torch
from cases import CASES, SPECTRA, Case, operator, randn, symmetric, without_type_checks
from spectra_with_outliers import OUTLIERS, bulk, spectrum_with_outliers
from torch import Tensor

from hessian_tools.curvature import Density, frobenius_squared, hessian, quadrature, rademacher, trace
from hessian_tools.curvature import spectral_density as density
from hessian_tools.curvature.engines.memory import MEMORY_BUDGET


def smooth(spectrum: Tensor, grid: Tensor, width: Tensor) -> Tensor:
    """The density of the exact eigenvalues, smoothed by the kernel of the estimate."""
    steps = (grid[:, None] - spectrum) / width
    return (torch.exp(-(steps**2) / 2) / (width * math.sqrt(2 * math.pi))).mean(-1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_nodes_have_the_moments_of_the_probes(case: Case) -> None:
    """The moments 0 .. 2m - 1 of the nodes are z'H^k z / z'z to rounding, because they are a Gauss rule."""
    H, steps = hessian(case.loss, case.thetas, case.batch), 3
    z = rademacher(H.num_params, 2).double()
    nodes, weights = quadrature(H, z, num_matvecs=steps)
    assert nodes.shape == (3, 2, steps)
    power, scale = z.expand(3, -1, -1), case.dense.abs().sum(-1).amax(-1)[:, None]
    for k in range(2 * steps):
        exact = (z * power).sum(-2) / H.num_params
        error = (weights * nodes**k).sum(-1) - exact
        assert ((error / scale**k).abs() < 1e-13).all(), k
        power = case.dense @ power


def test_moments_are_trace_and_frobenius_norm() -> None:
    H = operator(symmetric(spectrum_with_outliers(60)))
    result = density(H, num_probes=5, num_matvecs=8, seed=4)
    first, second = ((result.weights * result.nodes**k).sum(-1) * 60 for k in (1, 2))
    torch.testing.assert_close(first, trace(H, num_probes=5, seed=4).samples)
    torch.testing.assert_close(second, frobenius_squared(H, num_probes=5, seed=4).samples)
    assert (result.num_matvecs == 40).all()
    assert (result.num_params, result.confidence) == (60, 0.95)


def test_outliers_are_separate_nodes_with_the_right_weights() -> None:
    A = symmetric(spectrum_with_outliers(), points=1)[0]
    result = density(operator(A), num_probes=40, num_matvecs=32)
    values, vectors = torch.linalg.eigh(A)
    shares = (vectors.T @ rademacher(300, 40).double()) ** 2 / 300
    for value in OUTLIERS:
        distance, nearest = (result.nodes - value).abs().min(-1)
        assert distance.max() < 1e-8
        weight = result.weights.gather(-1, nearest[:, None])[:, 0]
        torch.testing.assert_close(weight, shares[(values - value).abs().argmin()], rtol=1e-5, atol=1e-9)
    inside = (result.nodes.abs() < 1.001) * result.weights
    outer = (values[:, None] - OUTLIERS).abs().amin(-1) < 1e-6
    torch.testing.assert_close(inside.sum(-1), shares[~outer].sum(0), rtol=1e-7, atol=0)
    assert ((result.nodes.abs() < 1.001) | ((result.nodes[..., None] - OUTLIERS).abs() < 1e-6).any(-1)).all()


@pytest.mark.parametrize("width", [0.1, 0.3])
def test_a_bulk_beside_outliers_keeps_its_shape(width: float) -> None:
    """With a given width and grid the semicircle is resolved, although the outliers lie forty times as far out."""
    spectrum = spectrum_with_outliers()
    grid = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64)
    result = density(operator(symmetric(spectrum, points=1)[0]), num_probes=20, num_matvecs=48, grid=grid, width=width)
    exact = smooth(spectrum, grid, torch.tensor(width))
    assert (result.density - exact).abs().max() < 0.06 * exact.max()
    assert result.grid.shape == (61,)
    low, high = result.band
    assert ((low <= result.density) & (result.density <= high)).all()


def test_bands_cover_at_their_confidence() -> None:
    """Inside the bulk, the smoothed density of the exact spectrum lies in the 90 % band in 90 % of trials."""
    spectrum, repeats = spectrum_with_outliers(120), 120
    A = symmetric(spectrum, points=1)[0]
    grid = torch.tensor([-0.8, -0.3, 0.0, 0.5], dtype=torch.float64)
    probes = rademacher(120, 6 * repeats).view(120, repeats, 6).permute(1, 0, 2)
    H = operator(A.expand(repeats, 120, 120))
    result = density(H, probes=probes, num_matvecs=40, grid=grid, width=0.2, confidence=0.9)
    exact = smooth(spectrum, grid, torch.tensor(0.2))
    covered = ((result.band[0] <= exact) & (exact <= result.band[1])).double().mean(0)
    assert ((covered > 0.82) & (covered < 0.97)).all(), covered
    half = (result.band[1] - result.band[0]) / 2
    stderr = result.curves.std(-2) / 6**0.5
    t = 2.0150  # the 95 % quantile of Student's t with 5 degrees of freedom
    torch.testing.assert_close(half, t * stderr, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", SPECTRA)
def test_density_integrates_to_one_and_cumulates(name: str) -> None:
    H = operator(symmetric(SPECTRA[name]))
    for result in (density(H, num_matvecs=10), density(H, num_matvecs=24)):
        area = torch.trapezoid(result.density, result.grid)
        torch.testing.assert_close(area, torch.ones(3).double(), rtol=0, atol=1e-5)
        torch.testing.assert_close(result.weights.sum(-1), torch.ones_like(result.weights[..., 0]))
        assert (result.cumulative.diff() >= -1e-12).all()
        assert (result.cumulative[:, 0] < 1e-6).all()
        assert (result.cumulative[:, -1] > 1 - 1e-6).all()
        middle = torch.cumulative_trapezoid(result.density, result.grid)[:, 255]
        torch.testing.assert_close(result.cumulative[:, 256], middle, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", SPECTRA)
def test_small_matrices_are_computed_exactly(name: str) -> None:
    result = density(operator(symmetric(SPECTRA[name])), num_matvecs=24, width=0.3)
    torch.testing.assert_close(result.nodes[:, 0], SPECTRA[name].sort().values.expand(3, -1))
    exact = smooth(SPECTRA[name], result.grid[0], torch.tensor(0.3))
    torch.testing.assert_close(result.density[0], exact)
    assert torch.equal(*result.band)
    assert (result.num_matvecs == 24).all()


@pytest.mark.parametrize("name", ["low_rank", "clustered"])
def test_rules_of_exhausted_krylov_spaces_are_right(name: str) -> None:
    """With more steps than distinct eigenvalues the rule is complete early, and further steps do not change it."""
    z = rademacher(24, 4).double()
    A = symmetric(SPECTRA[name], points=1)[0]
    nodes, weights = quadrature(operator(A), z, num_matvecs=20)
    assert nodes.shape == (4, 20)
    for k in range(6):
        exact = (z * (torch.linalg.matrix_power(A, k) @ z)).sum(0) / 24
        torch.testing.assert_close((weights * nodes**k).sum(-1), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("value", [0.0, -2.5])
def test_densities_of_multiples_of_the_identity(value: float) -> None:
    A = value * torch.eye(40, dtype=torch.float64)
    for result in (density(operator(A), num_matvecs=6), density(operator(A))):
        torch.testing.assert_close((result.weights * result.nodes).sum(-1), torch.full_like(result.nodes[:, 0], value))
        assert float(result.width) > 0
        torch.testing.assert_close(
            torch.trapezoid(result.density, result.grid), torch.tensor(1.0).double(), rtol=0, atol=1e-5
        )


def test_the_default_width_follows_its_rule() -> None:
    """It is 0.75 (exactly 0.7485) spacings of the nodes that are not resolved, so that outliers do not widen it."""
    alone = density(operator(symmetric(bulk(100))), num_matvecs=21, num_probes=3)
    reach = alone.nodes.amax((-2, -1)) - alone.nodes.amin((-2, -1))
    torch.testing.assert_close(alone.width, reach / 20 * 0.7485, rtol=1e-4, atol=0)
    result = density(operator(symmetric(spectrum_with_outliers(100))), num_matvecs=21, num_probes=3)
    inside = result.nodes.masked_fill(result.nodes.abs() > 2, 0.0)
    reach = inside.amax((-2, -1)) - inside.amin((-2, -1))
    # The outermost nodes of the bulk are nearly resolved eigenvalues.
    torch.testing.assert_close(result.width, reach / 17 * 0.7485, rtol=0.15, atol=0)
    torch.testing.assert_close(result.grid[:, 0], result.nodes.amin((-2, -1)) - 5 * result.width)
    low_rank = density(operator(symmetric(SPECTRA["low_rank"])), num_matvecs=13)
    torch.testing.assert_close(low_rank.width, torch.full((3,), 12 / 12 * 0.7485).double(), rtol=1e-4, atol=0)
    far = torch.cat([torch.tensor([1e6]).double(), bulk(60)])
    assert float(density(operator(symmetric(far, points=1)[0]), num_matvecs=12).width) == pytest.approx(748.5, rel=1e-3)


def test_the_default_density_is_right_on_a_known_spectrum() -> None:
    """For a semicircle and outliers forty times as far it agrees with the exact density under the same kernel."""
    result = density(operator(symmetric(spectrum_with_outliers(), points=1)[0]), num_probes=20, num_matvecs=64)
    assert float(result.width) < 0.05
    exact = smooth(spectrum_with_outliers(), result.grid, result.width)
    inside = result.grid.abs() < 1.3
    error = (result.density - exact).abs()[inside]
    assert error.max() < 0.2 * exact.max()
    assert error.mean() < 0.06 * exact[inside].mean()


def test_the_result_depends_neither_on_other_points_nor_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    A = symmetric(spectrum_with_outliers(50))
    whole = density(operator(A), num_probes=4, num_matvecs=6)
    single = density(operator(A[1]), num_probes=4, num_matvecs=6)
    torch.testing.assert_close(single.density, whole.density[1])
    assert single.nodes.shape == (4, 6)
    for runs in (2, 5):
        monkeypatch.setitem(MEMORY_BUDGET, "cpu", runs * 6 * 50 * 8)
        pieces = density(operator(A), num_probes=4, num_matvecs=6)
        torch.testing.assert_close(pieces.nodes, whole.nodes)
        torch.testing.assert_close(pieces.weights, whole.weights)


def test_float32_with_different_probes_at_each_point() -> None:
    A = symmetric(spectrum_with_outliers(50)).float()
    probes = torch.stack([rademacher(50, 3, path=("task", task)) for task in range(3)])
    result: Density = density(operator(A), probes=probes, num_matvecs=12)
    assert result.nodes.dtype == result.density.dtype == result.grid.dtype == torch.float32
    exact = density(operator(A.double()), probes=probes, num_matvecs=12, grid=result.grid[0].double())
    torch.testing.assert_close(result.nodes[..., -1].double(), exact.nodes[..., -1], rtol=1e-5, atol=1e-5)
    assert not torch.equal(result.nodes[0], result.nodes[1])


@pytest.mark.parametrize("num_matvecs", [10, 60], ids=["lanczos", "exact"])
def test_a_point_that_is_not_finite_changes_no_other(num_matvecs: int) -> None:
    A = symmetric(spectrum_with_outliers(50))
    right = density(operator(A), num_matvecs=num_matvecs)
    A[1, 3, 4] = torch.inf
    with_nan = density(operator(A), num_matvecs=num_matvecs)
    assert not with_nan.isolated[1].any()
    assert with_nan.density.isnan().all(-1).tolist() == [False, True, False]
    torch.testing.assert_close(with_nan.density[[0, 2]], right.density[[0, 2]])


def test_a_grid_follows_a_narrow_width() -> None:
    """A width of a thousandth of the spectrum would be lost between the 512 values of a usual grid."""
    result = density(operator(symmetric(spectrum_with_outliers(100))), num_matvecs=20, width=0.05)
    assert (result.grid.diff(dim=-1) <= 0.05 / 4 + 1e-9).all()
    torch.testing.assert_close(torch.trapezoid(result.density, result.grid), torch.ones(3).double(), rtol=0, atol=1e-5)


def test_progress_counts_every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    H, seen = operator(symmetric(spectrum_with_outliers(50))), []
    result = density(H, num_probes=4, num_matvecs=6, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == [12 * (step + 1) for step in range(6)]
    assert {total for _, total in seen} == {int(result.num_matvecs.sum())} == {72}
    monkeypatch.setitem(MEMORY_BUDGET, "cpu", 5 * 6 * 50 * 8)
    seen.clear()
    density(H, num_probes=4, num_matvecs=6, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (72, 72)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    seen.clear()
    density(H, num_matvecs=50, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(150, 150)]


def test_a_keyboard_interrupt_stops_at_once_and_changes_no_state() -> None:
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    H, state = operator(symmetric(spectrum_with_outliers(50))), torch.get_rng_state()
    with without_type_checks(), pytest.raises(KeyboardInterrupt):
        density(H, num_probes=4, num_matvecs=6, progress=stop)
    assert len(calls) == 3
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(
        density(H, num_matvecs=6).density,
        density(operator(symmetric(spectrum_with_outliers(50))), num_matvecs=6).density,
    )


# The words of the message, and the wrong option.
BAD = {
    "num_probes=1": {"num_probes": 1},
    "num_matvecs=0": {"num_matvecs": 0},
    "grid is a tensor": {"grid": torch.zeros(2, 2)},
    "width=0": {"width": 0.0},
    "confidence=1": {"confidence": 1.0},
    "2 probes or more": {"probes": randn(24, 1, stream_name="one")},
}


@pytest.mark.parametrize("words", BAD)
def test_wrong_options_are_refused_in_plain_words(words: str) -> None:
    with without_type_checks(), pytest.raises(ValueError, match=words):
        density(operator(symmetric(SPECTRA["decaying"])), **BAD[words])


def test_graded_matrices_as_of_confident_predictions() -> None:
    """Their float32 entries underflow, and LAPACK's float32 solvers fail on them or give NaN."""
    graded = torch.logspace(0, -22, 30).double()
    for seed in range(20):
        J = randn(30, 30, stream_name=f"graded-{seed}") * graded
        A = (J @ J.mT * graded[:, None] * graded).float()
        A = (A + A.mT) / 2
        nodes = density(operator(A[None]), num_matvecs=64).nodes[0, 0].double()
        truth = torch.linalg.eigvalsh(A.double())
        torch.testing.assert_close(nodes, truth, rtol=0, atol=1e-6 * float(truth.abs().max()))


@pytest.mark.parametrize("options", [{"grid": [0.0, 1.0]}, {"width": math.inf}])
def test_a_list_for_a_grid_and_an_infinite_width_are_refused(options: dict) -> None:
    with without_type_checks(), pytest.raises(ValueError, match=r"(grid=\[0|width=inf).* must be"):
        density(operator(torch.eye(3).double()[None]), **options)


def test_shares_of_cells_count_every_eigenvalue_once() -> None:
    """Cells may be much wider than the kernel, which is where the density on a grid would miss an outlier."""
    edges = torch.tensor([-100.0, -10.0, -1.5, 1.5, 10.0, 100.0], dtype=torch.float64)
    spectrum = spectrum_with_outliers(100)
    exact = torch.histogram(spectrum, edges).hist / 100
    shares, stderr = density(operator(symmetric(spectrum)), num_matvecs=100, width=1e-4).shares(edges)
    torch.testing.assert_close(shares, exact.expand(3, -1))
    assert (stderr == 0).all()
    shares, stderr = density(operator(symmetric(spectrum)), num_probes=30, num_matvecs=20, width=1e-4).shares(edges)
    assert shares.shape == stderr.shape == (3, 5)
    torch.testing.assert_close(shares.sum(-1), torch.ones(3, dtype=torch.float64))
    assert ((shares - exact).abs() < 4 * stderr + 1e-6).all()


def test_edges_that_do_not_rise_are_refused() -> None:
    result = density(operator(symmetric(spectrum_with_outliers(40))), num_matvecs=5)
    for edges in (torch.tensor([1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0, 1.0])):
        with pytest.raises(ValueError, match="two or more rising numbers"):
            result.shares(edges)
