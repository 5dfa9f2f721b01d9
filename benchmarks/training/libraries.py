"""The meta-gradient of MAML by plain torch and by three libraries, each used as its documentation shows.

Each library is imported only when its own contestant is built, so that a missing library does not affect the others.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.problem import Answer, Job, TrainingProblem, sampled_entries


def plain(problem: TrainingProblem, quantity: str) -> Job:
    """Plain torch as a careful user would write it: functional_call and autograd.grad, task by task."""
    return _job(plain_meta_gradient, problem, "functional_call, autograd.grad")


def higher(problem: TrainingProblem, quantity: str) -> Job:
    """higher 0.2.1 (Grefenstette 2019), by innerloop_ctx around SGD."""
    import higher as library

    def meta_gradient(problem: TrainingProblem) -> Tensor:
        """In first order, the gradient by the adapted parameters serves as that by the initial ones."""
        model, criterion = problem.model, problem.criterion
        model.zero_grad()
        optimiser = torch.optim.SGD(model.parameters(), lr=problem.step_size)
        for support, query in problem.episodes:
            with library.innerloop_ctx(
                model, optimiser, copy_initial_weights=False, track_higher_grads=not problem.first_order
            ) as (adapted, inner):
                for _ in range(problem.steps):
                    inner.step(criterion(adapted(support[0]), support[1]))
                loss = criterion(adapted(query[0]), query[1]) / len(problem.episodes)
                if not problem.first_order:
                    loss.backward()
                    continue
                gradients = torch.autograd.grad(loss, list(adapted.parameters()))
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return _flat_gradient(list(model.parameters()))

    return _job(meta_gradient, problem, "innerloop_ctx")


def torchopt(problem: TrainingProblem, quantity: str) -> Job:
    """TorchOpt 0.7 (Ren 2023), by MetaSGD on the module itself, whose state is restored after each task."""
    if problem.first_order:
        raise NotImplementedError("its inner steps always keep the graph, so it has no first order")
    import torchopt as library

    def meta_gradient(problem: TrainingProblem) -> Tensor:
        model, criterion = problem.model, problem.criterion
        model.zero_grad()
        initial = list(model.parameters())
        inner = library.MetaSGD(model, lr=problem.step_size)
        start = [library.extract_state_dict(state, by="reference") for state in (model, inner)]
        for support, query in problem.episodes:
            for _ in range(problem.steps):
                inner.step(criterion(model(support[0]), support[1]))
            (criterion(model(query[0]), query[1]) / len(problem.episodes)).backward()
            for state, saved in zip((model, inner), start, strict=True):
                library.recover_state_dict(state, saved)
        return _flat_gradient(initial)

    return _job(meta_gradient, problem, "MetaSGD")


def learn2learn(problem: TrainingProblem, quantity: str) -> Job:
    """learn2learn 0.2 (Arnold 2020), by MAML.clone and adapt."""
    wrapped = _learn2learn_maml()(problem.model, lr=problem.step_size, first_order=problem.first_order)

    def meta_gradient(problem: TrainingProblem) -> Tensor:
        problem.model.zero_grad()
        for support, query in problem.episodes:
            learner = wrapped.clone()
            for _ in range(problem.steps):
                learner.adapt(problem.criterion(learner(support[0]), support[1]))
            (problem.criterion(learner(query[0]), query[1]) / len(problem.episodes)).backward()
        return _flat_gradient(list(problem.model.parameters()))

    return _job(meta_gradient, problem, "MAML.clone, adapt")


def plain_meta_gradient(problem: TrainingProblem) -> Tensor:
    """The gradient of the mean query loss over tasks by the initial parameters, as one vector [param]."""
    model, criterion = problem.model, problem.criterion
    model.zero_grad()
    for support, query in problem.episodes:
        adapted: dict[str, Tensor] = dict(model.named_parameters())
        for _ in range(problem.steps):
            loss = criterion(functional_call(model, adapted, support[0]), support[1])
            gradients = torch.autograd.grad(loss, list(adapted.values()), create_graph=not problem.first_order)
            adapted = {n: p - problem.step_size * g for (n, p), g in zip(adapted.items(), gradients, strict=True)}
        outputs = functional_call(model, adapted, query[0])
        (criterion(outputs, query[1]) / len(problem.episodes)).backward()
    return _flat_gradient(list(model.parameters()))


def _job(meta_gradient: Callable[[TrainingProblem], Tensor], problem: TrainingProblem, note: str) -> Job:
    return Job(lambda: Answer(0, sampled_entries(meta_gradient(problem))), note)


def _flat_gradient(parameters: list[Any]) -> Tensor:
    """The gradients of all parameters in their order, as one vector."""
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).detach()


def _learn2learn_maml() -> Any:
    """The MAML class of learn2learn, imported without the rest of the package, which would need torchvision and gym.

    Empty modules stand in for the package and its subpackage, so that their ``__init__`` files are not run.
    """
    spec = importlib.util.find_spec("learn2learn")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("learn2learn", name="learn2learn")
    root = spec.submodule_search_locations[0]
    for name, path in (("learn2learn", root), ("learn2learn.algorithms", f"{root}/algorithms")):
        package = types.ModuleType(name)
        package.__path__ = [path]
        sys.modules[name] = package
    return importlib.import_module("learn2learn.algorithms.maml").MAML
