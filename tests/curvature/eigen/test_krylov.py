"""The Krylov basis: the recurrence in closed form, orthogonality, breakdown, restart, and dropped points."""

import numpy as np
import torch
from cases import randn, symmetric
from torch import Tensor

from hessian_tools.curvature.eigen.krylov import KrylovBasis, move_to_front

N = 12
SPECTRUM = torch.linspace(-3.0, 5.0, N, dtype=torch.float64)


def random(step: int) -> Tensor:
    """A unit vector for every step number; -1 is that of the start vector."""
    vector = randn(N, stream_name=f"fresh/{step}")
    return vector / vector.norm()


def basis_of(A: Tensor, *, max_size: int = N, locked: Tensor | None = None) -> KrylovBasis:
    locked = A.new_empty(len(A), 0, N) if locked is None else locked
    first = random(-1).expand(len(A), -1)
    first = first - ((first[:, None] @ locked.mT) @ locked)[:, 0]
    return KrylovBasis(first / first.norm(dim=-1, keepdim=True), locked, max_size=max_size, fresh=random)


def advance(basis: KrylovBasis, A: Tensor, steps: int) -> None:
    """Extends the basis by ``steps`` products with A."""
    for step in range(steps):
        finite = basis.advance((A @ basis.next[..., None])[..., 0], step)
        assert finite.all()


def all_points(basis: KrylovBasis) -> np.ndarray:
    return np.arange(len(basis.diagonal))


def check_ritz_pairs(basis: KrylovBasis, A: Tensor) -> None:
    """Asserts that Ritz vectors are orthonormal, and that residuals by the recurrence are those by true products."""
    values, residuals, s = basis.pairs(all_points(basis))
    X = basis.vectors(all_points(basis), s)
    torch.testing.assert_close(
        X @ X.mT, torch.eye(basis.size, dtype=A.dtype).expand(len(A), -1, -1), atol=1e-12, rtol=0
    )
    true = (X @ A - values[..., None] * X).norm(dim=-1)
    torch.testing.assert_close(residuals, true, atol=1e-12, rtol=0)


def test_T_of_a_tridiagonal_matrix_is_that_matrix() -> None:
    """From the first unit vector, the basis of a tridiagonal A is the unit vectors up to signs, and T is A."""
    diagonal, coupling = torch.tensor([2.0, -1.0, 0.5]).double(), torch.tensor([1.0, 3.0]).double()
    A = torch.diag(diagonal) + torch.diag(coupling, 1) + torch.diag(coupling, -1)
    first = torch.eye(3, dtype=torch.float64)[:1]
    basis = KrylovBasis(first, A.new_empty(1, 0, 3), max_size=3, fresh=random)
    for step in range(3):
        basis.advance(basis.next @ A, step)
    np.testing.assert_allclose(basis.diagonal[0], diagonal, atol=1e-14)
    np.testing.assert_allclose(basis.coupling[0], [1.0, 3.0, 0.0], atol=1e-14)
    torch.testing.assert_close(basis.rows[0].abs(), torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(basis.pairs(np.array([0]))[0][0], torch.linalg.eigvalsh(A))


def test_residuals_are_right_and_a_basis_of_the_whole_space_gives_all_eigenvalues() -> None:
    A = symmetric(SPECTRUM, points=3)
    basis = basis_of(A)
    advance(basis, A, 5)
    check_ritz_pairs(basis, A)
    assert not basis.exhausted.any() and not basis.breakdown.any()
    advance(basis, A, N - 5)
    check_ritz_pairs(basis, A)
    assert basis.exhausted.all() and basis.breakdown.all()
    torch.testing.assert_close(basis.pairs(np.arange(3))[0], SPECTRUM.expand(3, -1))


def test_a_breakdown_is_reported_and_a_random_vector_follows() -> None:
    """A matrix with two different eigenvalues has Krylov spaces of two dimensions for any start."""
    A = symmetric(torch.tensor([4.0, 4.0, 4.0, *[1.0] * (N - 3)], dtype=torch.float64), points=2)
    basis = basis_of(A)
    advance(basis, A, 1)
    assert not basis.breakdown.any()
    advance(basis, A, 1)
    assert basis.breakdown.all() and not basis.exhausted.any()
    advance(basis, A, 2)
    assert basis.breakdown.all()
    check_ritz_pairs(basis, A)
    torch.testing.assert_close(basis.pairs(np.array([0]))[0][0], torch.tensor([1.0, 1.0, 4.0, 4.0]).double())


def test_after_a_restart_the_kept_pairs_are_there_and_residuals_are_right() -> None:
    A = symmetric(SPECTRUM, points=2)
    basis = basis_of(A, max_size=8)
    advance(basis, A, 7)
    assert basis.size == basis.restart_size
    values, _, s = basis.pairs(np.arange(2))
    basis.restart(values[:, -3:], s[:, :, -3:])
    np.testing.assert_allclose(basis.diagonal[:, :3], values[:, -3:])
    for size in (4, 5, 7):
        advance(basis, A, size - basis.size)
        check_ritz_pairs(basis, A)


def test_the_basis_is_orthogonal_to_locked_vectors() -> None:
    """The space orthogonal to an eigenvector has one dimension less; a row of zeros is padding and locks nothing."""
    A = symmetric(SPECTRUM, points=2)
    top = torch.linalg.eigh(A)[1][..., -1]
    locked = torch.stack([torch.stack([top[0], torch.zeros(N).double()]), torch.linalg.eigh(A)[1][1, :, -2:].T])
    basis = basis_of(A, locked=locked)
    assert basis.dimension.tolist() == [N - 1, N - 2]
    advance(basis, A, N - 2)
    assert basis.exhausted.tolist() == [False, True]
    torch.testing.assert_close(basis.pairs(np.array([1]))[0][0], SPECTRUM[:-2])
    assert (basis.vectors(np.arange(2), basis.pairs(np.arange(2))[2]) @ locked.mT).abs().max() < 1e-13
    advance(basis, A, 1)
    torch.testing.assert_close(basis.pairs(np.array([0]))[0][0], SPECTRUM[:-1])


def test_kept_points_continue_as_if_they_had_been_alone() -> None:
    A = symmetric(SPECTRUM, points=4)
    together, apart = basis_of(A), basis_of(A[[1, 3]])
    advance(together, A, 4)
    together.keep(np.array([1, 3]))
    advance(together, A[[1, 3]], 3)
    advance(apart, A[[1, 3]], 7)
    np.testing.assert_allclose(together.diagonal[:, :7], apart.diagonal[:, :7], atol=1e-12)
    check_ritz_pairs(together, A[[1, 3]])


def test_a_point_that_is_not_finite_is_reported_and_changes_no_other() -> None:
    A = symmetric(SPECTRUM, points=2)
    A[1, 0, 0] = torch.nan
    basis = basis_of(A)
    for step in range(3):
        finite = basis.advance((A @ basis.next[..., None])[..., 0], step)
        assert finite.tolist() == [True, False]
    values = basis.pairs(np.arange(2))[0]
    assert values[0].isfinite().all() and values[1].isnan().all()


def test_rows_are_moved_in_place() -> None:
    A = torch.arange(10.0).view(5, 2)
    move_to_front(A, [1, 3, 4])
    assert A[:3].tolist() == [[2.0, 3.0], [6.0, 7.0], [8.0, 9.0]]
