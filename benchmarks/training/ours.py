"""hessian-tools: the outer step of ``meta_train``, from drawn episodes to the mean meta-gradient.

With more than one thread given, convolutional networks take that many worker processes of one thread instead.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import hessian_tools as ht
from benchmarks.problem import Answer, Job
from benchmarks.training.loads import TrainingProblem, sampled
from hessian_tools.data import Episode
from hessian_tools.inner.learners import maml
from hessian_tools.inner.shot import Shot
from hessian_tools.train import TrainConfig
from hessian_tools.train.outer import SharedStep, accumulate_gradient, is_batched


@dataclass(frozen=True)
class Given:
    """The load's own tasks as a source of tasks: what meta_train draws from."""

    episodes: list[Episode]
    kind: str
    input_shape: tuple[int, ...]
    outputs: int
    digest: str = "given"

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        return self.episodes[index]


def build(problem: TrainingProblem, quantity: str) -> Job:
    """MAML without SHOT."""
    return outer_step(problem, None)


def outer_step(problem: TrainingProblem, shot: Shot | None) -> Job:
    """One meta-gradient after another, all from the same parameters."""
    load = problem.load
    theta, layout = ht.flatten(problem.model)
    loss = ht.make_loss(problem.model, problem.criterion, layout)
    regression = problem.query[1].is_floating_point()
    kind, outputs = ("regression", 1) if regression else ("classification", 5)
    given = Given(problem.episodes, kind, load.input_shape, outputs)
    config = TrainConfig(
        maml(load.steps, load.step_size, first_order=load.first_order),
        given,
        partial(_itself, problem.model),
        shot=shot,
        meta_batch=len(given.episodes),
        device=str(theta.device),
    )
    theta.requires_grad_()
    processes = min(torch.get_num_threads(), config.meta_batch)
    if processes > 1 and theta.device.type == "cpu" and not is_batched(config, problem.model):
        return Job(_by_workers(replace(config, workers=processes), loss, theta), f"{processes} worker processes")

    def run() -> Answer:
        theta.grad = None
        accumulate_gradient(config, loss, theta, 0)
        assert theta.grad is not None
        return Answer(0, sampled(theta.grad))

    return Job(run, "all tasks at once" if is_batched(config, problem.model) else "task by task")


def _itself(model: torch.nn.Module) -> torch.nn.Module:
    return model


def _by_workers(config: TrainConfig, loss: ht.Loss, theta: Tensor) -> Callable[[], Answer]:
    shared = SharedStep(config, loss, theta)

    def run() -> Answer:
        theta.grad = None
        cpu, wall = _cpu_seconds(shared.pool.pids), time.perf_counter()
        shared.accumulate_gradient(theta, 0)
        seconds = time.perf_counter() - wall, _cpu_seconds(shared.pool.pids) - cpu
        assert theta.grad is not None
        return Answer(0, sampled(theta.grad), seconds=seconds)

    run()  # starts the processes, which is no part of what is timed
    return run


def _cpu_seconds(pids: list[int]) -> float:
    """Of this process and of the workers, which still run: the processor's own count knows only ended children."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return time.process_time() + sum(int(s[11]) + int(s[12]) for s in stats) / os.sysconf("SC_CLK_TCK")
