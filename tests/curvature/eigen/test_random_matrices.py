"""On ten thousand random symmetric matrices every eigenvalue lies within its stated residual or error."""

import pytest
import torch
from cases import randn
from eigenvalue_checks import WHICH, Matrices, check_pairs, expected
from torch import Tensor

from hessian_tools.curvature import spectrum, top_eigenpairs

SIZES = range(2, 41)
COUNT = 256  # matrices of each size, 64 of each of four kinds; 39 sizes make 9 984, and 64 of size 1 are added
assert len(SIZES) * COUNT + 64 >= 10_000


def matrices(n: int) -> Tensor:
    """Random matrices of four kinds: dense Gaussian, low rank, graded over twelve decades, multiple eigenvalues."""
    G = randn(COUNT // 4, n, n, stream_name=f"gaussian/{n}")
    Q = torch.linalg.qr(randn(COUNT // 4, n, n, stream_name=f"basis/{n}")).Q
    signs = torch.sign(randn(COUNT // 4, n, stream_name=f"signs/{n}"))
    low_rank = torch.where(torch.arange(n) < max(1, n // 5), randn(COUNT // 4, n, stream_name=f"low/{n}"), 0.0)
    graded = signs * 10.0 ** torch.linspace(2, -10, n)
    multiple = torch.round(2 * randn(COUNT // 4, n, stream_name=f"multiple/{n}"))
    A = torch.cat([G + G.mT, *((Q * values[:, None]) @ Q.mT for values in (low_rank, graded, multiple))])
    return (A + A.mT) / 2


@pytest.mark.parametrize("n", [1, *SIZES])
def test_every_eigenvalue_lies_within_its_residual(n: int) -> None:
    """No wanted eigenvalue is missed either, except by the run that does not search for copies."""
    A = matrices(n)[: 64 if n == 1 else COUNT]
    check(A, n, method="lanczos")
    if n % 8 == 1:
        check(A, n, method="lanczos", copies=False)
        check(A, n)
        check(A.float(), n, method="lanczos")
        check(A.float(), n)


def check(A: Tensor, n: int, **options: str | bool) -> None:
    """Asserts that the wanted pairs of the matrices are right within their residuals, and none is missed."""
    truth, rounding = torch.linalg.eigvalsh(A.double()), 1e3 * torch.finfo(A.dtype).eps
    scale = truth.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    which, k = WHICH[n % 4 - n // 8 % 2], 1 + n // 4
    pairs = top_eigenpairs(Matrices(A), k=k, which=which, rtol=1e-4, vectors=True, **options)
    check_pairs(A, pairs)
    # An eigenvalue near zero needs a residual near zero, which a pair result along with inexact ones may not reach.
    assert (pairs.converged | (pairs.values.abs() < 1e-3 * scale)).all()
    if "copies" in options:
        return
    assert pairs.complete.all()
    ours, wanted = pairs.values.double(), expected(truth, which, k)
    if which == "LM":  # if two values have the same magnitude, either of them is right
        ours, wanted = ours.abs(), wanted.abs()
    assert ((ours - wanted).abs() <= pairs.residuals + 2e-4 * wanted.abs() + rounding * scale).all()


@pytest.mark.heavy
@pytest.mark.parametrize("method", ["dense", "range finder"])
@pytest.mark.parametrize("n", [2, 5, 17, 40, 130])
def test_every_eigenvalue_lies_within_the_error_of_the_spectrum(n: int, method: str) -> None:
    A = matrices(n)
    for dtype in (torch.float64, torch.float32):
        result = spectrum(Matrices(A.to(dtype)), method=method, max_rank=n)
        truth = torch.linalg.eigvalsh(A.to(dtype).double())
        solved = result.values.isfinite().all(-1)
        distance = (result.values.double().sort(-1).values - truth).abs().amax(-1)
        assert (distance <= result.error)[solved].all()
        if method == "dense":
            assert solved.all()
        elif n == 130:  # only low rank fits the range finder, whose blocks have 32 vectors
            assert solved[64:128].all()
