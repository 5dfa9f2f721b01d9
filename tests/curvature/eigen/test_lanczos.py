"""Lanczos with restarts, for short bases, many pairs, bounded memory, and points computed in parts."""

from functools import partial
from typing import Any

import pytest
import torch
from cases import SPECTRA, symmetric, without_type_checks
from eigenvalue_checks import WHICH, Matrices, check_pairs, expected, operator
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hessian_tools import curvature
from hessian_tools.curvature import hessian
from hessian_tools.curvature.engines.memory import MEMORY_BUDGET

# Options for one Lanczos run at each point, without a search for missed copies.
top_eigenpairs = partial(curvature.top_eigenpairs, method="lanczos", copies=False)


@pytest.mark.parametrize("max_basis", [12, 18])
@pytest.mark.parametrize("which", WHICH)
def test_restarts_from_a_short_basis_give_the_same_pairs(which: str, max_basis: int) -> None:
    spectrum = torch.cat([torch.linspace(-1.0, 1.0, 140), torch.tensor([2.0, 1.8, 1.6, 1.4, -1.3, -1.5, -1.7, -1.9])])
    A = symmetric(spectrum.double())
    pairs = top_eigenpairs(Matrices(A), k=4, which=which, rtol=1e-6, max_basis=max_basis, max_matvecs=500, vectors=True)
    check_pairs(A, pairs)
    assert pairs.converged.all()
    assert (pairs.num_matvecs > max_basis + 4).all()  # so there was a restart
    torch.testing.assert_close(pairs.values, expected(spectrum.double().expand(3, -1), which, 4), rtol=1e-6, atol=0)


@pytest.mark.parametrize("max_basis", [None, 110])
def test_fifty_pairs_are_found(max_basis: int | None) -> None:
    spectrum = torch.cat([torch.linspace(-1.0, 1.0, 500), 2.0 * 1.05 ** torch.arange(60) * (-1) ** torch.arange(60)])
    A = symmetric(spectrum.double(), points=2)
    pairs = top_eigenpairs(Matrices(A), k=50, rtol=1e-6, max_basis=max_basis, vectors=True)
    check_pairs(A, pairs)
    assert pairs.converged.all()
    wanted = expected(spectrum.double().expand(2, -1), "LM", 50)
    torch.testing.assert_close(pairs.values, wanted, rtol=1e-8, atol=1e-8)
    overlaps = pairs.vectors.mT @ pairs.vectors
    torch.testing.assert_close(overlaps, torch.eye(50, dtype=A.dtype).expand_as(overlaps), rtol=0, atol=1e-9)


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation creates, as its number of float64 rows of the given length."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.rows = length, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.rows = max(self.rows, leaf.untyped_storage().nbytes() // (8 * self.length))
        return out


def test_memory_is_bounded_by_max_basis() -> None:
    """The memory, in rows of length param, follows from max_basis and not from the number of products."""
    n, A = 50_000, torch.linspace(0.0, 1.0, 50_000, dtype=torch.float64) ** 8
    H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(n, dtype=torch.float64), A)
    with without_type_checks(), LargestTensor(n) as largest:
        pairs = top_eigenpairs(H, k=3, rtol=1e-2, max_basis=20, max_matvecs=300)
    assert 40 < int(pairs.num_matvecs) < 300
    assert pairs.converged.all()
    assert largest.rows == 20


def test_points_are_computed_in_parts_if_their_bases_do_not_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    A = symmetric(SPECTRA["decaying"], points=5)
    whole = top_eigenpairs(operator(A), k=2)
    reports: list[tuple[int, int]] = []
    monkeypatch.setitem(MEMORY_BUDGET, "cpu", 2 * 24 * 24 * 8)
    parts = top_eigenpairs(operator(A), k=2, progress=lambda done, total: reports.append((done, total)))
    torch.testing.assert_close(parts.values, whole.values)
    assert torch.equal(parts.num_matvecs, whole.num_matvecs)
    assert reports[-1] == (5, 5)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
