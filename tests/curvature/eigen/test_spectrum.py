"""Whole spectra: closed forms, dense references, ranks, error bounds, points that are not finite."""

import pytest
import torch
from cases import CASES, SPECTRA, Case, randn, symmetric, without_type_checks
from eigenvalue_checks import WHICH, Matrices, check_pairs, expected, operator

from hessian_tools import MLP, flatten, make_loss, seeded
from hessian_tools.curvature import gauss_newton, hessian, spectrum, top_eigenpairs
from hessian_tools.curvature.eigen import exact, range_finder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_against_its_dense_hessian(case: Case) -> None:
    result = spectrum(hessian(case.loss, case.thetas, case.batch), vectors=True)
    truth = torch.linalg.eigvalsh(case.dense)
    assert ((result.values.sort(-1).values - truth).abs().amax(-1) <= result.error).all()
    assert (result.error <= 1e-11 * truth.abs().amax(-1).clamp(min=1e-3)).all()
    torch.testing.assert_close(result.trace, case.dense.diagonal(dim1=-2, dim2=-1).sum(-1))
    torch.testing.assert_close(result.frobenius, case.dense.flatten(1).norm(dim=-1))
    V = result.vectors
    torch.testing.assert_close(case.dense @ V, V * result.values[:, None, : V.shape[-1]], rtol=0, atol=1e-9)


def low_rank_network(dtype: torch.dtype):
    """An MLP 1-12-12-1 on two examples, whose rank is far below a quarter of its 193 parameters."""
    model = seeded(lambda: MLP((1, 12, 12, 1)), seed=0)
    theta, layout = flatten(model)
    loss = make_loss(model, lambda out, y: ((out - y) ** 2).mean(), layout)
    thetas = (theta + 0.2 * randn(4, len(theta), stream_name="low-rank")).to(dtype)
    x, y = randn(4, 2, 1, stream_name="x").to(dtype), randn(4, 2, 1, stream_name="y").to(dtype)
    return hessian(loss, thetas, (x, y))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_range_finder_and_whole_matrix_agree_on_a_network(dtype: torch.dtype) -> None:
    H = low_rank_network(dtype)
    by_range, dense = spectrum(H, method="range finder", max_rank=96), spectrum(H, method="dense")
    assert not by_range.dense.any()
    assert dense.dense.all()
    assert (by_range.rank < 60).all()
    assert (by_range.num_matvecs < H.num_params).all()
    distance = (by_range.values.sort(-1).values - dense.values.sort(-1).values).abs().amax(-1)
    assert (distance <= by_range.error + dense.error).all()
    assert (by_range.error <= 300 * torch.finfo(dtype).eps * dense.frobenius).all()


def spectrum_of_rank(rank: int, n: int = 300):
    """n eigenvalues of which ``rank`` are not zero, with magnitudes from 1 to 5 and alternating signs."""
    values = torch.zeros(n, dtype=torch.float64)
    values[:rank] = torch.linspace(1.0, 5.0, rank).double() * (-1) ** torch.arange(rank)
    return values


def test_the_method_is_chosen_for_each_point_by_its_rank() -> None:
    """Points of rank 3 and 60 are solved by the range finder, and the point of rank 200 from the whole matrix."""
    spectra = [spectrum_of_rank(rank) for rank in (3, 60, 200, 3)]
    A = torch.stack([symmetric(values, points=1)[0] for values in spectra])
    reports: list[tuple[int, int]] = []
    result = spectrum(
        Matrices(A), max_rank=128, vectors=True, progress=lambda done, total: reports.append((done, total))
    )
    assert result.rank.tolist() == [3, 60, 200, 3]
    assert result.dense.tolist() == [False, False, True, False]
    assert (result.num_matvecs[0] < result.num_matvecs[1]) & (result.num_matvecs[1] < result.num_matvecs[2])
    for values, ours, error in zip(spectra, result.values, result.error, strict=True):
        assert (ours - values.gather(0, values.abs().argsort(descending=True))).abs().max() <= error
    assert reports[-1] == (4, 4)
    alone = spectrum(Matrices(A[2:3]), max_rank=128, method="range finder")
    assert alone.values.isnan().all()
    assert alone.rank.tolist() == [0]


def test_the_error_bounds_what_the_range_finder_left_out() -> None:
    """A tail of size 1e-4 is left out. The true error lies below the stated one, which is not excessively large."""
    values = torch.cat([torch.linspace(1.0, 3.0, 30).double(), 1e-4 * 0.99 ** torch.arange(370)])
    A = symmetric(values, points=6)
    result = spectrum(Matrices(A), method="range finder", rtol=3e-3, max_rank=300)
    true = (result.values.sort(-1).values - values.sort().values).abs().amax(-1)
    assert (true <= result.error).all()
    assert (result.error <= 3e-2).all()
    assert (true > 1e-5).all()  # something was left out


def test_the_error_bound_fails_about_as_often_as_its_risk_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a risk of 20 % the bound fails sometimes, but not much more often than in 20 % of the cases."""
    monkeypatch.setattr(range_finder, "RISK", 0.2)
    monkeypatch.setattr(range_finder, "BLOCK", 2)
    values = torch.zeros(40, dtype=torch.float64)
    values[0] = 1.0  # a single direction is the worst case of the bound, which is then exact
    A = symmetric(values, points=1).expand(1, 40, 40)
    fails = 0
    for seed in range(200):
        (compressed,) = range_finder.compress(Matrices(A), rtol=1e3, max_rank=20, seed=seed)
        fails += float(compressed.error) < 1.0
    assert 0.1 * 200 < fails < 0.3 * 200


def test_nan_at_one_point_changes_no_other() -> None:
    A = torch.stack([symmetric(spectrum_of_rank(5), points=1)[0]] * 3)
    A[1, 4, 4] = torch.nan
    for method in ("auto", "dense"):
        result = spectrum(Matrices(A), method=method, vectors=True)
        assert result.values[1].isnan().all()
        assert result.error[1].isnan()
        assert result.rank.tolist() == [5, 0, 5]


def test_a_single_point_has_no_point_axis() -> None:
    result = spectrum(operator(symmetric(SPECTRA["low_rank"])[0]), vectors=True)
    assert (result.values.shape, result.error.shape, result.vectors.shape) == ((24,), (), (24, 24))
    assert int(result.rank) == 3


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("rank", [4, 250])
def test_top_pairs_by_the_exact_method(which: str, rank: int) -> None:
    """At rank 4 they come from the range finder and include zeros; at rank 250 from the whole matrix."""
    values = spectrum_of_rank(rank)
    A = symmetric(values, points=2)
    pairs = top_eigenpairs(Matrices(A), k=6, which=which, method="exact", vectors=True)
    check_pairs(A, pairs)
    assert pairs.converged.all()
    assert pairs.complete.all()
    torch.testing.assert_close(pairs.values, expected(values.expand(2, -1), which, 6), rtol=1e-10, atol=1e-10)
    overlaps = pairs.vectors.mT @ pairs.vectors
    torch.testing.assert_close(overlaps, torch.eye(6, dtype=A.dtype).expand_as(overlaps), rtol=0, atol=1e-9)


def test_auto_takes_the_exact_method_for_small_matrices() -> None:
    H = Matrices(symmetric(SPECTRA["decaying"]))
    assert top_eigenpairs(H, k=2).num_matvecs.tolist() == [26] * 3
    assert (top_eigenpairs(H, k=2, max_matvecs=20).num_matvecs <= 20).all()
    large = Matrices(symmetric(spectrum_of_rank(5, 160)))
    assert (top_eigenpairs(large, k=2).num_matvecs < 40).all()
    assert top_eigenpairs(large, k=50).num_matvecs.tolist() == [3 * 32 + 50] * 3


def test_a_matrix_that_would_not_fit_in_memory_is_refused() -> None:
    H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(40_000), torch.ones(40_000))
    with pytest.raises(ValueError, match="12 GiB; use top_eigenpairs or spectral_density"):
        spectrum(H, method="dense")


def test_bad_options_are_refused_in_plain_words() -> None:
    H = Matrices(symmetric(SPECTRA["decaying"]))
    for options, words in (
        ({"method": "lanczos"}, "auto, dense, range finder"),
        ({"rtol": -1.0}, "0 or more"),
        ({"max_rank": 0}, "max_rank=0 must be at least 1"),
    ):
        with without_type_checks(), pytest.raises(ValueError, match=words):
            spectrum(H, **options)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(6, 3), (30, 8)])
def test_where_terms_cancel_the_error_is_in_proportion_to_the_terms(sizes: tuple[int, int]) -> None:
    """Hessian and Gauss-Newton matrix of a linear network are equal, so their difference is only rounding."""
    model = seeded(lambda: torch.nn.Linear(*sizes), seed=0)
    theta, layout = flatten(model)
    loss = make_loss(model, torch.nn.functional.cross_entropy, layout)
    batch = randn(4, 20, sizes[0], stream_name="inputs").float(), torch.arange(80).view(4, 20) % sizes[1]
    thetas = theta + randn(4, len(theta), stream_name="linear").float()
    H, G = hessian(loss, thetas, batch, route="direct"), gauss_newton(loss, thetas, batch)
    for difference, scale in ((H - G, 1.0), ((3 * H - 3 * G).block("head"), 3.0)):
        result, usual = spectrum(difference), spectrum(H)
        assert (result.values.abs().amax(-1) <= result.error).all() and (result.rank == 0).all()
        assert (result.error <= 2e3 * scale * torch.finfo(torch.float32).eps * usual.frobenius).all()


def test_a_max_rank_that_is_not_whole_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_rank=2\.5 is not a whole number"), without_type_checks():
        spectrum(operator(symmetric(SPECTRA["decaying"])), max_rank=2.5)


def test_random_vectors_of_the_null_space_follow_from_the_seed() -> None:
    rows = torch.eye(40, dtype=torch.float64)[None, :5]
    first, again, other = (exact._orthonormal_to(rows, 3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
