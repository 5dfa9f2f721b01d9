"""learn2learn 0.2 (Arnold 2020): MAML.clone and adapt.

The algorithm alone is imported: the package as a whole wants torchvision and gym, of which nothing is used here.
"""

import importlib.util
import sys
import types
from typing import Any

from torch import Tensor

from benchmarks.problem import Answer, Job
from benchmarks.training.loads import TrainingProblem, sampled
from benchmarks.training.plain import flat


def build(problem: TrainingProblem, quantity: str) -> Job:
    wrapped = _algorithm()(problem.model, lr=problem.load.step_size, first_order=problem.load.first_order)
    return Job(lambda: Answer(0, sampled(meta_gradient(problem, wrapped))), "MAML.clone, adapt")


def meta_gradient(problem: TrainingProblem, wrapped: Any) -> Tensor:
    problem.model.zero_grad()
    for support, query in problem.episodes:
        learner = wrapped.clone()
        for _ in range(problem.load.steps):
            learner.adapt(problem.criterion(learner(support[0]), support[1]))
        (problem.criterion(learner(query[0]), query[1]) / len(problem.episodes)).backward()
    return flat([p.grad for p in problem.model.parameters()])


def _algorithm() -> Any:
    found = importlib.util.find_spec("learn2learn")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("learn2learn", name="learn2learn")
    root = found.submodule_search_locations[0]
    for name, path in (("learn2learn", root), ("learn2learn.algorithms", f"{root}/algorithms")):
        package = types.ModuleType(name)
        package.__path__ = [path]
        sys.modules[name] = package
    return importlib.import_module("learn2learn.algorithms.maml").MAML
