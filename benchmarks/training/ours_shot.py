"""The same with SHOT, one step against all, weight 0.1: what the penalty costs."""

from benchmarks.problem import Job
from benchmarks.training.loads import TrainingProblem
from benchmarks.training.ours import outer_step
from hessian_tools.inner.shot import Shot


def build(problem: TrainingProblem, quantity: str) -> Job:
    return outer_step(problem, Shot(weight=0.1))
