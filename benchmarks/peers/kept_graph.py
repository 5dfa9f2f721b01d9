"""Plain torch: the gradient's graph kept, each product reverse over reverse. What PyHessian does, without the rest."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import PRODUCTS
from benchmarks.problem import Answer, Job, Problem


def build(problem: Problem, quantity: str) -> Job:
    runs = {"products": lambda: _steady(problem), "one point": lambda: _anew(problem)}
    return Job(runs[quantity](), "reverse over reverse")


def reverse_over_reverse(problem: Problem, point: int) -> Callable[[Tensor], Tensor]:
    """v -> Hv at one point, independent of the library's engine."""
    theta = problem.thetas[point].clone().requires_grad_()
    gradient = torch.autograd.grad(problem.loss(theta, (problem.x[point], problem.y[point])), theta, create_graph=True)
    return lambda v: torch.autograd.grad(gradient, theta, v, retain_graph=True)[0]


def _steady(problem: Problem) -> Callable[[], Answer]:
    product = reverse_over_reverse(problem, 0)
    count = 5 if problem.name == "W1" else PRODUCTS
    return lambda: _many(product, problem, count)


def _anew(problem: Problem) -> Callable[[], Answer]:
    return lambda: _many(reverse_over_reverse(problem, 0), problem, PRODUCTS)


def _many(product: Callable[[Tensor], Tensor], problem: Problem, count: int) -> Answer:
    v = torch.ones_like(problem.thetas[0])
    for _ in range(count):
        v = product(v)
        v = v / v.norm()
    return Answer(count)
