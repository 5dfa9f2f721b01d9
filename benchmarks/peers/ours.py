"""hessian-tools: products are traced once and batched over points, and Lanczos stops once the residuals are small.

Two other contestants compute eigenvalues from our products: ``eigsh`` uses SciPy's solver, so the comparison with it
shows the worth of our solver alone, and ``dense`` uses LAPACK on whole matrices.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch

import hessian_tools as ht
from benchmarks.peers import PROBES, PRODUCTS, RTOL, K, num_products, repeat_products, top_by_eigsh
from benchmarks.problem import Answer, Job, Problem
from hessian_tools.curvature import Operator


def build(problem: Problem, quantity: str) -> Job:
    """Return the job for a quantity, one of those in ``benchmarks.peers``.

    Nothing is traced here, so that tracing is a part of the first call.
    """
    runs = {
        "top5": lambda: _top5(problem),
        "trace": lambda: _trace(problem),
        "products": _products(problem),
        "spectrum": lambda: _spectrum(problem),
        "one point": lambda: _one_point(problem),
    }
    return Job(runs[quantity], 'route="traced"')


def eigsh(problem: Problem, quantity: str) -> Job:
    """The top 5 by SciPy's solver on our products, one point after another."""

    def top5() -> Answer:
        H = operator(problem)
        return top_by_eigsh(problem, lambda point: H.to_scipy(point=point))

    return Job({"top5": top5}[quantity], "eigsh(k=5, which='LM', tol=1e-3) on H.to_scipy()")


def dense(problem: Problem, quantity: str) -> Job:
    """All eigenvalues by LAPACK, of matrices that our batched products form."""

    def spectrum() -> Answer:
        matrices = [part.to_dense() for part in operator(problem).parts()]
        # In float32, LAPACK fails on some of these matrices and is hardly faster, so float64 is used.
        values = torch.cat([torch.linalg.eigvalsh((H + H.mT) / 2) for H in (H.double() for H in matrices)])
        return Answer(values.numel(), values)

    return Job({"spectrum": spectrum}[quantity], "H.to_dense(), torch.linalg.eigvalsh in float64")


def operator(problem: Problem) -> Operator:
    return ht.hessian(problem.loss, problem.thetas, problem.batch, route="traced")


def _top5(problem: Problem) -> Answer:
    pairs = ht.top_eigenpairs(operator(problem), k=K, rtol=RTOL)
    return Answer(int(pairs.num_matvecs.sum()), pairs.values)


def _trace(problem: Problem) -> Answer:
    estimate = ht.trace(operator(problem), num_probes=PROBES, method="probes")
    return Answer(PROBES * len(problem.thetas), estimate.value[:, None], estimate.stderr[:, None])


def _products(problem: Problem) -> Callable[[], Answer]:
    """Compute products as an eigensolver does, with one vector for each point.

    The points of a part are multiplied together. A part holds as many points as fit into memory at once.
    """

    @cache
    def parts() -> Sequence[Operator]:
        return operator(problem).parts()

    def run() -> Answer:
        # At many points, few products at each are enough for a run that is long enough to be timed.
        repeats = min(num_products(problem.name), max(10, PRODUCTS // len(problem.thetas)))
        for part in parts():
            v = torch.ones(part.num_points or 1, part.num_params, 1, dtype=part.dtype, device=part.device)
            for _ in range(repeats):
                v = part.products(v)
                v = v / v.norm(dim=1, keepdim=True)
        return Answer(repeats * len(problem.thetas))

    return run


def _spectrum(problem: Problem) -> Answer:
    spectrum = ht.spectrum(operator(problem))
    assert spectrum.num_matvecs is not None
    return Answer(int(spectrum.num_matvecs.sum()), spectrum.values)


def _one_point(problem: Problem) -> Answer:
    """An operator at one point, made anew, and products with it, one after another."""
    H = ht.hessian(problem.loss, problem.thetas[0], (problem.x[0], problem.y[0]), route="traced")
    return repeat_products(H.__matmul__, problem, PRODUCTS)
