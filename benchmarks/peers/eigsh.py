"""SciPy's eigsh (ARPACK) on our products: what the solver alone is worth."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from benchmarks.peers import RTOL, K
from benchmarks.peers.ours import operator
from benchmarks.problem import Answer, Job, Problem


def build(problem: Problem, quantity: str) -> Job:
    runs = {"top5": lambda: _ours(problem)}
    return Job(runs[quantity], "eigsh(k=5, which='LM', tol=1e-3) on H.to_scipy()")


def _ours(problem: Problem) -> Answer:
    H = operator(problem)
    return top_by_eigsh(problem, lambda point: H.to_scipy(point=point))


def top_by_eigsh(problem: Problem, at: Callable[[int], LinearOperator]) -> Answer:
    """Top 5 at every point, one after another; at(point) gives the operator there."""
    calls, values = 0, []
    start = np.random.default_rng(0).standard_normal(problem.thetas.shape[-1]).astype(np.float32)
    for point in range(len(problem.thetas)):
        H = at(point)

        def counted(v: np.ndarray, H: LinearOperator = H) -> np.ndarray:
            nonlocal calls
            calls += 1
            return H.matvec(v)

        counting = LinearOperator(H.shape, matvec=counted, dtype=np.float32)
        values.append(eigsh(counting, k=K, which="LM", tol=RTOL, v0=start, return_eigenvectors=False))
    return Answer(calls, torch.tensor(np.array(values)))
