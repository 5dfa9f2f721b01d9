"""Learners as data: what the inner loop moves, by which steps, and what the outer loop sees of it.

A new learner is one ``Learner(...)``, or a new step rule for one; see ``docs/new_learner.md``.
"""

from dataclasses import dataclass, replace

from hessian_tools.meta.steps import PLAIN, StepRule

STEP_SIZES = ("fixed", "learned", "learned_log")
OUTER = ("query", "displacement", "classes", "none")


@dataclass(frozen=True)
class Learner:
    """An inner loop of K steps on the support loss, and the outer loop around it.

    step_size: alpha; with learned step sizes what each of them starts from.
    first_order: the outer gradient treats each inner gradient as a constant.
    moves: which parameters the inner loop moves, as prefixes for ``ParamLayout.under`` ("head",
        "body", a module's or parameter's name); empty: all.
    rule: how a step follows from the gradients; see ``hessian_tools.meta.steps``.
    step_sizes: "fixed", or one per moved entry as part of the meta-parameters: "learned" as they
        are (they may become negative), "learned_log" by their logarithm.
    evaluation_steps: K on a new task; None: as in training.
    outer: what meta-training descends. "query": the loss on the query set after the inner loop.
        "displacement": theta - theta_K is the meta-gradient, the inner loop takes support and query
        together. "classes": cross-entropy on all training classes, no inner loop. "none": nothing.
    minibatches: in training, into how many parts by rows the inner loop's examples are cut; step k
        takes part k mod minibatches. Only for "displacement".
    """

    name: str
    steps: int
    step_size: float
    first_order: bool = False
    moves: tuple[str, ...] = ()
    rule: StepRule = PLAIN
    step_sizes: str = "fixed"
    evaluation_steps: int | None = None
    outer: str = "query"
    minibatches: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is no inner loop; use at least 1")
        if not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")
        if self.evaluation_steps is not None and self.evaluation_steps < 1:
            raise ValueError(f"evaluation_steps={self.evaluation_steps} is no inner loop; use at least 1, or None")
        for name, allowed in (("step_sizes", STEP_SIZES), ("outer", OUTER)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.learns_step_sizes and self.outer not in ("query", "none"):
            raise ValueError(f"step_sizes={self.step_sizes!r} have no gradient under outer={self.outer!r}; use 'fixed'")
        if self.minibatches < 1 or (self.minibatches > 1 and self.outer != "displacement"):
            raise ValueError(f"minibatches={self.minibatches} must be 1, or at least 1 with outer='displacement'")

    @property
    def learns_step_sizes(self) -> bool:
        """Whether step sizes are part of the meta-parameters."""
        return self.step_sizes != "fixed"

    @property
    def total_time(self) -> float:
        """Step size times length of the loop: the time gradient flow would run."""
        return self.rule.time(self.steps) * self.step_size

    def evaluating(self) -> "Learner":
        """The same learner on a new task: with its number of steps for that."""
        return replace(self, steps=self.evaluation_steps or self.steps, evaluation_steps=None)


def maml(
    steps: int,
    step_size: float,
    *,
    first_order: bool = False,
    evaluation_steps: int | None = None,
    rule: StepRule = PLAIN,
) -> Learner:
    """Model-agnostic meta-learning (Finn, Abbeel, Levine 2017), full or first-order outer gradient."""
    name = "fomaml" if first_order else "maml"
    return Learner(name, steps, step_size, first_order, evaluation_steps=evaluation_steps, rule=rule)


def anil(
    steps: int,
    step_size: float,
    *,
    head: tuple[str, ...] = ("head",),
    first_order: bool = False,
    evaluation_steps: int | None = None,
) -> Learner:
    """Almost no inner loop (Raghu et al. 2020): the inner loop moves the head alone.

    head: its modules or parameters, where the rule of ``ParamLayout.under`` finds another.
    """
    return Learner("anil", steps, step_size, first_order, head, evaluation_steps=evaluation_steps)


def boil(
    steps: int,
    step_size: float,
    *,
    body: tuple[str, ...] = ("body",),
    first_order: bool = False,
    evaluation_steps: int | None = None,
) -> Learner:
    """Body only in the inner loop (Oh et al. 2021): all but the head moves."""
    return Learner("boil", steps, step_size, first_order, body, evaluation_steps=evaluation_steps)


def meta_sgd(
    steps: int,
    step_size: float,
    *,
    logarithmic: bool = False,
    first_order: bool = False,
    evaluation_steps: int | None = None,
) -> Learner:
    """Meta-SGD (Li et al. 2017): a step size per parameter, learned with the initial parameters.

    step_size: what all start from (the paper draws one number for all). logarithmic: learn their
    logarithms, which keeps them positive and makes an outer step a relative one.
    """
    kind = "learned_log" if logarithmic else "learned"
    return Learner("meta-sgd", steps, step_size, first_order, step_sizes=kind, evaluation_steps=evaluation_steps)


def reptile(steps: int, step_size: float, *, minibatches: int = 1, evaluation_steps: int | None = None) -> Learner:
    """Reptile (Nichol, Achiam, Schulman 2018): move to where the inner loop leads; no query set is held back.

    The meta-gradient is theta - theta_K, so the paper's outer step is ``TrainConfig`` with
    ``optimiser="sgd"`` and the outer step size as learning rate.
    """
    return Learner(
        "reptile",
        steps,
        step_size,
        first_order=True,
        outer="displacement",
        minibatches=minibatches,
        evaluation_steps=evaluation_steps,
    )


def supervised(steps: int, step_size: float) -> Learner:
    """Control: ordinary cross-entropy training on all training classes, adapted to a new task by the same inner loop.

    The body is trained under a head of its own, one output per training class. On a new task the
    fresh head of ``ways`` outputs is the one the network was born with: the seed's, never trained,
    hence the very head that the untrained control of that seed starts from.
    """
    return Learner("supervised", steps, step_size, outer="classes")


def untrained(steps: int, step_size: float) -> Learner:
    """Control: the initial network, adapted by the same inner loop; training leaves it as it is."""
    return Learner("untrained", steps, step_size, outer="none")
