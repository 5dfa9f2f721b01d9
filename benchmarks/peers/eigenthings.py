"""hessian-eigenthings 1.0 (a pre-release): Lanczos of a depth set by hand, the graph made anew for each product."""

from collections.abc import Callable

import torch
from hessian_eigenthings import HessianOperator, lanczos, supervised_loss
from hessian_eigenthings import trace as their_trace
from hessian_eigenthings.algorithms import EigenResult

from benchmarks.peers import PROBES, PRODUCTS, RTOL, K
from benchmarks.problem import Answer, Job, Problem


def build(problem: Problem, quantity: str) -> Job:
    if quantity == "top5":
        depth = smallest_depth(problem)
        return Job(lambda: _top5(problem, depth), f"depth {depth}, the first of 10, 20, ... with all residuals met")
    runs: dict[str, Callable[[], Answer]] = {
        "trace": lambda: _trace(problem),
        "products": lambda: _products(problem),
    }
    return Job(runs[quantity], 'method="hutchinson"' if quantity == "trace" else "")


def smallest_depth(problem: Problem) -> int:
    """The user's work: one depth for all points, raised until the library calls every pair of every point converged."""
    depth = 10
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
    found = [_lanczos(problem, point, depth) for point in range(len(problem.thetas))]
    return Answer(sum(f.iterations for f in found), torch.stack([f.eigenvalues for f in found]))


def _trace(problem: Problem) -> Answer:
    points = range(len(problem.thetas))
    found = [their_trace(_operator(problem, i), num_matvecs=PROBES, method="hutchinson", seed=i) for i in points]
    values = torch.tensor([[f.estimate] for f in found])
    return Answer(PROBES * len(points), values, torch.tensor([[f.stderr] for f in found]))


def _products(problem: Problem) -> Answer:
    H = _operator(problem, 0)
    v = torch.ones_like(problem.thetas[0])
    count = 5 if problem.name == "W1" else PRODUCTS
    for _ in range(count):
        v = H @ v
        v = v / v.norm()
    return Answer(count)
