"""The contestants on curvature: one module each, whose ``build(problem, quantity)`` makes a ``Job``.

The quantities are "top5" (by magnitude to 1e-3, at every point), "trace" (100 probes at every point, with a standard
error), "products" (Hessian-vector products), "spectrum" (all eigenvalues) and "one point" (an operator made anew at one
point, and 100 products). A contestant raises KeyError for a quantity that it does not have.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from benchmarks.problem import Answer, Problem

PROBES = 100
PRODUCTS = 100
K = 5
RTOL = 1e-3


def products_for(workload: str) -> int:
    """The number of single products in a "products" run; those of W1 take most of a second each."""
    return 5 if workload == "W1" else PRODUCTS


def repeat_products(product: Callable[[Tensor], Tensor], problem: Problem, count: int) -> Answer:
    """Products one after another, as in a power iteration: each takes the normalised result of the one before."""
    v = torch.ones_like(problem.thetas[0])
    for _ in range(count):
        v = product(v)
        v = v / v.norm()
    return Answer(count)


def top_by_eigsh(problem: Problem, operator_at: Callable[[int], LinearOperator]) -> Answer:
    """The top 5 by SciPy's eigsh (ARPACK) at every point, one after another."""
    calls, values = 0, []
    start = np.random.default_rng(0).standard_normal(problem.thetas.shape[-1]).astype(np.float32)
    for point in range(len(problem.thetas)):
        H = operator_at(point)

        def counted(v: np.ndarray, H: LinearOperator = H) -> np.ndarray:
            nonlocal calls
            calls += 1
            return H.matvec(v)

        counting = LinearOperator(H.shape, matvec=counted, dtype=np.float32)
        values.append(eigsh(counting, k=K, which="LM", tol=RTOL, v0=start, return_eigenvectors=False))
    return Answer(calls, torch.tensor(np.array(values)))
