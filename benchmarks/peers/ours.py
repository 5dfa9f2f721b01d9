"""hessian-tools: products traced once, batched over points; Lanczos stopped on residuals and checked."""

from collections.abc import Callable, Sequence
from functools import cache

import torch

import hessian_tools as ht
from benchmarks.peers import PROBES, PRODUCTS, RTOL, K, products_for
from benchmarks.problem import Answer, Job, Problem
from hessian_tools.curvature import Operator


def build(problem: Problem, quantity: str) -> Job:
    """Nothing is traced here: that is part of the first call."""
    runs = {
        "top5": lambda: _top5(problem),
        "trace": lambda: _trace(problem),
        "products": _products(problem),
        "spectrum": lambda: _spectrum(problem),
        "one point": lambda: _one_point(problem),
    }
    if quantity == "spectrum" and "spectrum" not in vars(ht):
        raise NotImplementedError("ht.spectrum is not there")
    return Job(runs[quantity], 'route="traced"')


def operator(problem: Problem) -> Operator:
    return ht.hessian(problem.loss, problem.thetas, problem.batch, route="traced")


def _top5(problem: Problem) -> Answer:
    pairs = ht.top_eigenpairs(operator(problem), k=K, rtol=RTOL)
    return Answer(int(pairs.num_matvecs.sum()), pairs.values)


def _trace(problem: Problem) -> Answer:
    estimate = ht.trace(operator(problem), num_probes=PROBES, method="probes")
    return Answer(PROBES * len(problem.thetas), estimate.value[:, None], estimate.stderr[:, None])


def _products(problem: Problem) -> Callable[[], Answer]:
    """Products as an eigensolver asks for them: one vector a point, all points together, the shared half kept."""

    @cache
    def parts() -> Sequence[Operator]:
        return operator(problem).parts()

    def run() -> Answer:
        repeats = min(products_for(problem.name), max(10, PRODUCTS // len(problem.thetas)))
        for part in parts():
            v = torch.ones(part.num_points or 1, part.num_params, 1, dtype=part.dtype, device=part.device)
            for _ in range(repeats):
                v = part.products(v)
                v = v / v.norm(dim=1, keepdim=True)
        return Answer(repeats * len(problem.thetas))

    return run


def _spectrum(problem: Problem) -> Answer:
    spectrum = vars(ht)["spectrum"](operator(problem))
    return Answer(int(spectrum.num_matvecs.sum()), spectrum.values)


def _one_point(problem: Problem) -> Answer:
    """An operator at one point and products with it, one after another."""
    H = ht.hessian(problem.loss, problem.thetas[0], tuple(t[0] for t in problem.batch), route="traced")
    v = torch.ones(H.num_params, dtype=H.dtype, device=H.device)
    for _ in range(PRODUCTS):
        v = H @ v
        v = v / v.norm()
    return Answer(PRODUCTS)
