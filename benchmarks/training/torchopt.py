"""TorchOpt 0.7 (Ren 2023): MetaSGD on the module itself, its state put back after each task."""

import torchopt
from torch import Tensor

from benchmarks.problem import Answer, Job
from benchmarks.training.loads import TrainingProblem, sampled
from benchmarks.training.plain import flat


def build(problem: TrainingProblem, quantity: str) -> Job:
    if problem.load.first_order:
        raise NotImplementedError("its inner steps always keep the graph")
    return Job(lambda: Answer(0, sampled(meta_gradient(problem))), "MetaSGD")


def meta_gradient(problem: TrainingProblem) -> Tensor:
    model, load, criterion = problem.model, problem.load, problem.criterion
    model.zero_grad()
    initial = list(model.parameters())
    inner = torchopt.MetaSGD(model, lr=load.step_size)
    start = [torchopt.extract_state_dict(state, by="reference") for state in (model, inner)]
    for support, query in problem.episodes:
        for _ in range(load.steps):
            inner.step(criterion(model(support[0]), support[1]))
        (criterion(model(query[0]), query[1]) / len(problem.episodes)).backward()
        for state, saved in zip((model, inner), start, strict=True):
            torchopt.recover_state_dict(state, saved)
    return flat([p.grad for p in initial])
