"""What each experiment trains: learners, budgets and seeds, as data."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from hessian_tools.inner import learners
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.shot import Shot

STEPS = 3
TUNING_SEED = 1000  # its classes, initial network and tasks are no trial's

# Of the inner step size, where it is the learner's to choose; LEO starts from the paper's 1 and learns it.
LEARNERS: dict[str, Callable[[float], Learner]] = {
    "untrained": lambda alpha: learners.untrained(STEPS, alpha),
    "supervised": lambda alpha: learners.supervised(STEPS, alpha),
    "maml": lambda alpha: learners.maml(STEPS, alpha),
    "fomaml": lambda alpha: learners.maml(STEPS, alpha, first_order=True),
    "anil": lambda alpha: learners.anil(STEPS, alpha),
    "boil": lambda alpha: learners.boil(STEPS, alpha),
    "meta-sgd": lambda alpha: learners.meta_sgd(STEPS, alpha),
    "reptile": lambda alpha: learners.reptile(STEPS, alpha),
    "leo": lambda alpha: learners.leo(STEPS, alpha),
}
WITHOUT_INNER_LOOP = ("untrained", "supervised")  # in training: SHOT has nothing to compare there

# The paper's SHOT_r: the learner's own three steps are the reference, one step of three times the size the target.
SHOT = Shot(weight=0.1, target_steps=1)

# The authors' regression: two steps of 2.5 times the size against the learner's own five.
REGRESSION_SHOT = Shot(weight=0.1, target_steps=2, distance="squared_error")


@dataclass(frozen=True)
class Finish:
    """A second part of training that begins at the first one's best checkpoint: smaller steps, more tasks in each."""

    learning_rate: float
    meta_batch: int
    meta_steps: int
    every: int
    cpu_seconds: float


@dataclass(frozen=True)
class Setting:
    """A budget and what is trained under it.

    queries: query images per class in training; 15 judge. candidates: inner step sizes to choose from, the choice being
    made for each learner without SHOT, by ``tuning_steps`` outer steps on a seed of its own. cpu_seconds, target: see
    ``Trial``.
    """

    learners: tuple[str, ...]
    with_shot: tuple[str, ...]
    width: int
    meta_steps: int
    every: int
    meta_batch: int = 4
    learning_rate: float = 2e-3
    queries: int = 5
    candidates: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    tuning_steps: int = 30
    tuning_tasks: int = 60
    validation_tasks: int = 60
    test_tasks: int = 400
    cpu_seconds: float | None = None
    target: float | None = None
    finish: Finish | None = None

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Meta-iterations at which it is validated."""
        return (*range(0, self.meta_steps, self.every), self.meta_steps)

    @property
    def finishing(self) -> "Setting | None":
        """The second part as a setting of its own."""
        return replace(self, **vars(self.finish), finish=None) if self.finish else None

    def names(self) -> list[str]:
        """Trials of a seed: each learner, and behind it the same with SHOT."""
        return [name for learner in self.learners for name in (learner, f"{learner}-shot") if self._has(name)]

    def _has(self, name: str) -> bool:
        return not name.endswith("-shot") or name.removesuffix("-shot") in self.with_shot

    def quick(self) -> "Setting":
        """The same to see that all works, in seconds: it proves nothing."""
        return replace(
            self,
            width=4,
            meta_steps=2,
            every=1,
            candidates=self.candidates[:2],
            tuning_steps=1,
            tuning_tasks=2,
            validation_tasks=2,
            test_tasks=3,
            finish=self.finish and replace(self.finish, meta_steps=1, every=1),
        )


TRAINED = ("maml", "fomaml", "anil", "boil", "meta-sgd", "reptile", "leo")
QUICKDRAW = Setting(("untrained", "supervised", *TRAINED), with_shot=TRAINED, width=16, meta_steps=240, every=40)
CIFAR_FS = Setting(
    ("maml", "fomaml", "anil", "boil"),
    with_shot=("maml",),
    width=32,
    meta_steps=400,
    every=50,
    tuning_steps=20,
)
# Finn et al. (2017): one step of .4 in training, three on a new task. Stops by the clock or when validation passes.
OMNIGLOT = Setting(
    ("maml",),
    with_shot=(),
    width=32,
    meta_steps=40_000,
    every=500,
    candidates=(0.4,),
    validation_tasks=200,
    test_tasks=1000,
    cpu_seconds=400.0,
    target=0.97,
    finish=Finish(learning_rate=5e-4, meta_batch=8, meta_steps=20_000, every=250, cpu_seconds=200.0),
)
OMNIGLOT_STEPS = (1, 3)
# The recipe of Lee et al. (2023), its epoch taken as 100 outer steps.
REGRESSION = Setting(
    ("fomaml",),
    with_shot=("fomaml",),
    width=40,
    meta_steps=10_000,
    every=500,
    meta_batch=20,
    learning_rate=1e-3,
    candidates=(0.001,),
    validation_tasks=200,
    test_tasks=1000,
)
REGRESSION_STEPS = 5
EPOCH = 100
