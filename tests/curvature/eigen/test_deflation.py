"""Multiple and clustered eigenvalues: with ``copies=True`` none is missed, whether the basis is long or short."""

import pytest
import torch
from cases import symmetric
from eigenvalue_checks import WHICH, Matrices, check_pairs, expected
from torch import Tensor

from hessian_tools.curvature import extremal_eigenpairs, top_eigenpairs

N = 250
BULK = torch.linspace(-1.0, 1.0, N, dtype=torch.float64)


def spectrum_with(*values: float) -> Tensor:
    """The given eigenvalues and a bulk between -1 and 1, so many that no Krylov space is exhausted."""
    spectrum = BULK.clone()
    spectrum[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return spectrum


MULTIPLE = {
    "two at the top": spectrum_with(5.0, 5.0, 3.0, 2.0),
    "three in the middle": spectrum_with(5.0, 3.0, 3.0, 3.0, 2.0),
    "five at the top": spectrum_with(5.0, 5.0, 5.0, 5.0, 5.0, 4.0),
    "at both ends": spectrum_with(5.0, 5.0, -4.0, -4.0, -4.0, 3.0),
    "hidden below": spectrum_with(100.0, 3.0, 2.0, 2.0, -1.8, -1.8),
    "cluster 1e-3": spectrum_with(5.0, 5.005, 5.01, 3.0, 3.003, 2.0),
    "cluster 1e-6": spectrum_with(5.0, 5.000005, 5.00001, 3.0, 3.000003, 2.0),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", MULTIPLE)
def test_no_copy_of_an_eigenvalue_is_missed(name: str, which: str, dtype: torch.dtype) -> None:
    A = symmetric(MULTIPLE[name], points=2, stream_name=name).to(dtype)
    for k in (1, 4, 7) if dtype == torch.float64 and which == "LM" else (3,):
        pairs = top_eigenpairs(Matrices(A), k=k, which=which, rtol=1e-4, method="lanczos", copies=True, vectors=True)
        check_pairs(A, pairs)
        assert pairs.converged.all()
        assert pairs.complete.all()
        wanted = expected(MULTIPLE[name].expand(2, -1), which, k).to(dtype)
        torch.testing.assert_close(pairs.values, wanted, rtol=3e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["five at the top", "at both ends"])
def test_no_copy_is_missed_with_a_short_basis(name: str) -> None:
    A = symmetric(MULTIPLE[name], points=2, stream_name=name)
    pairs = top_eigenpairs(Matrices(A), k=5, rtol=1e-6, copies=True, max_basis=16, max_matvecs=2000, method="lanczos")
    assert pairs.converged.all()
    assert pairs.complete.all()
    torch.testing.assert_close(pairs.values, expected(MULTIPLE[name].expand(2, -1), "LM", 5), rtol=1e-6, atol=1e-6)


def test_the_search_at_the_low_end_costs_as_much_as_that_at_the_high_end_of_the_negative_matrix() -> None:
    """A copy of the last wanted value is not wanted at either end, so that no further search follows it."""
    A = symmetric(MULTIPLE["five at the top"], points=2)
    low, high = (
        top_eigenpairs(Matrices(sign * A), k=3, which=which, rtol=1e-4, copies=True, method="lanczos")
        for sign, which in ((-1, "SA"), (1, "LA"))
    )
    assert low.num_matvecs.tolist() == high.num_matvecs.tolist()
    torch.testing.assert_close(low.values, -high.values)


def test_one_run_finds_the_copies_at_both_ends() -> None:
    A = symmetric(MULTIPLE["at both ends"], points=2)
    found = extremal_eigenpairs(Matrices(A), magnitude=3, ends=3, copies=True, method="lanczos")
    torch.testing.assert_close(found.smallest.values[0], torch.tensor([-4.0, -4.0, -4.0]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.largest.values[0], torch.tensor([5.0, 5.0, 3.0]).double(), rtol=1e-6, atol=0)
    assert found.smallest.complete.all()


def test_without_the_search_copies_are_missed_and_complete_is_false() -> None:
    """One run misses copies, which ``complete`` reports. By default only small matrices are searched."""
    spectrum = spectrum_with(5.0, 5.0, 5.0, 3.0)
    A = symmetric(spectrum, points=2)
    without_search = top_eigenpairs(Matrices(A), k=1, copies=False)
    assert not without_search.complete.any()
    without_search = top_eigenpairs(Matrices(A), k=2, copies=False)
    assert (without_search.values[:, 1] < 3.1).all()
    assert not without_search.complete.any()
    with_search = top_eigenpairs(Matrices(A), k=2)
    assert (with_search.values > 4.9).all()
    assert with_search.complete.all()


def test_completeness_is_not_claimed_when_products_run_out() -> None:
    A = symmetric(spectrum_with(5.0, 4.0, 3.0), points=2)
    first = int(top_eigenpairs(Matrices(A), k=3, copies=False).num_matvecs.max())
    pairs = top_eigenpairs(Matrices(A), k=3, copies=True, max_matvecs=first + 2, method="lanczos")
    assert pairs.converged.all()
    assert not pairs.complete.any()
    assert (pairs.num_matvecs <= first + 2).all()


def test_a_point_that_is_not_finite_changes_no_other() -> None:
    A = symmetric(MULTIPLE["at both ends"], points=3)
    clean = top_eigenpairs(Matrices(A), k=3, copies=True)
    A[1, 3, 3] = torch.nan
    pairs = top_eigenpairs(Matrices(A), k=3, copies=True)
    assert pairs.values[1].isnan().all()
    assert pairs.complete.tolist() == [True, False, True]
    torch.testing.assert_close(pairs.values[[0, 2]], clean.values[[0, 2]])


def test_points_do_not_affect_each_other() -> None:
    A = torch.stack([symmetric(MULTIPLE[name], points=1, stream_name=name)[0] for name in MULTIPLE])
    together = top_eigenpairs(Matrices(A), k=4)
    for i in range(len(A)):
        alone = top_eigenpairs(Matrices(A[i : i + 1]), k=4)
        torch.testing.assert_close(together.values[i], alone.values[0])
        # The final check takes as many products at every point as the point with the most pairs needs.
        assert together.num_matvecs[i] <= alone.num_matvecs[0] + 4


def test_matrices_with_a_single_eigenvalue() -> None:
    for value in (0.0, 2.0):
        A = value * torch.eye(200, dtype=torch.float64).expand(2, -1, -1)
        pairs = top_eigenpairs(Matrices(A.contiguous()), k=4, copies=True, method="lanczos")
        assert pairs.converged.all()
        assert pairs.complete.all()
        torch.testing.assert_close(pairs.values, torch.full_like(pairs.values, value))
