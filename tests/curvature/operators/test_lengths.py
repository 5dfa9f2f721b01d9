"""Lengths and inner products of vectors with millions of entries, and the curvature that rests on them."""

import pytest
import torch
from torch import Tensor, nn

import hessian_tools as ht
from hessian_tools import stream
from hessian_tools.curvature.operators.lengths import LONG, inner_products, lengths, vector_norm

N = 1_000_003  # torch's own sums have errors of 1e-5 to 1e-4 here; not a multiple of any piece


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=stream(0, "lengths"))


def largest_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() / expected - 1).abs().max())


def test_lengths_keep_the_digits_of_float32() -> None:
    x = uniform(2, N)
    expected = torch.linalg.vector_norm(x.double(), dim=-1)
    assert largest_error(x.norm(dim=-1), expected) > 1e-6  # what is mended
    assert largest_error(lengths(x), expected) < 1e-6
    for found in (vector_norm(x), vector_norm(x.mT, dim=0), vector_norm(x.mT.contiguous(), dim=-2)):
        assert found.dtype == torch.float32 and largest_error(found, expected) < 1e-6
    assert vector_norm(x, keepdim=True).shape == (2, 1) and vector_norm(x.mT, dim=0, keepdim=True).shape == (1, 2)


def test_inner_products_keep_the_digits_of_float32() -> None:
    A, B = uniform(3, 2, N), uniform(1, 4, N)
    expected = A.double() @ B.double().mT
    assert largest_error(A @ B.mT, expected) > 1e-6
    for a, b in ((A, B), (A.mT.contiguous().mT, B), (A[0], B[0])):
        assert largest_error(inner_products(a, b), expected if a.ndim == 3 else expected[0]) < 1e-6
    assert inner_products(B, A).shape == (3, 4, 2)


@pytest.mark.parametrize("n", [1, LONG, LONG + 1])
def test_vectors_of_any_length_and_dtype(n: int) -> None:
    for dtype in (torch.float32, torch.float64):
        x = uniform(2, n).to(dtype)
        torch.testing.assert_close(vector_norm(x), x.norm(dim=-1))
        torch.testing.assert_close(inner_products(x, x), x @ x.mT)


def test_the_gram_matrix_of_a_million_parameters_in_float32() -> None:
    """One example x of a linear model with the loss (x'theta)^2 has the Gauss-Newton matrix 2 x x'."""
    model = nn.Linear(N, 1, bias=False)
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, lambda out, y: (out**2).mean() + 0 * y.sum(), layout)
    x = uniform(1, N)
    found = ht.spectrum(ht.gauss_newton(loss, 0 * theta, (x, torch.zeros(1))))
    assert largest_error(found.values.max(), 2 * (x.double() ** 2).sum()) < 1e-6


def test_the_curvature_of_a_million_parameters_in_float32() -> None:
    """The Hessian is diagonal, with one eigenvalue of 50 above a bulk between 1 and 2."""
    curvatures = 1 + uniform(N)
    curvatures[17] = 50.0
    theta = 0.5 + uniform(N)
    H = ht.hessian(lambda t, a: (a * t**2).sum() / 2, theta, curvatures)
    pairs = ht.top_eigenpairs(H, k=1, rtol=1e-4, vectors=True)
    assert pairs.converged.all() and largest_error(pairs.values, torch.tensor([50.0])) < 1e-6
    assert pairs.vectors is not None
    v = pairs.vectors[:, 0].double()
    residual = float((curvatures.double() * v - pairs.values.double() * v).norm() / v.norm())
    assert residual <= 1.01 * float(pairs.residuals) + 1e-5
    g = (curvatures * theta).double()
    rho = float(g @ (curvatures.double() * g) / (g @ g))
    found = ht.gradient_curvature(H)
    assert largest_error(found.rho, torch.tensor(rho)) < 1e-6
    assert largest_error(found.grad_norm, g.norm()) < 1e-6
