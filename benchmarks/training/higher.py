"""higher 0.2.1 (Grefenstette 2019): innerloop_ctx around SGD."""

import higher
import torch
from torch import Tensor

from benchmarks.problem import Answer, Job
from benchmarks.training.loads import TrainingProblem, sampled
from benchmarks.training.plain import flat


def build(problem: TrainingProblem, quantity: str) -> Job:
    return Job(lambda: Answer(0, sampled(meta_gradient(problem))), "innerloop_ctx")


def meta_gradient(problem: TrainingProblem) -> Tensor:
    """First order as its documentation has it: the query gradient by the adapted parameters, added to the initial."""
    model, load, criterion = problem.model, problem.load, problem.criterion
    model.zero_grad()
    optimiser = torch.optim.SGD(model.parameters(), lr=load.step_size)
    for support, query in problem.episodes:
        with higher.innerloop_ctx(
            model, optimiser, copy_initial_weights=False, track_higher_grads=not load.first_order
        ) as (adapted, inner):
            for _ in range(load.steps):
                inner.step(criterion(adapted(support[0]), support[1]))
            loss = criterion(adapted(query[0]), query[1]) / len(problem.episodes)
            if not load.first_order:
                loss.backward()
                continue
            gradients = torch.autograd.grad(loss, list(adapted.parameters()))
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return flat([p.grad for p in model.parameters()])
