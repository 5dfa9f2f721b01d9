"""The operations that ``TwiceDifferentiable`` puts in place of torch's return the same values as torch's.

Their derivatives are tested in tests/curvature/engines/test_awkward_operations.py.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import randn
from contract import close
from torch import Tensor
from torch.nn import functional as F

from hessian_tools.torch_fixes.function_modes import TwiceDifferentiable

X, Y = randn(4, 6, stream_name="x"), randn(4, 6, stream_name="y")
A, B, b = randn(2, 3, 3, stream_name="A"), randn(2, 3, 2, stream_name="B"), randn(2, 3, stream_name="b")
L = torch.linalg.cholesky(A @ A.mT + torch.eye(3))
SIGNS = torch.sign(Y)
BAGS, BAG_WEIGHTS = torch.tensor([[0, 3], [2, 2]]), randn(2, 2, stream_name="shares")  # for F.embedding_bag

CALLS: dict[str, Callable[[], Any]] = {
    "prelu": lambda: F.prelu(X, Y[0]),
    "prelu of images": lambda: F.prelu(X.reshape(2, 3, 2, 2), Y[0, :3]),
    "prelu of one slope": lambda: F.prelu(X[0], Y[0, :1]),
    "prelu, the method": lambda: X.prelu(Y[0]),
    "hardsigmoid": lambda: F.hardsigmoid(4 * X),
    "hardsigmoid in place": lambda: (x := 4 * X, F.hardsigmoid(x, inplace=True))[0],
    "glu": lambda: F.glu(X),
    "glu along the first axis": lambda: F.glu(X, 0),
    "rrelu": lambda: F.rrelu(X, 0.1, 0.5),
    "conv_tbc": lambda: torch.conv_tbc(X[..., None], Y[:3, None, :2], Y[0, :2], 1),
    **{f"cdist {p}": lambda p=p: torch.cdist(A, A[:, :2], p) for p in (0.0, 1.0, 1.5, 2.0, 3.0, float("inf"))},
    "cdist of batches": lambda: torch.cdist(A, A[0], compute_mode="use_mm_for_euclid_dist"),
    "pdist": lambda: F.pdist(X, 3),
    "ldexp": lambda: torch.ldexp(X, torch.arange(6)),
    "cholesky_inverse": lambda: torch.cholesky_inverse(L),
    "cholesky_inverse, upper": lambda: L.mT.cholesky_inverse(upper=True),
    "solve": lambda: torch.linalg.solve(A, B),
    "solve, vectors": lambda: torch.linalg.solve(A, b),
    "solve, one vector": lambda: torch.linalg.solve(A[0], b[0]),
    "solve, from the right": lambda: torch.linalg.solve(A, B.mT, left=False),
    "solve_ex": lambda: torch.linalg.solve_ex(A, B).result,
    "solve_ex, vectors": lambda: torch.linalg.solve_ex(A, b)[0],
    "solve_ex, from the right": lambda: torch.linalg.solve_ex(A, B.mT, left=False)[0],
    "triangular_solve": lambda: torch.triangular_solve(B, A).solution,
    "triangular_solve, transposed": lambda: B.triangular_solve(A, upper=False, transpose=True)[0],
    "det": lambda: torch.stack([torch.det(A), A.det(), torch.linalg.det(A), torch.linalg.det(-A)]),
    "slogdet": lambda: torch.stack([*torch.slogdet(A), *torch.linalg.slogdet(-A), A.slogdet().logabsdet]),
    "logdet": lambda: torch.logdet(A @ A.mT),
    "embedding_bag": lambda: F.embedding_bag(BAGS, X),
    "embedding_bag, weighted": lambda: F.embedding_bag(BAGS, X, mode="sum", per_sample_weights=BAG_WEIGHTS),
    "embedding_bag, max": lambda: F.embedding_bag(BAGS, X, mode="max"),
    "embedding_bag, offsets": lambda: F.embedding_bag(BAGS.flatten(), X, torch.tensor([0, 1])),
    **{f"mse {r}": lambda r=r: F.mse_loss(X, Y, reduction=r) for r in ("mean", "sum", "none")},
    "mse, weighted": lambda: F.mse_loss(X, Y, weight=X**2),
    **{f"huber {r}": lambda r=r: F.huber_loss(X, Y, r, 0.7) for r in ("mean", "sum", "none")},
    **{f"soft margin {r}": lambda r=r: F.soft_margin_loss(X, SIGNS, reduction=r) for r in ("mean", "sum", "none")},
}


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize("name", CALLS)
def test_the_values_agree_with_torch(name: str) -> None:
    expected = CALLS[name]()
    with TwiceDifferentiable() as mode:
        result = CALLS[name]()
    assert mode.replaced
    assert result.dtype == expected.dtype
    close(result, expected)


def test_a_loss_that_broadcasts_warns_as_in_torch() -> None:
    with TwiceDifferentiable(), pytest.warns(UserWarning, match="target size"):
        F.mse_loss(X, Y[0])


def test_rrelu_draws_random_slopes_in_training_mode() -> None:
    x = -torch.ones(20)
    with TwiceDifferentiable():
        drawn: Tensor = F.rrelu(x, training=True)
    assert len(drawn.unique()) > 1
