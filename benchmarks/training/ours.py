"""hessian-tools: the outer step of ``meta_train``, from drawn episodes to the mean meta-gradient.

If a run has more than one thread, convolutional networks use as many worker processes of one thread each instead, but
at most one for each task. On a CPU these networks compute one task after the other, because computing all tasks at once
is slower for them. On a GPU all networks compute as many tasks at once as fit in memory.
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
from benchmarks.problem import Answer, Job, TrainingProblem, sampled_entries
from hessian_tools.data import Episode
from hessian_tools.inner.learners import maml
from hessian_tools.inner.shot import Shot
from hessian_tools.train import TrainConfig
from hessian_tools.train.outer import SharedStep, accumulate_gradient, is_batched, training_chunks
from hessian_tools.train.replay import Replay


@dataclass(frozen=True)
class DrawnTasks:
    """The tasks of a problem in the form of a task source, from which ``meta_train`` draws."""

    episodes: list[Episode]
    kind: str
    input_shape: tuple[int, ...]
    outputs: int
    digest: str = "drawn"

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        return self.episodes[index]


def build(problem: TrainingProblem, quantity: str) -> Job:
    """MAML without SHOT."""
    return outer_step(problem)


def with_shot(problem: TrainingProblem, quantity: str) -> Job:
    """MAML with SHOT, to show its cost.

    SHOT is a penalty on the distance between the ends of few large and of many small inner steps (Lee, Yoo and Kwak,
    2023). Here it compares the end of one large step with the end of the learner's own steps, and has weight 0.1.
    """
    return outer_step(problem, Shot(weight=0.1))


def outer_step(
    problem: TrainingProblem,
    shot: Shot | None = None,
    tasks_at_once: int | None = None,
    runs: int = 1,
    replay: Replay | None = None,
) -> Job:
    """A job that computes the meta-gradient at the initial parameters each time it runs.

    tasks_at_once: as in ``TrainConfig``; None follows the library's rule. runs: how many runs take the step together,
        as those of several seeds do on a GPU; all have the same tasks here. replay: the trace or the CUDA graph of the
        step; None for none.
    """
    theta, layout = ht.flatten(problem.model)
    loss = ht.make_loss(problem.model, problem.criterion, layout)
    kind, outputs = ("regression", 1) if problem.query[1].is_floating_point() else ("classification", 5)
    tasks = DrawnTasks(problem.episodes, kind, tuple(problem.support[0].shape[2:]), outputs)
    config = TrainConfig(
        learner=maml(problem.steps, problem.step_size, first_order=problem.first_order),
        tasks=tasks,
        network=partial(_given_network, problem.model),
        shot=shot,
        meta_batch=len(tasks.episodes),
        device=str(theta.device),
        tasks_at_once=tasks_at_once,
    )
    theta.requires_grad_()
    batched, chunks = is_batched(config, problem.model), training_chunks(config, theta.device)
    processes = min(torch.get_num_threads(), config.meta_batch)
    if processes > 1 and theta.device.type == "cpu" and not batched:
        return Job(_by_workers(replace(config, workers=processes), loss, theta), f"{processes} worker processes")

    others = [(replace(config, seed=seed), theta.detach().clone().requires_grad_()) for seed in range(1, runs)]

    def run() -> Answer:
        for point in (theta, *(point for _, point in others)):
            point.grad = None
        accumulate_gradient(config, loss, theta, meta_step=0, replay=replay, chunks=chunks, others=others)
        assert theta.grad is not None
        return Answer(num_matvecs=0, values=sampled_entries(theta.grad))

    return Job(run, "all tasks at once" if batched else "task by task")


def _given_network(model: torch.nn.Module) -> torch.nn.Module:
    """Return the network unchanged. Unlike a lambda, this function can be pickled for a worker process."""
    return model


def _by_workers(config: TrainConfig, loss: ht.Loss, theta: Tensor) -> Callable[[], Answer]:
    """A run whose tasks are shared by worker processes. It measures its own time, with that of the workers."""
    shared = SharedStep(config, loss, theta)

    def run() -> Answer:
        theta.grad = None
        cpu, wall = _cpu_seconds(shared.pool.pids), time.perf_counter()
        shared.accumulate_gradient(theta, meta_step=0)
        seconds = time.perf_counter() - wall, _cpu_seconds(shared.pool.pids) - cpu
        assert theta.grad is not None
        return Answer(num_matvecs=0, values=sampled_entries(theta.grad), seconds=seconds)

    run()  # starts the worker processes, so that their start is not timed
    return run


def _cpu_seconds(pids: list[int]) -> float:
    """The processor time of this process and of its workers.

    It is read from /proc, because ``resource`` counts only child processes that have ended, and these still run.
    """
    # In this file, entries 11 and 12 after the name in parentheses are the processor times of the user and the system.
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return time.process_time() + sum(int(s[11]) + int(s[12]) for s in stats) / os.sysconf("SC_CLK_TCK")
