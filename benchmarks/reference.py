"""Computes reference values in float64, and compares eigenvalues by two methods that share no code.

    python -m benchmarks.reference POINTS.safetensors '{"workload": "W2", "quantity": "top5", "points": 8}' OUT.json

For a top-5, the reference is our result in float64 to a residual of 1e-10. It is checked twice by
reverse-over-reverse products of plain torch: by the residuals of our eigenvectors under these products, and by SciPy's
eigsh on these products from another start vector, which would show a missed eigenvalue. For whole spectra, the
reference is LAPACK on the matrix of reverse-over-reverse products. For meta-gradients, it is a plain loop over tasks
and inner steps.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

import hessian_tools as ht
from benchmarks.comparison import worst_error
from benchmarks.peers import K
from benchmarks.peers.kept_graph import reverse_over_reverse
from benchmarks.peers.ours import operator
from benchmarks.problem import Problem, sampled
from benchmarks.rows import META_GRADIENT
from benchmarks.training.libraries import plain_meta_gradient
from benchmarks.workloads import load

RTOL = 1e-10
# The tolerance at which ARPACK stops. The error of its values is of the order of the square of this, and a smaller
# tolerance takes minutes on W1.
EIGSH_RTOL = 1e-6


def main() -> None:
    path, text, out = sys.argv[1:4]
    order = json.loads(text)
    torch.set_num_threads(os.cpu_count() or 1)
    problem = load(order["workload"], Path(path)).first(order["points"]).to(order["device"], torch.float64)
    if order["quantity"] == META_GRADIENT:
        result = {"values": sampled(plain_meta_gradient(problem)).tolist()}
    else:
        result = reference(problem, order["quantity"])
    Path(out).write_text(json.dumps(result))


def reference(problem: Problem, quantity: str) -> dict[str, Any]:
    """Return the reference values [point][number] and, for a top-5, how well they are confirmed.

    residual: the largest relative residual of our eigenpairs. disagreement: the largest relative difference from eigsh.
    """
    points = range(len(problem.thetas))
    if quantity == "spectrum":
        return {"values": [_dense(problem, point).tolist() for point in points]}
    pairs = ht.top_eigenpairs(operator(problem), k=K, rtol=RTOL, vectors=True, max_matvecs=600)
    assert pairs.vectors is not None
    residuals = [_residual(problem, i, pairs.values[i], pairs.vectors[i]) for i in points]
    independent = torch.stack([_by_eigsh(problem, point) for point in points])
    return {
        "values": pairs.values.tolist(),
        "converged": bool(pairs.converged.all()),
        "residual": max(residuals),
        "disagreement": worst_error(pairs.values.tolist(), independent.tolist()),
    }


def _residual(problem: Problem, point: int, values: Tensor, vectors: Tensor) -> float:
    product = reverse_over_reverse(problem, point)
    HV = torch.stack([product(v) for v in vectors.mT], dim=-1)
    return float(((HV - values * vectors).norm(dim=0) / values.abs()).max())


def _by_eigsh(problem: Problem, point: int) -> Tensor:
    product, n = reverse_over_reverse(problem, point), problem.thetas.shape[-1]

    def matvec(v: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(v.reshape(-1)).to(problem.thetas)).cpu().numpy()

    H = LinearOperator((n, n), matvec=matvec, dtype=np.float64)
    start = np.random.default_rng(1).standard_normal(n)
    return torch.from_numpy(eigsh(H, k=K, which="LM", tol=EIGSH_RTOL, v0=start, return_eigenvectors=False).copy())


def _dense(problem: Problem, point: int) -> Tensor:
    """All eigenvalues at a point, in ascending order."""
    product = reverse_over_reverse(problem, point)
    eye = torch.eye(problem.thetas.shape[-1], dtype=torch.float64, device=problem.device)
    H = torch.stack([product(row) for row in eye])
    return torch.linalg.eigvalsh((H + H.mT) / 2)


if __name__ == "__main__":
    main()
