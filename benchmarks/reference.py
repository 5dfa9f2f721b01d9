"""Reference values in float64, with eigenvalues compared by two methods that share no code.

For the five eigenvalues of largest magnitude, the reference is our result in float64 to a residual of 1e-10. It is
checked twice by reverse-over-reverse products of plain torch: by the residuals of our eigenvectors under these
products, and by SciPy's eigsh on these products from another start vector, which would show a missed eigenvalue. For
whole spectra, the reference is LAPACK on the matrix of reverse-over-reverse products. For meta-gradients, it is a plain
loop over tasks and inner steps.
"""

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

import hessian_tools as ht
from benchmarks.comparison import worst_error
from benchmarks.peers import K, top_by_eigsh
from benchmarks.peers.kept_graph import reverse_over_reverse
from benchmarks.peers.ours import operator
from benchmarks.problem import Problem, TrainingProblem, sampled_entries
from benchmarks.training.libraries import plain_meta_gradient

RTOL = 1e-10
# The tolerance at which ARPACK stops. The error of its values is of the order of the square of this, and a smaller
# tolerance takes minutes on W1.
EIGSH_RTOL = 1e-6


def reference(problem: Problem | TrainingProblem, quantity: str) -> dict[str, Any]:
    """Return the reference values [point][number] and, for the five largest eigenvalues, how well they are confirmed.

    problem: the problem in float64. The entry "residual" is the largest relative residual of our eigenpairs, and
    "disagreement" is the largest relative difference from SciPy's eigsh.
    """
    if isinstance(problem, TrainingProblem):
        return {"values": sampled_entries(plain_meta_gradient(problem)).tolist()}
    points = range(len(problem.thetas))
    if quantity == "spectrum":
        return {"values": [_all_eigenvalues(problem, point).tolist() for point in points]}
    pairs = ht.top_eigenpairs(operator(problem), k=K, rtol=RTOL, vectors=True, max_matvecs=600)
    assert pairs.vectors is not None
    residuals = [_residual(problem, i, pairs.values[i], pairs.vectors[i]) for i in points]
    independent = top_by_eigsh(problem, lambda point: _scipy_operator(problem, point), rtol=EIGSH_RTOL, seed=1)
    assert independent.values is not None
    return {
        "values": pairs.values.tolist(),
        "converged": bool(pairs.converged.all()),
        "residual": max(residuals),
        "disagreement": worst_error(pairs.values.tolist(), independent.values.tolist()),
    }


def _residual(problem: Problem, point: int, values: Tensor, vectors: Tensor) -> float:
    """The largest residual |Hv - lambda v| / |lambda| of our eigenpairs at a point."""
    product = reverse_over_reverse(problem, point)
    HV = torch.stack([product(v) for v in vectors.mT], dim=-1)
    return float(((HV - values * vectors).norm(dim=0) / values.abs()).max())


def _scipy_operator(problem: Problem, point: int) -> LinearOperator:
    product, n = reverse_over_reverse(problem, point), problem.thetas.shape[-1]

    def matvec(v: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(v.reshape(-1)).to(problem.thetas)).cpu().numpy()

    return LinearOperator((n, n), matvec=matvec, dtype=np.float64)


def _all_eigenvalues(problem: Problem, point: int) -> Tensor:
    """All eigenvalues at a point, in ascending order."""
    product = reverse_over_reverse(problem, point)
    eye = torch.eye(problem.thetas.shape[-1], dtype=torch.float64, device=problem.device)
    H = torch.stack([product(row) for row in eye])
    return torch.linalg.eigvalsh((H + H.mT) / 2)
