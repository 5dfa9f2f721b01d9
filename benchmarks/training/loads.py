"""The work loads of meta-training: networks, tasks and inner loops, seeded; every contestant reads the same tasks."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hessian_tools as ht
from benchmarks.pictures import pictures
from benchmarks.problem import SquaredError
from benchmarks.workloads import SEED, Workload
from hessian_tools.data import Episode, SineLineTasks, TaskSource, open_tasks

# Entries of a meta-gradient that are kept and compared.
SAMPLE = 4096


@dataclass(frozen=True)
class Load(Workload):
    """One outer step of MAML: num_tasks tasks, ``steps`` inner steps on each."""

    first_order: bool = False


def _images(shots: int, queries: int) -> Callable[[], TaskSource]:
    return lambda: open_tasks("quickdraw", ways=5, shots=shots, queries=queries)


def _curves(first_order: bool) -> Load:
    return Load(
        title=f"MLP 1-40-40-1 on sines and lines, 5 shots, 45 queries, 25 tasks, 5 steps, {_order(first_order)}",
        network=lambda: ht.MLP([1, 40, 40, 1]),
        criterion=SquaredError,
        tasks=SineLineTasks,
        num_tasks=25,
        steps=5,
        step_size=0.001,
        input_shape=(1,),
        first_order=first_order,
    )


def _conv4(side: int, channels: int, *, shots: int, tasks: int, first_order: bool = False) -> Load:
    shape = (channels, side, side)
    return Load(
        title=f"4-conv, width 64, {channels}x{side}x{side}, 5-way {shots}-shot, 15 queries a class, {tasks} tasks,"
        f" 5 steps, {_order(first_order)}",
        network=lambda: ht.Conv4(5, width=64, input_shape=shape),
        criterion=nn.CrossEntropyLoss,
        tasks=_images(shots, 15),
        num_tasks=tasks,
        steps=5,
        step_size=0.05,
        input_shape=shape,
        first_order=first_order,
    )


def _order(first_order: bool) -> str:
    return "first order" if first_order else "second order"


LOADS = {
    "M1": _conv4(28, 1, shots=5, tasks=4),
    "M2": _conv4(28, 1, shots=5, tasks=4, first_order=True),
    "M3": _conv4(84, 3, shots=1, tasks=2),
    "M7": _conv4(28, 1, shots=1, tasks=4),
    "M4": Load(
        title="ResNet-12, 3x84x84, 5-way 1-shot, 3 queries a class, 2 tasks, 2 steps, second order",
        network=lambda: ht.ResNet12(5),
        criterion=nn.CrossEntropyLoss,
        tasks=_images(1, 3),
        num_tasks=2,
        steps=2,
        step_size=0.01,
        input_shape=(3, 84, 84),
    ),
    "M5": _curves(first_order=False),
    "M6": _curves(first_order=True),
}


@dataclass(frozen=True)
class TrainingProblem:
    """A load with its tasks: support and query tensors with a leading task axis, and one network to train."""

    name: str
    load: Load
    model: nn.Module
    criterion: nn.Module
    support: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]

    @property
    def episodes(self) -> list[Episode]:
        count = len(self.support[0])
        return [Episode(*((x[i], y[i]) for x, y in (self.support, self.query))) for i in range(count)]

    def first(self, count: int) -> "TrainingProblem":
        """The same with its first tasks."""
        (sx, sy), (qx, qy) = self.support, self.query
        return replace(self, support=(sx[:count], sy[:count]), query=(qx[:count], qy[:count]))

    def to(self, device: str, dtype: torch.dtype) -> "TrainingProblem":
        def moved(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, y = pair
            return x.to(device, dtype), y.to(device, dtype) if y.is_floating_point() else y.to(device)

        model = self.model.to(device, dtype)
        return replace(self, model=model, support=moved(self.support), query=moved(self.query))


def sampled(gradient: Tensor) -> Tensor:
    """Entries of a gradient [param], equally far apart, at most SAMPLE of them and from every layer [1, entry]."""
    return gradient[:: -(-len(gradient) // SAMPLE)][None].clone()


def save(name: str, folder: Path) -> Path:
    """Draw the tasks of a load and put them on disk, where every contestant reads them."""
    load = LOADS[name]
    source = load.tasks()
    episodes = [source.episode(seed=SEED, split="train", index=i) for i in range(load.num_tasks)]
    columns: dict[str, list[Tensor]] = {f"{part} {name}": [] for part in ("support", "query") for name in "xy"}
    for index, episode in enumerate(episodes):
        for part, (x, y) in zip(("support", "query"), episode, strict=True):
            columns[f"{part} x"].append(pictures(x, load.input_shape, SEED, index))
            columns[f"{part} y"].append(y)
    path = folder / f"{name}.safetensors"
    stacked = {key: torch.stack(values).contiguous() for key, values in columns.items()}
    save_file(stacked, path, metadata={"load": json.dumps(name)})
    return path


def load(name: str, path: Path) -> TrainingProblem:
    """A load with its tasks from disk."""
    tensors = load_file(path)
    model = ht.seeded(LOADS[name].network, seed=SEED)
    support, query = ((tensors[f"{part} x"], tensors[f"{part} y"]) for part in ("support", "query"))
    return TrainingProblem(name, LOADS[name], model, LOADS[name].criterion(), support, query)
