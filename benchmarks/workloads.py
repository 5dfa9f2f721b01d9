"""The three work loads: W1 and W2 are the 4-conv network on drawings, W3 a small regression network.

Points are those of real inner loops from seeded initial parameters: theta_0 ... theta_{K-1} of every task.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hessian_tools as ht
from benchmarks.pictures import pictures
from benchmarks.problem import Problem, SquaredError
from hessian_tools.data import SineLineTasks, TaskSource, open_tasks

SEED = 0


@dataclass(frozen=True)
class Workload:
    """tasks x steps points; input_shape: (channel, height, width) of a picture, or (1,)."""

    title: str
    network: Callable[[], nn.Module]
    criterion: Callable[[], nn.Module]
    tasks: Callable[[], TaskSource]
    num_tasks: int
    steps: int
    step_size: float
    input_shape: tuple[int, ...]

    @property
    def num_points(self) -> int:
        return self.num_tasks * self.steps


WORKLOADS = {
    "W1": Workload(
        title="4-conv, width 64, 3x84x84, 5-way 5-shot, one point",
        network=lambda: ht.Conv4(5, width=64, input_shape=(3, 84, 84)),
        criterion=nn.CrossEntropyLoss,
        tasks=lambda: open_tasks("quickdraw", ways=5, shots=5),
        num_tasks=1,
        steps=1,
        step_size=0.05,
        input_shape=(3, 84, 84),
    ),
    "W2": Workload(
        title="4-conv, width 64, 1x28x28, 5-way 1-shot, 8 tasks x 4 inner steps",
        network=lambda: ht.Conv4(5, width=64),
        criterion=nn.CrossEntropyLoss,
        tasks=lambda: open_tasks("quickdraw", ways=5, shots=1),
        num_tasks=8,
        steps=4,
        step_size=0.05,
        input_shape=(1, 28, 28),
    ),
    "W3": Workload(
        title="MLP 1-40-40-1, squared error, 10 support points, 20 tasks x 5 inner steps",
        network=lambda: ht.MLP([1, 40, 40, 1]),
        criterion=SquaredError,
        tasks=lambda: SineLineTasks(support=10),
        num_tasks=20,
        steps=5,
        step_size=0.01,
        input_shape=(1,),
    ),
}


def draw(name: str) -> dict[str, Tensor]:
    """The points of a work load: thetas, x and y, each with a leading point axis, task by task, step by step."""
    load = WORKLOADS[name]
    problem = _problem(name, torch.empty(0), torch.empty(0), torch.empty(0))
    start, _ = ht.flatten(problem.model)
    learner, tasks = ht.learners.maml(load.steps, load.step_size), load.tasks()
    columns: dict[str, list[Tensor]] = {"thetas": [], "x": [], "y": []}
    for index in range(load.num_tasks):
        x, y = tasks.episode(seed=SEED, split="test", index=index).support
        x = pictures(x, load.input_shape, SEED, index)
        path = ht.record(learner, problem.loss, start, (x, y), (x, y), save=ht.SaveAt(thetas=True))
        assert path.thetas is not None
        columns["thetas"].append(path.thetas[: load.steps])
        columns["x"].append(x.expand(load.steps, *x.shape))
        columns["y"].append(y.expand(load.steps, *y.shape))
    return {key: torch.cat(parts).contiguous() for key, parts in columns.items()}


def save(name: str, folder: Path) -> Path:
    """Draw the points of a work load and put them on disk, where every contestant reads them."""
    path = folder / f"{name}.safetensors"
    save_file(draw(name), path, metadata={"workload": json.dumps(name)})
    return path


def load(name: str, path: Path) -> Problem:
    """A work load with the points from disk."""
    tensors = load_file(path)
    return _problem(name, tensors["thetas"], tensors["x"], tensors["y"])


def _problem(name: str, thetas: Tensor, x: Tensor, y: Tensor) -> Problem:
    model = ht.seeded(WORKLOADS[name].network, seed=SEED)
    criterion = WORKLOADS[name].criterion()
    _, layout = ht.flatten(model)
    return Problem(name, model, criterion, ht.make_loss(model, criterion, layout), thetas, x, y)
