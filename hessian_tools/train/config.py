"""What a training run is made of, and what it yields."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from hessian_tools.data import TaskSource
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.meta_loss import check_shot
from hessian_tools.inner.pretraining import ShotPretraining
from hessian_tools.inner.shot import OF_PROBABILITIES, Shot
from hessian_tools.validation import check_whole

OPTIMISERS = ("adam", "sgd")


@dataclass(frozen=True)
class TrainConfig:
    """One run: a learner trained on tasks with a seed.

    network: builds the module; its parameters are drawn from ``seed``. head: the module that is its
    head; None: by the rule of ``flatten``. checkpoints: meta-iterations
    to keep, 0 being the untrained network; the last one ends the run. save_every: meta-iterations
    between resumable states (one is also saved every ten seconds); None: only at checkpoints.

    optimiser: of the outer loop, "adam" or "sgd" (plain, as in Reptile). start: a checkpoint file
    whose network to begin from instead of the seed's; what else the learner learns begins afresh.
    pretraining: descend SHOT alone (SHOT_p), without query labels. transductive: how validation
    treats the query set; see ``evaluate``. batched: all tasks of an outer step at once, by vmap of
    the meta-gradient, which is exact; None: for networks without convolutions, where it is faster (long runs
    of these are replayed from a trace, to the bit).
    checkpointing: the memory of one inner step's activations whatever their number, for 1.1 to 1.4
    times the time (see ``meta_loss``); tasks are then taken in turn.
    workers: processes of one thread each that share the tasks of an outer step, on the CPU; the same
    bits as one process of one thread. A script that uses them needs ``if __name__ == "__main__":``.
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
        for place in ("folder", "start"):  # a frozen object is set once, here
            if isinstance(getattr(self, place), str):
                object.__setattr__(self, place, Path(getattr(self, place)))
        steps = self.checkpoints
        if not steps or min(steps) < 0 or list(steps) != sorted(set(steps)):
            raise ValueError(f"checkpoints={list(steps)} must be rising meta-iterations from 0, e.g. 0, 10, 30, 100")
        if self.meta_batch < 1:
            raise ValueError(f"meta_batch={self.meta_batch} must be at least 1 task")
        if self.validation_tasks < 0:
            raise ValueError(f"validation_tasks={self.validation_tasks} must be at least 0, which validates nothing")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive")
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser={self.optimiser!r} is not one of {', '.join(OPTIMISERS)}")
        if self.batched and self.learner.latent is not None:
            raise ValueError("batched=True: a latent learner draws random numbers task by task; use None or False")
        if self.batched and self.checkpointing:
            raise ValueError("batched=True keeps every task's activations at once, checkpointing=True none; use one")
        self._check_workers()
        self._check_penalty()

    def _check_workers(self) -> None:
        if not 1 <= self.workers <= self.meta_batch:
            raise ValueError(f"workers={self.workers} must be at least 1 and at most meta_batch={self.meta_batch}")
        if self.workers > 1 and (self.batched or self.device != "cpu"):
            raise ValueError(
                f"workers={self.workers} take tasks in turn on the CPU, which batched={self.batched} and"
                f" device={self.device!r} do not; use workers=1"
            )

    def _check_penalty(self) -> None:
        check_shot(self.shot, self.learner)
        if self.pretraining is not None:
            self.pretraining.check(self.learner, self.shot, input_shape=self.tasks.input_shape)
        if self.shot is not None and self.tasks.kind == "regression" and self.shot.distance in OF_PROBABILITIES:
            raise ValueError(
                f"distance={self.shot.distance!r} compares class probabilities, which regression has none of;"
                " use distance 'squared_error'"
            )


@dataclass(frozen=True)
class Checkpoint:
    """The meta-parameters [meta] at a meta-iteration, and the mean validation loss and accuracy there.

    theta: the network's parameters first; most learners learn nothing else (see ``meta.parameters``).
    """

    meta_step: int
    theta: Tensor
    validation_loss: float
    validation_accuracy: float
    diverged: bool = False


def logarithmic_schedule(last: int) -> tuple[int, ...]:
    """0, 1, 3, 10, 30, 100, ... up to and including ``last``.

    >>> logarithmic_schedule(300)
    (0, 1, 3, 10, 30, 100, 300)
    """
    steps = {0, last}
    for power in range(len(str(last))):
        steps |= {s for s in (10**power, 3 * 10**power) if s <= last}
    return tuple(sorted(steps))
