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
from hessian_tools.inner.penalty import CurvaturePenalty
from hessian_tools.inner.pretraining import ShotPretraining
from hessian_tools.inner.shot import PROBABILITY_DISTANCES, Shot
from hessian_tools.layout import ParamLayout
from hessian_tools.result import Result
from hessian_tools.validation import check_choice, check_whole

OPTIMISERS = ("adam", "sgd")
# The fields that determine a run's numbers. Plain values are compared as text, and objects by their repr.
_PLAIN_FIELDS = (
    "seed", "meta_batch", "optimiser", "learning_rate", "validation_tasks", "validation_seed", "transductive"
)  # fmt: skip
_REPR_FIELDS = ("learner", "shot", "pretraining")
# Fields that were added later, see ``TrainConfig.identity``; each is False or None by default.
_LATER_FIELDS = ("shuffle_labels", "penalty", "reduced_precision")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the repr of an object that defines none; it differs between processes


@dataclass(frozen=True)
class TrainConfig:
    """One training run: a learner, trained on tasks with a seed.

    learner, tasks: what is trained, and on what.
    network: a function that builds the module; its parameters are drawn from ``seed``.
    shot: the SHOT penalty on the distance between the ends of few large and of many small inner steps; None trains
        without it.
    checkpoints: the meta-iterations (outer steps) whose parameters are saved, where 0 is the untrained network; the
        last one ends the run.
    meta_batch: the number of tasks in an outer step.
    learning_rate, optimiser: those of the outer loop; the optimiser is "adam", or "sgd" for plain descent as in
        Reptile.
    validation_tasks, validation_seed: the number of validation tasks at each checkpoint (0 validates nothing), and
        the seed they are drawn with.
    device: where the run computes, such as "cpu" or "cuda".
    folder: where the run is saved on disk; None saves nothing.
    save_every: the number of meta-iterations between saves of the state from which a run is resumed. The state is also
        saved at checkpoints and every ten seconds; None: only then.
    head: the module that is the network's head; None: by the rule of ``flatten``.
    start: a checkpoint file with the network's initial parameters; None draws them from the seed. Whatever else the
        learner learns starts from its usual initial values.
    pretraining: the settings of SHOT_p, which descends SHOT's distance alone, without query labels; None trains on the
        learner's own objective.
    transductive: how validation treats the query set; see ``evaluate``.
    batched: True computes all tasks of an outer step at once, by vmap of the meta-gradient, which is exact; False
        computes one after the other. None computes them at once where this is faster: on a GPU, and on a CPU for
        networks without convolutions. In long runs of such networks the step is traced and replayed, with numbers that
        are equal to the bit. Tasks whose tensors differ in shape are computed one after the other.
    tasks_at_once: the most tasks that are computed at once, in outer steps and in validation; with 1, one after
        the other. None follows ``batched`` in outer steps, and ``evaluate``'s default in validation. "At once" then
        means all tasks on a CPU. On a GPU it means as many as fit in half of the free memory, judged by what the first
        task of a run needs; where the memory runs out all the same, half as many are tried.
    checkpointing: True keeps the activations of only one inner step at a time, for 1.1 to 1.4 times the running time
        (see ``meta_loss``); the tasks are then computed one after the other.
    penalty: the penalty on the curvature along the inner gradient; None trains without it.
    shuffle_labels: True trains the label-shuffled control, which has nothing to learn: in every training episode, the
        labels of the support set are permuted at random over its examples, and so are those of the query set. The
        number of examples with each label stays the same, and validation keeps the true labels.
    workers: the number of single-threaded processes that share the tasks of an outer step, on the CPU. The numbers are
        equal to the bit to those of one such process. A script that uses workers needs
        ``if __name__ == "__main__":``.
    reduced_precision: False computes products of float32 in float32: TF32 and autocast are off during an outer step,
        and are restored after it. True trains with the precision that the process has set; on CUDA torch's own default
        is TF32 for convolutions. Evaluation and curvature are computed in float32 either way.
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
    tasks_at_once: int | None = None
    checkpointing: bool = False
    workers: int = 1
    shuffle_labels: bool = False
    penalty: CurvaturePenalty | None = None
    reduced_precision: bool = False

    def __post_init__(self) -> None:
        check_whole(seed=self.seed, validation_seed=self.validation_seed, save_every=self.save_every)
        check_whole(at_least=1, meta_batch=self.meta_batch, workers=self.workers, tasks_at_once=self.tasks_at_once)
        check_whole(at_least=0, validation_tasks=self.validation_tasks)
        for name in ("folder", "start"):
            if isinstance(getattr(self, name), str):  # a frozen object may be set while it is being made
                object.__setattr__(self, name, Path(getattr(self, name)))
        steps = self.checkpoints
        if not steps or min(steps) < 0 or list(steps) != sorted(set(steps)):
            raise ValueError(f"checkpoints={list(steps)} must be rising meta-iterations from 0, such as 0, 10, 30")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive")
        check_choice("optimiser", self.optimiser, OPTIMISERS)
        self._check_sharing_of_tasks()
        self._check_objective()

    def _check_sharing_of_tasks(self) -> None:
        """Raise ValueError for options that contradict each other on how many tasks are computed at once, and where."""
        if self.batched is not None and self.tasks_at_once is not None:
            raise ValueError(
                f"batched={self.batched} and tasks_at_once={self.tasks_at_once} both say how many tasks are computed at"
                " once; give one of them"
            )
        at_once = "batched=True" if self.batched else None
        if (self.tasks_at_once or 1) > 1:
            at_once = f"tasks_at_once={self.tasks_at_once}"
        if at_once and self.learner.latent is not None:
            raise ValueError(f"{at_once}, but a latent learner draws its noise task by task; use None")
        if at_once and self.checkpointing:
            raise ValueError(
                f"{at_once} keeps the activations of all tasks, which checkpointing=True is to avoid; use one of them"
            )
        if self.workers > self.meta_batch:
            raise ValueError(f"workers={self.workers} must be at least 1 and at most meta_batch={self.meta_batch}")
        if self.workers > 1 and (at_once or self.device != "cpu"):
            raise ValueError(
                f"workers={self.workers} take tasks in turn on the CPU, which does not go with"
                f" {at_once or f'device={self.device!r}'}; use workers=1"
            )

    def _check_objective(self) -> None:
        """Raise ValueError for labels, penalties or pre-training that do not fit the learner, tasks or each other."""
        if self.shuffle_labels and self.tasks.kind != "classification":
            raise ValueError("shuffle_labels=True permutes the labels of classes, which regression does not have")
        if self.shuffle_labels and not self.learner.is_trained:
            raise ValueError(f"shuffle_labels=True changes training, but {self.learner.name} is not trained")
        if self.shuffle_labels and self.pretraining is not None:
            raise ValueError("shuffle_labels=True, but pretraining descends no loss on query labels; use one of them")
        if self.penalty is not None and self.pretraining is not None:
            raise ValueError("penalty is added to the query loss, but pretraining descends none; use one of them")
        if self.penalty is not None:
            self.penalty.check(self.learner)
        check_shot(self.shot, self.learner)
        if self.pretraining is not None:
            self.pretraining.check(self.learner, self.shot, input_shape=self.tasks.input_shape)
        if self.shot is not None and self.tasks.kind == "regression" and self.shot.distance in PROBABILITY_DISTANCES:
            raise ValueError(
                f"distance={self.shot.distance!r} compares class probabilities, which regression does not have;"
                " use distance 'squared_error'"
            )

    def identity(self, layout: ParamLayout) -> dict[str, Any]:
        """All that determines the run's numbers, in JSON-like form; a run resumes in a folder only where it is equal.

        Settings that may change when a run is resumed are left out: which checkpoints are kept, how often the state is
        saved, and how steps are computed (device, workers, batched, tasks_at_once, checkpointing). Two networks whose
        parameters have the same names and shapes count as equal. A setting in ``_LATER_FIELDS`` is absent where it has
        its default, so that a run begun before the setting existed resumes.
        """
        return {
            **{name: _ADDRESS.sub("", repr(getattr(self, name))) for name in _REPR_FIELDS},
            "tasks": self.tasks.digest,
            "network": {name: list(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)},
            "head": layout.head,
            "start": hashlib.sha256(self.start.read_bytes()).hexdigest() if self.start else None,
            **{name: str(getattr(self, name)) for name in _PLAIN_FIELDS},
            **{name: repr(getattr(self, name)) for name in _LATER_FIELDS if getattr(self, name)},
        }


@dataclass(frozen=True, repr=False)
class Checkpoint(Result):
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
