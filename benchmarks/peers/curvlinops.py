"""curvlinops 3: its Hessian is a linear operator at one point, whose eigenvalues are computed by SciPy's eigsh."""

from collections.abc import Callable

import numpy as np
from curvlinops import HessianLinearOperator

from benchmarks.peers import num_products, repeat_products, top_by_eigsh
from benchmarks.problem import Answer, Job, Problem


def build(problem: Problem, quantity: str) -> Job:
    """Return the job for a quantity, one of those in ``benchmarks.peers``."""
    runs: dict[str, Callable[[], Answer]] = {
        "top5": lambda: top_by_eigsh(problem, lambda point: _operator(problem, point).to_scipy(np.float32)),
        "products": lambda: repeat_products(_operator(problem, 0).__matmul__, problem, num_products(problem.name)),
    }
    return Job(runs[quantity], "check_deterministic=False; eigsh(k=5, which='LM', tol=1e-3)")


def _operator(problem: Problem, point: int) -> HessianLinearOperator:
    model, x, y = problem.at(point)
    parameters = list(model.parameters())
    # The library's check that the loss is deterministic would cost products at every point. A user who measures one
    # network many times would switch it off.
    return HessianLinearOperator(model, problem.criterion, parameters, [(x, y)], check_deterministic=False)
