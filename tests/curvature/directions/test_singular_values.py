"""Singular values of adaptation Jacobians: dense references, residuals, degenerate inner loops."""

import pytest
import torch
from cases import SPECTRA, quadratic, symmetric
from contract import close
from torch import Tensor

from hessian_tools.curvature import Hessian, SingularValues, adaptation_jacobian, hessian, singular_values

K = 3


def matrices(tasks: int = 2, steps: int = K, name: str = "indefinite") -> Tensor:
    """The Hessians at every step of every task, [task, step, param, param]."""
    return symmetric(SPECTRA[name], points=tasks * steps, stream_name="adaptation").unflatten(0, (tasks, steps))


def operator(A: Tensor) -> Hessian:
    """The Hessians of quadratic functions, which are the matrices A [task, step, param, param], in task-major order."""
    A = A.flatten(0, -3)
    return hessian(quadratic, torch.zeros(A.shape[:-1], dtype=A.dtype), A)


def dense(A: Tensor, sizes: Tensor) -> Tensor:
    """The product of the factors, the last step leftmost; sizes [task, step, param or 1]."""
    J = torch.eye(A.shape[-1], dtype=A.dtype).expand(A.shape[0], -1, -1)
    for k in range(A.shape[1]):
        J = J - sizes[:, k, :, None] * (A[:, k] @ J)
    return J


@pytest.mark.parametrize("name", ["decaying", "indefinite"])
def test_singular_values_against_dense(name: str) -> None:
    A = matrices(name=name)
    J, exact = adaptation_jacobian(operator(A), 0.05, steps=K), dense(A, torch.full((2, K, 1), 0.05, dtype=A.dtype))
    result = singular_values(J, k=5, rtol=1e-6, vectors=True)
    u, s, v = result.u, result.values, result.v
    truth = torch.linalg.svdvals(exact)
    assert result.converged.all()
    assert u is not None
    assert v is not None
    torch.testing.assert_close(
        result.right_residuals, (exact.mT @ u - v * s[:, None]).norm(dim=1), rtol=1e-6, atol=1e-12
    )
    torch.testing.assert_close(result.left_residuals, (exact @ v - u * s[:, None]).norm(dim=1), rtol=1e-6, atol=1e-12)
    nearest = (s[..., None] - truth[:, None]).abs().amin(-1)
    assert (nearest <= result.error + 1e-12).all()
    torch.testing.assert_close(s, truth[:, :5], rtol=1e-6, atol=0)
    assert (s.diff(dim=-1) <= 0).all()
    close(u.mT @ u, torch.eye(5, dtype=s.dtype).expand(2, 5, 5))


def test_the_error_is_the_residual_of_the_unit_vector_of_both_halves() -> None:
    """(u, v) / sqrt(2) is an approximate eigenvector of the symmetric matrix [[0, J], [J', 0]]."""
    yes, one = torch.tensor([True]), torch.tensor(1)
    result = SingularValues(
        torch.ones(1), torch.tensor([3.0]), torch.tensor([4.0]), yes, None, None, one, torch.tensor(True)
    )
    assert float(result.error) == pytest.approx(5 / 2**0.5)


def test_num_matvecs_counts_every_product_with_a_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, products = [], Hessian.products

    def counted(H: Hessian, V: Tensor) -> Tensor:
        columns.append(V.shape[-1])
        return products(H, V)

    monkeypatch.setattr(Hessian, "products", counted)
    J = adaptation_jacobian(operator(matrices(tasks=1)), 0.05, steps=K)
    assert singular_values(J, k=2).num_matvecs.tolist() == [sum(columns)]


def test_too_few_products_are_reported_as_not_converged() -> None:
    J = adaptation_jacobian(operator(matrices(name="clustered")), 0.3, steps=K)
    short = singular_values(J, k=3, rtol=1e-12, max_matvecs=8)
    assert not short.converged.all()
    assert (short.error > 1e-10 * short.values).any()
    assert (short.num_matvecs >= 2 * K * 8).all()


def test_a_loop_without_curvature_and_a_loop_that_reaches_the_minimum_at_once() -> None:
    zero_hessians = operator(torch.zeros(1, 2, 4, 4, dtype=torch.float64))
    unchanged = singular_values(adaptation_jacobian(zero_hessians, 0.3), k=2)
    close(unchanged.values, torch.ones(2, dtype=torch.float64))
    assert unchanged.converged.all()
    identity_hessians = operator(torch.eye(4, dtype=torch.float64).expand(1, 2, 4, 4))
    contracted = singular_values(adaptation_jacobian(identity_hessians, 1.0), k=2, vectors=True)
    assert contracted.converged.all()
    assert (contracted.values == 0).all()
    assert contracted.u is not None
    assert (contracted.u == 0).all()


def test_a_task_that_is_not_finite_changes_no_other() -> None:
    A = matrices()
    A[1, 0, 0, 0] = torch.nan
    result = singular_values(adaptation_jacobian(operator(A), 0.1, steps=K), k=2)
    assert result.values.isnan().all(-1).tolist() == [False, True]
    assert result.converged.all(-1).tolist() == [True, False]


def test_float32_values_are_right() -> None:
    A = matrices().float()
    J = adaptation_jacobian(operator(A), 0.1, steps=K)
    result, truth = singular_values(J, k=3), torch.linalg.svdvals(J.to_dense().double())[:, :3]
    assert result.values.dtype == torch.float32
    assert result.converged.all()
    torch.testing.assert_close(result.values.double(), truth, rtol=1e-3, atol=0)


def test_wrong_arguments_are_refused_in_plain_words() -> None:
    with pytest.raises(ValueError, match="30 eigenvalues"):
        singular_values(adaptation_jacobian(operator(matrices()), 0.1, steps=K), k=30)


def test_a_second_copy_of_a_value_is_found_and_completeness_reported() -> None:
    """One start vector finds one of two equal largest singular values; the search for missed copies finds the other."""
    A = symmetric(torch.cat([torch.tensor([-9.0, -9.0]), torch.linspace(0, 1, 22)]).double(), points=1)
    J = adaptation_jacobian(operator(A[None]), 0.1)
    result = singular_values(J, k=3, rtol=1e-8, copies=True)
    close(result.values[:2], torch.full((2,), 1.9, dtype=torch.float64))
    assert result.complete.all()
