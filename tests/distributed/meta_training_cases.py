"""Meta-training runs whose outer steps the processes of a group share."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from teams import message_of

from hessian_tools import MLP, Shot, TrainConfig, learners, meta_train
from hessian_tools.data import SineLineTasks
from hessian_tools.train import group_step

CONFIG = TrainConfig(
    learner=learners.maml(2, 0.05),
    tasks=SineLineTasks(points=12),
    network=partial(MLP, (1, 6, 1)),
    checkpoints=(0, 2, 4),
    meta_batch=5,
    validation_tasks=2,
    learning_rate=0.01,
    shot=Shot(0.1, distance="squared_error"),
)


def meta_training(group: Any, folder: Path) -> list[tuple[Any, Any]]:
    """The checkpoints of a shared run that was ended and resumed, beside those of one process."""
    stored = replace(CONFIG, folder=folder / f"run-{dist.get_world_size(group)}")
    first = list(meta_train(replace(stored, checkpoints=(0, 2)), process_group=group))
    shared = list(meta_train(stored, process_group=group))
    alone = list(meta_train(replace(CONFIG, batched=False)))
    numbers = [(a.validation_loss, b.validation_loss) for a, b in zip(shared, alone, strict=True)]
    return [(a.theta, b.theta) for a, b in zip([*first, *shared], [*alone[:2], *alone], strict=True)] + numbers


def meta_refusals(group: Any) -> list[str]:
    """What each process says where another one fails, or has another run."""
    rank = dist.get_rank(group)

    def fails(*args: Any) -> Any:
        raise ArithmeticError("no task today")

    def with_failing(what: str) -> Any:
        """Train where the second process fails at its tasks, or the first one, which validates, at validation."""
        before = group_step.add_task_gradient
        if what == "tasks" and rank == 1:
            group_step.add_task_gradient = fails
        config = CONFIG if what == "tasks" or rank else replace(CONFIG, tasks=FailingTasks())
        try:
            list(meta_train(config, process_group=group))
        finally:
            group_step.add_task_gradient = before

    calls = [
        partial(with_failing, "tasks"),
        partial(with_failing, "validation"),
        lambda: list(meta_train(replace(CONFIG, seed=rank), process_group=group)),
        lambda: list(meta_train(replace(CONFIG, workers=2), process_group=group)),
        lambda: list(meta_train(replace(CONFIG, tasks_at_once=2), process_group=group)),
    ]
    return [message_of(call) for call in calls]


class FailingTasks(SineLineTasks):
    """Tasks of which those for validation cannot be drawn."""

    def __init__(self) -> None:
        super().__init__(points=12)

    def episode(self, *, seed: int, split: Any, index: int) -> Any:
        if split == "val":
            raise RuntimeError("no validation today")
        return super().episode(seed=seed, split=split, index=index)
