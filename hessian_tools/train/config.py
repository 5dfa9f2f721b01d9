"""The configuration of a training run, and the checkpoints that the run yields."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hessian_tools.data import TaskSource
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.meta_loss import check_shot
from hessian_tools.inner.pretraining import ShotPretraining
from hessian_tools.inner.shot import OF_PROBABILITIES, Shot
from hessian_tools.layout import ParamLayout
from hessian_tools.validation import check_whole

OPTIMISERS = ("adam", "sgd")
# What a run is made of: fields that are compared as text, and objects that are compared by their repr.
_PLAIN_FIELDS = (
    "seed", "meta_batch", "optimiser", "learning_rate", "validation_tasks", "validation_seed", "transductive"
)  # fmt: skip
_REPR_FIELDS = ("learner", "shot", "pretraining")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the repr of an object that defines none; it differs between processes


@dataclass(frozen=True)
class TrainConfig:
    """One training run: a learner, trained on tasks with a seed.

    learner, tasks: what is trained, and on what.
    network: a function that builds the module; its parameters are drawn from ``seed``.
    shot: the SHOT penalty, if the learner has one.
    checkpoints: the meta-iterations to keep, where 0 is the untrained network; the last one ends the run.
    meta_batch: the number of tasks in an outer step.
    learning_rate, optimiser: of the outer loop; "adam", or "sgd" (plain descent, as in Reptile).
    validation_tasks, validation_seed: the number of validation tasks at each checkpoint (0 validates nothing), and
        the seed they are drawn with.
    device: where the run computes, such as "cpu" or "cuda".
    folder: where the run is kept on disk; None keeps nothing.
    save_every: meta-iterations between resumable states, of which one is also saved every ten seconds; None: states
        are saved at checkpoints and every ten seconds.
    head: the module that is the network's head; None: by the rule of ``flatten``.
    start: a checkpoint file whose network the run begins from instead of the seed's. Whatever else the learner
        learns begins afresh.
    pretraining: descend SHOT's distance alone (SHOT_p), without query labels.
    transductive: how validation treats the query set; see ``evaluate``.
    batched: whether all tasks of an outer step are taken at once, by vmap of the meta-gradient, which is exact.
        None: for networks without convolutions, where it is faster. Long runs of these are replayed from a trace, to
        the bit.
    checkpointing: keep the activations of one inner step at a time, whatever their number, for 1.1 to 1.4 times the
        time (see ``meta_loss``); the tasks are then taken in turn.
    workers: the number of processes of one thread each that share the tasks of an outer step, on the CPU; the result
        is that of one process of one thread, to the bit. A script that uses them needs
        ``if __name__ == "__main__":``.
    """

    learner: Learner
    tasks: TaskSource
    network: Callable[[], nn.Module]
    seed: int = 0
    shot: Shot | None = None
    checkpoints: tuple[int, ...] = (0, 10, 30, 100, 300)
    meta_batch: int = 4
    learning_rate: float = 1e-3
    validation_tasks: int = 50
    validation_seed: int = 0
    device: str = "cpu"
    folder: Path | None = None
    save_every: int | None = None
    head: str | None = None
    optimiser: str = "adam"
    start: Path | None = None
    pretraining: ShotPretraining | None = None
    transductive: bool = True
    batched: bool | None = None
    checkpointing: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        check_whole(seed=self.seed, meta_batch=self.meta_batch, save_every=self.save_every, workers=self.workers)
        check_whole(validation_tasks=self.validation_tasks, validation_seed=self.validation_seed)
        for name in ("folder", "start"):
            if isinstance(getattr(self, name), str):  # a frozen object may be set while it is being made
                object.__setattr__(self, name, Path(getattr(self, name)))
        steps = self.checkpoints
        if not steps or min(steps) < 0 or list(steps) != sorted(set(steps)):
            raise ValueError(f"checkpoints={list(steps)} must be rising meta-iterations from 0, such as 0, 10, 30")
        if self.meta_batch < 1:
            raise ValueError(f"meta_batch={self.meta_batch} must be at least 1 task")
        if self.validation_tasks < 0:
            raise ValueError(f"validation_tasks={self.validation_tasks} must be at least 0, which validates nothing")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive")
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser={self.optimiser!r} is not one of {', '.join(OPTIMISERS)}")
        if self.batched and self.learner.latent is not None:
            raise ValueError("batched=True: a latent learner draws its noise task by task; use None or False")
        if self.batched and self.checkpointing:
            raise ValueError("batched=True keeps the activations of all tasks, checkpointing=True of none; use one")
        if not 1 <= self.workers <= self.meta_batch:
            raise ValueError(f"workers={self.workers} must be at least 1 and at most meta_batch={self.meta_batch}")
        if self.workers > 1 and (self.batched or self.device != "cpu"):
            raise ValueError(
                f"workers={self.workers} take tasks in turn on the CPU, but batched={self.batched} and"
                f" device={self.device!r} do not; use workers=1"
            )
        check_shot(self.shot, self.learner)
        if self.pretraining is not None:
            self.pretraining.check(self.learner, self.shot, input_shape=self.tasks.input_shape)
        if self.shot is not None and self.tasks.kind == "regression" and self.shot.distance in OF_PROBABILITIES:
            raise ValueError(
                f"distance={self.shot.distance!r} compares class probabilities, which regression does not have;"
                " use distance 'squared_error'"
            )

    def identity(self, layout: ParamLayout) -> dict[str, Any]:
        """All that the run's numbers follow from, in words: two runs may share a folder only where this is equal.

        Left out is what may change when a run is resumed: which checkpoints are kept, how often states are saved, and
        how steps are taken (device, workers, batched, checkpointing). Two networks with the same names and shapes of
        parameters are not told apart.
        """
        return {
            **{name: _ADDRESS.sub("", repr(getattr(self, name))) for name in _REPR_FIELDS},
            "tasks": self.tasks.digest,
            "network": {name: list(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)},
            "head": layout.head,
            "start": hashlib.sha256(self.start.read_bytes()).hexdigest() if self.start else None,
            **{name: str(getattr(self, name)) for name in _PLAIN_FIELDS},
        }


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run at one meta-iteration.

    theta: the meta-parameters [meta], the network's first; most learners learn nothing else (see
        ``hessian_tools.inner.parameters``).
    validation_loss, validation_accuracy: means over the validation tasks; NaN where nothing was validated.
    diverged: whether training stopped here because a number was not finite.
    """

    meta_step: int
    theta: Tensor
    validation_loss: float
    validation_accuracy: float
    diverged: bool = False


def logarithmic_schedule(last: int) -> tuple[int, ...]:
    """The meta-iterations 0, 1, 3, 10, 30, 100, ... up to and including ``last``.

    >>> logarithmic_schedule(300)
    (0, 1, 3, 10, 30, 100, 300)
    """
    steps = {0, last}
    for power in range(len(str(last))):
        steps |= {s for s in (10**power, 3 * 10**power) if s <= last}
    return tuple(sorted(steps))
