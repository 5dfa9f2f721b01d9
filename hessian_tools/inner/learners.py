"""Learners as data: what the inner loop moves, by which steps, and what the outer loop sees of it.

A new learner is one ``Learner(...)``, or a new step rule for one; see ``docs/new_learner.md``.
"""

from dataclasses import dataclass, replace
from math import inf

from hessian_tools.inner.steps import PLAIN, StepRule
from hessian_tools.validation import check_whole


@dataclass(frozen=True)
class Latent:
    """What LEO (Rusu et al. 2019) is besides its latent steps.

    size: entries of a class's code. fine_tuning_steps, fine_tuning_step_size: steps on the decoded
    weights after those on the codes. dropout: of the encoder's inputs, in training.
    Weights of the penalties: kl_weight (beta) of KL(q(z) || N(0, I)); encoder_weight (gamma) of
    |stop(z') - z|^2; l2_weight (lambda_1) of the squared encoder, relation network and decoder;
    orthogonality_weight (lambda_2) of |C - I|, C the correlations of the decoder's rows.
    """

    size: int = 64
    fine_tuning_steps: int = 5
    fine_tuning_step_size: float = 1e-3
    dropout: float = 0.0
    kl_weight: float = 1e-3
    encoder_weight: float = 1e-9
    l2_weight: float = 1e-8
    orthogonality_weight: float = 1e-3

    def __post_init__(self) -> None:
        check_whole(size=self.size, fine_tuning_steps=self.fine_tuning_steps)
        if self.size < 1 or self.fine_tuning_steps < 0:
            raise ValueError(f"size={self.size}, fine_tuning_steps={self.fine_tuning_steps}: at least 1 and at least 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")


STEP_SIZES = ("fixed", "learned", "learned_log")
OUTER = ("query", "displacement", "classes", "none")


@dataclass(frozen=True)
class Learner:
    """An inner loop of K steps on the support loss, and the outer loop around it.

    step_size: alpha; with learned step sizes what each of them starts from.
    first_order: the outer gradient treats each inner gradient as a constant.
    moves: which parameters the inner loop moves, as prefixes for ``ParamLayout.under`` ("head",
        "body", a module's or parameter's name); empty: all.
    rule: how a step follows from the gradients; see ``hessian_tools.inner.steps``.
    step_sizes: "fixed", or one per moved entry as part of the meta-parameters: "learned" as they
        are (they may become negative), "learned_log" by their logarithm.
    evaluation_steps: K on a new task; None: as in training.
    outer: what meta-training descends. "query": the loss on the query set after the inner loop.
        "displacement": theta - theta_K is the meta-gradient, the inner loop takes support and query
        together. "classes": cross-entropy on all training classes, no inner loop. "none": nothing.
    minibatches: in training, into how many parts by rows the inner loop's examples are cut; step k
        takes part k mod minibatches. Only for "displacement".
    latent: LEO's settings: the inner loop moves codes from which the head is decoded; see ``meta.leo``.
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
    latent: Latent | None = None

    def __post_init__(self) -> None:
        check_whole(steps=self.steps, evaluation_steps=self.evaluation_steps, minibatches=self.minibatches)
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is no inner loop; use at least 1")
        if not 0 < self.step_size < inf:
            raise ValueError(f"step_size={self.step_size} must be positive and finite")
        if self.evaluation_steps is not None and self.evaluation_steps < 1:
            raise ValueError(f"evaluation_steps={self.evaluation_steps} is no inner loop; use at least 1, or None")
        for name, allowed in (("step_sizes", STEP_SIZES), ("outer", OUTER)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.learns_step_sizes and self.outer not in ("query", "none"):
            raise ValueError(f"step_sizes={self.step_sizes!r} have no gradient under outer={self.outer!r}; use 'fixed'")
        if self.latent is not None and (
            self.moves or self.learns_step_sizes or self.outer != "query" or self.rule != PLAIN
        ):
            raise ValueError(
                "a latent learner moves codes by plain steps: leave moves, step_sizes, rule and outer as they are"
            )
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


def leo(steps: int = 5, step_size: float = 1.0, *, latent: Latent | None = None, first_order: bool = False) -> Learner:
    """Latent embedding optimisation (Rusu et al. 2019): codes move, from which the head's weights are decoded.

    The network's features are the head's inputs: of an ``MLP((width, ways))`` the inputs themselves,
    of a network with a body what the body makes of them (and it is meta-trained with the rest).
    step_size, and the fine-tuning's: what the two learned step sizes start from.
    """
    return Learner("leo", steps, step_size, first_order, latent=latent or Latent())


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
