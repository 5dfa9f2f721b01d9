"""Plain torch, as a careful person writes it: functional_call and autograd.grad, task by task."""

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.problem import Answer, Job
from benchmarks.training.loads import TrainingProblem, sampled


def build(problem: TrainingProblem, quantity: str) -> Job:
    return Job(lambda: Answer(0, sampled(meta_gradient(problem))), "functional_call, autograd.grad")


def meta_gradient(problem: TrainingProblem) -> Tensor:
    """Mean over tasks of the query loss's gradient by the initial parameters [param]."""
    model, load, criterion = problem.model, problem.load, problem.criterion
    model.zero_grad()
    for support, query in problem.episodes:
        fast: dict[str, Tensor] = dict(model.named_parameters())
        for _ in range(load.steps):
            loss = criterion(functional_call(model, fast, support[0]), support[1])
            gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=not load.first_order)
            fast = {n: p - load.step_size * g for (n, p), g in zip(fast.items(), gradients, strict=True)}
        outputs = functional_call(model, fast, query[0])
        (criterion(outputs, query[1]) / len(problem.episodes)).backward()
    return flat([p.grad for p in model.parameters()])


def flat(gradients: list[Tensor | None]) -> Tensor:
    """The gradients of all parameters in their order, as one vector."""
    return torch.cat([g.flatten() for g in gradients if g is not None]).detach()
