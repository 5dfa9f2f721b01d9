"""PyHessian 0.1: power iteration with deflation, one point after another, until the relative change is small."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from pyhessian import hessian

from benchmarks.peers import PROBES, RTOL, K
from benchmarks.problem import Answer, Job, Problem


def build(problem: Problem, quantity: str) -> Job:
    """Return the job for a quantity, one of those in ``benchmarks.peers``."""
    # The library's product is replaced by one that counts its calls. Its module is taken from sys.modules, because the
    # attribute ``pyhessian.hessian`` is the class of that name.
    library = vars(sys.modules["pyhessian.hessian"])
    count = library["hessian_vector_product"] = _Count(library["hessian_vector_product"])
    jobs = {
        "top5": Job(
            lambda: _top5(problem, count),
            f"eigenvalues(top_n={K}, tol={RTOL}, maxIter=100), its defaults; it does not check its eigenvalues",
        ),
        # The library stops when the change over the signed trace is below the tolerance. With a negative trace that
        # holds at once, unless the tolerance is minus infinity.
        "trace": Job(
            lambda: _trace(problem, count),
            f"trace(maxIter={PROBES}, tol=-inf): all probes; the standard error is computed from its samples",
        ),
    }
    return jobs[quantity]


class _Count:
    """A wrapper of the library's product that counts its calls."""

    def __init__(self, product: Callable[..., Any]) -> None:
        self.product, self.calls = product, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.product(*args)


def _hessian_at(problem: Problem, point: int) -> hessian:
    model, x, y = problem.at(point)
    return hessian(model, problem.criterion, data=(x, y), cuda=problem.device.type == "cuda")


def _top5(problem: Problem, count: _Count) -> Answer:
    before = count.calls
    torch.manual_seed(0)
    points = range(len(problem.thetas))
    values = [_hessian_at(problem, point).eigenvalues(top_n=K, tol=RTOL, maxIter=100)[0] for point in points]
    return Answer(count.calls - before, torch.tensor(values))


def _trace(problem: Problem, count: _Count) -> Answer:
    before = count.calls
    torch.manual_seed(0)
    points = range(len(problem.thetas))
    samples = torch.tensor([_hessian_at(problem, point).trace(maxIter=PROBES, tol=float("-inf")) for point in points])
    stderr = samples.std(-1, keepdim=True) / samples.shape[-1] ** 0.5
    return Answer(count.calls - before, samples.mean(-1, keepdim=True), stderr)
