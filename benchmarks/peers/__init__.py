"""The contestants on curvature, hessian-tools and its peers, and what these modules share.

Each contestant is a module with a function ``build(problem, quantity)`` that returns a ``Job``.
The quantities are "top5" (the five eigenvalues of largest magnitude to 1e-3, at every point), "trace" (an estimate by
100 probes at every point, with its standard error), "products" (Hessian-vector products), "spectrum" (all eigenvalues)
and "one point" (making an operator at one point, and 100 products with it, both of which are timed). ``build`` raises
KeyError for a quantity that the contestant does not offer.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from benchmarks.problem import Answer, Problem

PROBES = 100  # the number of probes of "trace"
PRODUCTS = 100  # the number of products of "products" and "one point"
K = 5  # the number of eigenvalues of "top5"
RTOL = 1e-3  # their relative tolerance


def num_products(workload: str) -> int:
    """The number of products in a "products" run: few on W1, where each takes most of a second."""
    return 5 if workload == "W1" else PRODUCTS


def repeat_products(product: Callable[[Tensor], Tensor], problem: Problem, count: int) -> Answer:
    """Compute products one after another, as in a power iteration: each takes the normalised result before it."""
    v = torch.ones_like(problem.thetas[0])
    for _ in range(count):
        v = product(v)
        v = v / v.norm()
    return Answer(count)


def top_by_eigsh(
    problem: Problem, operator_at: Callable[[int], LinearOperator], *, rtol: float = RTOL, seed: int = 0
) -> Answer:
    """Compute the top 5 by SciPy's eigsh (ARPACK), one point after another, and count the products.

    seed: the seed of the start vector.
    """
    calls, values = 0, []
    start = np.random.default_rng(seed).standard_normal(problem.thetas.shape[-1])
    for point in range(len(problem.thetas)):
        H = operator_at(point)

        # The default value binds this point's H, because the name H changes with the loop.
        def counting_product(v: np.ndarray, H: LinearOperator = H) -> np.ndarray:
            nonlocal calls
            calls += 1
            return H.matvec(v)

        counting_H = LinearOperator(H.shape, matvec=counting_product, dtype=H.dtype)
        v0 = start.astype(H.dtype)
        values.append(eigsh(counting_H, k=K, which="LM", tol=rtol, v0=v0, return_eigenvectors=False))
    return Answer(calls, torch.tensor(np.array(values)))
