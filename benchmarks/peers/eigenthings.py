"""hessian-eigenthings 1.0 (a pre-release): Lanczos with a number of steps (depth) set by the user.

The library makes the gradient's graph anew for each product.
"""

from collections.abc import Callable

import torch
from hessian_eigenthings import HessianOperator, lanczos, supervised_loss
from hessian_eigenthings import trace as their_trace
from hessian_eigenthings.algorithms import EigenResult

from benchmarks.peers import PROBES, RTOL, K, num_products, repeat_products
from benchmarks.problem import Answer, Job, Problem


def build(problem: Problem, quantity: str) -> Job:
    """Return the job for a quantity, one of those in ``benchmarks.peers``."""
    if quantity == "top5":
        depth = smallest_depth(problem)
        return Job(lambda: _top5(problem, depth), f"depth {depth}, the first of 10, 20, ... that converges")
    runs: dict[str, Callable[[], Answer]] = {
        "trace": lambda: _trace(problem),
        "products": lambda: repeat_products(_operator(problem, 0).__matmul__, problem, num_products(problem.name)),
    }
    return Job(runs[quantity], 'method="hutchinson"' if quantity == "trace" else "")


def smallest_depth(problem: Problem) -> int:
    """One depth for all points: the smallest of 10, 20, ... at which the library reports every eigenpair as converged.

    A user would have to search for it by hand; the search is not timed.
    """
    depth = 10  # the limit in the loop keeps the depth below the number of parameters
    for point in range(len(problem.thetas)):
        while not _lanczos(problem, point, depth).converged.all() and depth < problem.thetas.shape[-1] - 10:
            depth += 10
    return depth


def _operator(problem: Problem, point: int) -> HessianOperator:
    model, x, y = problem.at(point)
    return HessianOperator(model, [(x, y)], supervised_loss(problem.criterion))


def _lanczos(problem: Problem, point: int, depth: int) -> EigenResult:
    H = _operator(problem, point)
    return lanczos(H, k=K, max_iter=depth, tol=RTOL, reorthogonalize=True, which="LM", seed=0)


def _top5(problem: Problem, depth: int) -> Answer:
    results = [_lanczos(problem, point, depth) for point in range(len(problem.thetas))]
    return Answer(sum(result.iterations for result in results), torch.stack([result.eigenvalues for result in results]))


def _trace(problem: Problem) -> Answer:
    points = range(len(problem.thetas))
    traces = [their_trace(_operator(problem, i), num_matvecs=PROBES, method="hutchinson", seed=i) for i in points]
    values, stderr = (torch.tensor([[getattr(t, name)] for t in traces]) for name in ("estimate", "stderr"))
    return Answer(PROBES * len(points), values, stderr)
