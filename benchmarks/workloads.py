"""The work loads: W1 to W3 are problems in curvature, and M1 to M10 are outer steps of meta-training.

W1 and W2 use a network of four convolutions ("4-conv") on drawings, and W3 a small regression network. Their points
are the parameter vectors theta_0, ..., theta_{K-1} before each of the K steps of real inner loops, which start from
seeded initial parameters. Everything is drawn from one seed and saved to a file, which every contestant reads.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hessian_tools as ht
from benchmarks.problem import Problem, SquaredError, TrainingProblem
from hessian_tools.data import SineLineTasks, TaskSource, open_tasks

SEED = 0
_ONE_NUMBER = (1,)  # the input shape of regression tasks


@dataclass(frozen=True)
class Workload:
    """A network, its tasks, and the inner loop that adapts the network to each task.

    input_shape: (channel, height, width) of an image, or (1,) for regression. tasks: a function that opens the source
    of tasks. steps, step_size: the number and the size of the inner steps.
    """

    title: str
    network: Callable[[], nn.Module]
    tasks: Callable[[], TaskSource]
    num_tasks: int
    steps: int
    step_size: float
    input_shape: tuple[int, ...]

    @property
    def criterion(self) -> nn.Module:
        return SquaredError() if self.input_shape == _ONE_NUMBER else nn.CrossEntropyLoss()

    def enlarged(self, x: Tensor, index: int) -> Tensor:
        """The drawings of a task, 28x28, enlarged and tinted if the network takes larger images in colour."""
        if x.shape[1:] == self.input_shape:
            return x
        factor = self.input_shape[1] // x.shape[-1]
        tint = 0.5 + 0.5 * torch.rand(len(x), self.input_shape[0], 1, 1, generator=ht.stream(SEED, "tint", index))
        return x.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1) * tint


@dataclass(frozen=True)
class CurvatureWorkload(Workload):
    """A problem in curvature, whose points are the parameter vectors before every inner step of every task."""

    contestants: ClassVar[str] = "benchmarks.peers"  # the package that the contestants' modules are in

    @property
    def size(self) -> int:
        """The number of points."""
        return self.num_tasks * self.steps

    def draw(self) -> dict[str, Tensor]:
        """Draw thetas, x and y, each with a leading point axis that is ordered by task and then by inner step."""
        model = ht.seeded(self.network, seed=SEED)
        start, layout = ht.flatten(model)
        loss = ht.make_loss(model, self.criterion, layout)
        learner, tasks = ht.learners.maml(self.steps, self.step_size), self.tasks()
        columns: dict[str, list[Tensor]] = {"thetas": [], "x": [], "y": []}
        for index in range(self.num_tasks):
            x, y = tasks.episode(seed=SEED, split="test", index=index).support
            x = self.enlarged(x, index)
            # ``record`` also needs a query set, on which the parameter vectors do not depend.
            path = ht.record(learner, loss, start, (x, y), (x, y), save=ht.SaveAt(thetas=True))
            assert path.thetas is not None
            columns["thetas"].append(path.thetas[: self.steps])
            columns["x"].append(x.expand(self.steps, *x.shape))
            columns["y"].append(y.expand(self.steps, *y.shape))
        return {key: torch.cat(parts).contiguous() for key, parts in columns.items()}

    def problem(self, name: str, tensors: dict[str, Tensor]) -> Problem:
        """The problem that the drawn tensors make up."""
        model, criterion = ht.seeded(self.network, seed=SEED), self.criterion
        loss = ht.make_loss(model, criterion, ht.flatten(model)[1])
        return Problem(name, model, criterion, loss, tensors["thetas"], tensors["x"], tensors["y"])


@dataclass(frozen=True)
class TrainingWorkload(Workload):
    """One outer step of MAML on ``num_tasks`` tasks, with ``steps`` inner steps on each."""

    first_order: bool = False
    contestants: ClassVar[str] = "benchmarks.training"

    @property
    def size(self) -> int:
        """The number of tasks."""
        return self.num_tasks

    def draw(self) -> dict[str, Tensor]:
        """Draw the support and query examples of all tasks, each tensor with a leading task axis."""
        source = self.tasks()
        columns: dict[str, list[Tensor]] = {f"{part} {name}": [] for part in ("support", "query") for name in "xy"}
        for index in range(self.num_tasks):
            episode = source.episode(seed=SEED, split="train", index=index)
            for part, (x, y) in zip(("support", "query"), episode, strict=True):
                columns[f"{part} x"].append(self.enlarged(x, index))
                columns[f"{part} y"].append(y)
        return {key: torch.stack(values).contiguous() for key, values in columns.items()}

    def problem(self, name: str, tensors: dict[str, Tensor]) -> TrainingProblem:
        """The problem that the drawn tensors make up."""
        support, query = ((tensors[f"{part} x"], tensors[f"{part} y"]) for part in ("support", "query"))
        model = ht.seeded(self.network, seed=SEED)
        return TrainingProblem(model, self.criterion, support, query, self.steps, self.step_size, self.first_order)


def _conv4(channels: int, side: int, *, shots: int, num_tasks: int, steps: int) -> dict[str, Any]:
    """The fields of a work load with the 4-conv network on drawings, with 5 ways."""
    shape = (channels, side, side)
    network = partial(ht.Conv4, 5, width=64, input_shape=shape)
    loop = {"num_tasks": num_tasks, "steps": steps, "step_size": 0.05}
    return {"network": network, "tasks": _drawings(shots, queries=15), "input_shape": shape, **loop}


def _drawings(shots: int, queries: int) -> Callable[[], TaskSource]:
    return partial(open_tasks, "quickdraw", ways=5, shots=shots, queries=queries)


def _mlp() -> nn.Module:
    return ht.MLP([1, 40, 40, 1])


def _conv4_step(channels: int, side: int, *, shots: int, num_tasks: int, order: str = "second") -> TrainingWorkload:
    """An outer step of MAML with the 4-conv network. order: the order of its derivatives, "first" or "second"."""
    title = f"4-conv, width 64, {channels}x{side}x{side}, 5-way {shots}-shot, 15 queries a class, {num_tasks} tasks"
    fields = _conv4(channels, side, shots=shots, num_tasks=num_tasks, steps=5)
    return TrainingWorkload(f"{title}, 5 steps, {order} order", first_order=order == "first", **fields)


def _resnet12_step(num_tasks: int) -> TrainingWorkload:
    """An outer step of MAML with ResNet-12 on enlarged drawings."""
    return TrainingWorkload(
        f"ResNet-12, 3x84x84, 5-way 1-shot, 3 queries a class, {num_tasks} tasks, 2 steps, second order",
        network=partial(ht.ResNet12, 5),
        tasks=_drawings(shots=1, queries=3),
        num_tasks=num_tasks,
        steps=2,
        step_size=0.01,
        input_shape=(3, 84, 84),
    )


def _sines_step(order: str) -> TrainingWorkload:
    """An outer step of MAML on the regression tasks. order: as in ``_conv4_step``."""
    title = f"MLP 1-40-40-1 on sines and lines, 5 shots, 45 queries, 25 tasks, 5 steps, {order} order"
    return TrainingWorkload(
        title,
        network=_mlp,
        tasks=SineLineTasks,
        num_tasks=25,
        steps=5,
        step_size=0.001,
        input_shape=_ONE_NUMBER,
        first_order=order == "first",
    )


WORKLOADS: dict[str, CurvatureWorkload | TrainingWorkload] = {
    "W1": CurvatureWorkload(
        "4-conv, width 64, 3x84x84, 5-way 5-shot, one point", **_conv4(3, 84, shots=5, num_tasks=1, steps=1)
    ),
    "W2": CurvatureWorkload(
        "4-conv, width 64, 1x28x28, 5-way 1-shot, 8 tasks x 4 inner steps",
        **_conv4(1, 28, shots=1, num_tasks=8, steps=4),
    ),
    "W3": CurvatureWorkload(
        "MLP 1-40-40-1, squared error, 10 support points, 20 tasks x 5 inner steps",
        network=_mlp,
        tasks=partial(SineLineTasks, support=10),
        num_tasks=20,
        steps=5,
        step_size=0.01,
        input_shape=_ONE_NUMBER,
    ),
    "M1": _conv4_step(1, 28, shots=5, num_tasks=4),
    "M2": _conv4_step(1, 28, shots=5, num_tasks=4, order="first"),
    "M3": _conv4_step(3, 84, shots=1, num_tasks=2),
    "M4": _resnet12_step(num_tasks=2),
    "M5": _sines_step("second"),
    "M6": _sines_step("first"),
    "M7": _conv4_step(1, 28, shots=1, num_tasks=4),
    "M8": _conv4_step(1, 28, shots=5, num_tasks=64),
    "M9": _conv4_step(3, 84, shots=1, num_tasks=16),
    "M10": _resnet12_step(num_tasks=8),
}


def drawn_problem(name: str) -> Any:
    """Draw the Problem or TrainingProblem of a work load."""
    return WORKLOADS[name].problem(name, WORKLOADS[name].draw())


def save(name: str, folder: Path) -> Path:
    """Draw a work load and save it; returns the path of its file."""
    path = folder / f"{name}.safetensors"
    save_file(WORKLOADS[name].draw(), path, metadata={"workload": json.dumps(name)})
    return path


def load(name: str, path: Path) -> Any:
    """Load the Problem or TrainingProblem of a work load from its file."""
    return WORKLOADS[name].problem(name, load_file(path))
