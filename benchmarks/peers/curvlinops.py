"""curvlinops 3: its Hessian as a linear operator, eigenvalues by SciPy's eigsh; point by point."""

from collections.abc import Callable

import numpy as np
from curvlinops import HessianLinearOperator

from benchmarks.peers import products_for, repeat_products, top_by_eigsh
from benchmarks.problem import Answer, Job, Problem


def build(problem: Problem, quantity: str) -> Job:
    runs: dict[str, Callable[[], Answer]] = {
        "top5": lambda: top_by_eigsh(problem, lambda point: _operator(problem, point).to_scipy(np.float32)),
        "products": lambda: repeat_products(_operator(problem, 0).__matmul__, problem, products_for(problem.name)),
    }
    return Job(runs[quantity], "check_deterministic=False; eigsh(k=5, which='LM', tol=1e-3)")


def _operator(problem: Problem, point: int) -> HessianLinearOperator:
    model, x, y = problem.at(point)
    parameters = list(model.parameters())
    # Its check of determinism would cost products at every point; a user measures one network many times.
    return HessianLinearOperator(model, problem.criterion, parameters, [(x, y)], check_deterministic=False)
