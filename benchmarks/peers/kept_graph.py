"""Plain torch: the graph of the gradient is kept, and each product differentiates it in reverse, as in PyHessian."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import PRODUCTS, num_products, repeat_products
from benchmarks.problem import Answer, Job, Problem


def build(problem: Problem, quantity: str) -> Job:
    """Return the job for a quantity, one of those in ``benchmarks.peers``."""
    # Each entry returns the function to be timed. Only the entry of the measured quantity is called. For "products" the
    # graph is made here, before the timing. For "one point" the timed function makes it, so making it is timed as well.
    runs: dict[str, Callable[[], Callable[[], Answer]]] = {"products": lambda: _with_one_graph(problem)}
    runs["one point"] = lambda: lambda: repeat_products(reverse_over_reverse(problem, 0), problem, PRODUCTS)
    return Job(runs[quantity](), "reverse over reverse")


def reverse_over_reverse(problem: Problem, point: int) -> Callable[[Tensor], Tensor]:
    """Return the function v -> Hv at one point. It shares no code with the products of hessian-tools."""
    theta = problem.thetas[point].clone().requires_grad_()
    gradient = torch.autograd.grad(problem.loss(theta, (problem.x[point], problem.y[point])), theta, create_graph=True)
    return lambda v: torch.autograd.grad(gradient, theta, v, retain_graph=True)[0]


def _with_one_graph(problem: Problem) -> Callable[[], Answer]:
    """A run whose graph is made in advance, so that making it is not timed."""
    product = reverse_over_reverse(problem, 0)
    return lambda: repeat_products(product, problem, num_products(problem.name))
