"""Learners as data: which parameters the inner loop moves, by which steps, and what the outer loop descends.

A new learner is one ``Learner(...)``, or a new step rule for one; see ``docs/new_learner.md``. ``ALGORITHMS`` at the
end of this file is the one place that describes the learners known by name: studies, reports and benchmarks read it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

from hessian_tools.inner.steps import PLAIN, StepRule, rule_name
from hessian_tools.validation import check_choice


@dataclass(frozen=True)
class Latent:
    """The settings of LEO (Rusu et al. 2019) besides the inner steps, which move one latent code per class.

    size: number of entries of a code.
    fine_tuning_steps: the number of steps on the decoded weights, taken after those on the codes.
    fine_tuning_step_size: the size of these steps.
    dropout: the rate at which entries of the encoder's inputs are dropped in training.
    kl_weight: weight (the paper's beta) of KL(q(z) || N(0, I)), where q(z) is the distribution that the encoder gives
        for a code z.
    encoder_weight: weight (gamma) of |stop(z') - z|^2, the squared distance of a code z from the adapted code z', whose
        gradient is stopped.
    l2_weight: weight (lambda_1) of the squared parameters of encoder, relation network and decoder.
    orthogonality_weight: weight (lambda_2) of |C - I|, where C holds the correlations of the decoder's rows.
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
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")


STEP_SIZES = ("fixed", "learned", "learned_log")
OUTER_OBJECTIVES = ("query", "displacement", "classes", "none")


@dataclass(frozen=True)
class Learner:
    """An inner loop of K steps on the support loss, and what the outer loop around it descends.

    name: the learner's name in messages.
    steps: K, the number of inner steps in training.
    step_size: alpha; where step sizes are learned, the value that each of them starts from.
    first_order: True treats each inner gradient as a constant in the outer gradient.
    moves: the parameters that the inner loop moves, as prefixes for ``ParamLayout.under`` ("head", "body", the name
        of a module or of a parameter); empty: all of them.
    rule: how a step follows from the gradients; see ``hessian_tools.inner.steps``.
    step_sizes: "fixed" uses ``step_size`` for all entries. Otherwise every moved entry has a step size of its own among
        the meta-parameters: "learned" stores the step size, which may become negative, and "learned_log" its logarithm.
    evaluation_steps: the number of inner steps on a new task; None: as in training.
    outer: what meta-training descends. "query" is the loss on the query set after the inner loop.
        "displacement" takes theta - theta_K as the meta-gradient, and the inner loop sees support and query set
        together. "classes" is the cross-entropy on all training classes, without an inner loop. "none" trains nothing.
    minibatches: the number of parts into which training cuts the rows of the inner loop's examples; step k takes part
        k mod minibatches. More than one part needs outer="displacement".
    latent: LEO's settings. The inner loop then moves latent codes, from which the head's weights are decoded; see
        ``hessian_tools.inner.leo``.
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
        check_choice("step_sizes", self.step_sizes, STEP_SIZES)
        check_choice("outer", self.outer, OUTER_OBJECTIVES)
        if self.learns_step_sizes and self.outer not in ("query", "none"):
            raise ValueError(
                f"step_sizes={self.step_sizes!r} receive no gradient under outer={self.outer!r}; use 'fixed'"
            )
        if self.latent is not None and (
            self.moves or self.learns_step_sizes or self.outer != "query" or self.rule != PLAIN
        ):
            raise ValueError(
                "a latent learner moves codes by plain steps: leave moves, step_sizes, rule and outer as they are"
            )
        if self.minibatches > 1 and self.outer != "displacement":
            raise ValueError(f"minibatches={self.minibatches} needs outer='displacement'; use 1")

    @property
    def is_trained(self) -> bool:
        """Whether training changes anything; it does not for the untrained control."""
        return self.outer != "none"

    @property
    def learns_step_sizes(self) -> bool:
        """Whether step sizes are part of the meta-parameters."""
        return self.step_sizes != "fixed"

    @property
    def needs_classes(self) -> bool:
        """Whether the learner works for classification alone.

        LEO needs classes, because it has a code for each; the supervised control needs them for its head.
        """
        return self.latent is not None or self.outer == "classes"

    @property
    def why_no_alpha(self) -> str | None:
        """The reason why an inner step is not one number alpha times the gradient, in words; None where it is."""
        if self.latent is not None:
            return "its steps are on codes"
        if self.learns_step_sizes:
            return "each parameter has a step size of its own"
        return None if self.rule == PLAIN else f"its steps follow the {rule_name(self.rule)} rule"

    def evaluating(self) -> "Learner":
        """The same learner as it adapts to a new task, with the number of steps meant for that."""
        return replace(self, steps=self.evaluation_steps or self.steps, evaluation_steps=None)


class LoopOptions(TypedDict, total=False):
    """The options that the learners with an outer gradient share, as ``Learner`` describes them."""

    first_order: bool
    evaluation_steps: int | None


def maml(steps: int, step_size: float, *, rule: StepRule = PLAIN, **options: Unpack[LoopOptions]) -> Learner:
    """Model-agnostic meta-learning (Finn, Abbeel, Levine 2017), with the full or the first-order outer gradient."""
    name = "fomaml" if options.get("first_order") else "maml"
    return Learner(name, steps, step_size, rule=rule, **options)


def anil(steps: int, step_size: float, *, head: tuple[str, ...] = ("head",), **options: Unpack[LoopOptions]) -> Learner:
    """Almost no inner loop (Raghu et al. 2020): the inner loop moves the head alone.

    head: the modules or parameters of the head, where the rule of ``ParamLayout.under`` would find another one.
    """
    return Learner("anil", steps, step_size, moves=head, **options)


def boil(steps: int, step_size: float, *, body: tuple[str, ...] = ("body",), **options: Unpack[LoopOptions]) -> Learner:
    """Body only update in the inner loop (Oh et al. 2021): everything but the head moves."""
    return Learner("boil", steps, step_size, moves=body, **options)


def meta_sgd(steps: int, step_size: float, *, logarithmic: bool = False, **options: Unpack[LoopOptions]) -> Learner:
    """Meta-SGD (Li et al. 2017): a step size per parameter, learned together with the initial parameters.

    step_size: the value that all step sizes start from (the paper, too, draws one number for all).
    logarithmic: True learns the logarithms of the step sizes, so that these stay positive and an outer step multiplies
        each of them by a factor; False learns the step sizes themselves.
    """
    return Learner("meta-sgd", steps, step_size, step_sizes="learned_log" if logarithmic else "learned", **options)


def reptile(steps: int, step_size: float, *, minibatches: int = 1, evaluation_steps: int | None = None) -> Learner:
    """Reptile (Nichol, Achiam, Schulman 2018): an outer step moves theta towards the end theta_K of the inner loop.

    The inner loop sees support and query set together. The meta-gradient is theta - theta_K, so the paper's outer step
    is that of ``TrainConfig`` with ``optimiser="sgd"`` and the outer step size as learning rate.
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


LEO_STEP_SIZE = 1.0  # the initial value of LEO's learned step size on codes, as in the paper


def leo(
    steps: int = 5, step_size: float = LEO_STEP_SIZE, *, latent: Latent | None = None, first_order: bool = False
) -> Learner:
    """Latent embedding optimisation (Rusu et al. 2019): the inner loop moves one latent code for each class.

    The head's weights are decoded from the codes, and an encoder computes the first codes from the inputs of the
    network's head. For an ``MLP((width, ways))`` these are the network's own inputs. For a network with a body they are
    the body's features, and the body is meta-trained as well.
    steps, step_size: the number and the size of the steps on the codes. This step size and that of the fine-tuning are
    learned, starting from the given values.
    """
    return Learner("leo", steps, step_size, first_order, latent=latent or Latent())


def supervised(steps: int, step_size: float) -> Learner:
    """Control: ordinary cross-entropy training on all training classes, adapted to a new task by the same inner loop.

    In training the body has another head, with one output per training class. On a new task the network has its initial
    head of ``ways`` outputs, which is drawn from the seed and never trained. The untrained control of the same seed has
    the same head.
    """
    return Learner("supervised", steps, step_size, outer="classes")


def untrained(steps: int, step_size: float) -> Learner:
    """Control: the initial network, adapted by the same inner loop; training leaves it as it is."""
    return Learner("untrained", steps, step_size, outer="none")


@dataclass(frozen=True)
class Algorithm:
    """One entry of ``ALGORITHMS``: how the learners of one algorithm are made, and which settings they have.

    title: the algorithm's name in print.
    make: the function that makes a learner from a number of steps and a step size.
    options: the keyword arguments of ``make`` that are particular to the algorithm; the defaults are those of ``make``.
    step_size: the step size where a user gives none; None: the one that all learners of a study share.
    optimiser: the outer optimiser where a user gives none; None: the one that all learners of a study share.

    >>> ALGORITHMS["anil"].learner(3, 0.1, evaluation_steps=10).moves
    ('head',)
    """

    title: str
    make: Callable[..., Learner]
    options: tuple[str, ...] = ()
    step_size: float | None = None
    optimiser: str | None = None

    @property
    def learner_settings(self) -> tuple[str, ...]:
        """The keyword arguments that :meth:`learner` accepts."""
        # A latent learner always moves its codes, by plain steps, and takes as many on a new task as in training.
        return (*self.options, *(() if self._example.latent is not None else ("moves", "rule", "evaluation_steps")))

    @property
    def training_settings(self) -> tuple[str, ...]:
        """The fields of ``TrainConfig`` that a training run of the algorithm may set besides the learner."""
        # These are the conditions of ``check_shot``, ``ShotPretraining.check`` and ``CurvaturePenalty.check``.
        example = self._example
        if not example.is_trained:
            return ()
        shot = ("shot",) if example.outer != "classes" else ()
        pretraining = ("pretraining",) if example.outer == "query" and example.latent is None else ()
        penalty = ("penalty",) if example.outer == "query" and example.why_no_alpha is None else ()
        return (*shot, *pretraining, *penalty, "start", "optimiser", "learning_rate", "shuffle_labels")

    @property
    def is_trained(self) -> bool:
        """See ``Learner.is_trained``."""
        return self._example.is_trained

    def learner(self, steps: int, step_size: float, **settings: Any) -> Learner:
        """A learner of the algorithm; ``settings`` are among ``learner_settings``, and None leaves a default."""
        given = {name: value for name, value in settings.items() if value is not None}
        for name in given:
            if name not in self.learner_settings:
                raise ValueError(f"{name} is not a setting of {self.title}; it has {', '.join(self.learner_settings)}")
        options = {name: given.pop(name) for name in self.options if name in given}
        return replace(self.make(steps, step_size, **options), **given)

    @property
    def _example(self) -> Learner:
        """A learner of the algorithm, from which the properties above read what holds for all of them."""
        return self.make(1, 1.0)


ALGORITHMS = {
    "maml": Algorithm("MAML", maml, ("first_order",)),
    "anil": Algorithm("ANIL", anil, ("first_order",)),
    "boil": Algorithm("BOIL", boil, ("first_order",)),
    "meta-sgd": Algorithm("Meta-SGD", meta_sgd, ("first_order", "logarithmic")),
    "reptile": Algorithm("Reptile", reptile, ("minibatches",), optimiser="sgd"),
    "leo": Algorithm("LEO", leo, ("first_order", "latent"), step_size=LEO_STEP_SIZE),
    "supervised": Algorithm("cross-entropy on all training classes, then the same inner loop", supervised),
    "untrained": Algorithm("the initial network, adapted by the same inner loop", untrained),
}
