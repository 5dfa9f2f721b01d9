"""The settings of a learner in a study; the library's table ``ALGORITHMS`` says which algorithm has which of them."""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import Field, model_validator

from analysis.config.base import Flag, FromLibrary, Natural, OneOf, Positive, Rate, Strict, listed, settings_of
from hessian_tools.inner.learners import ALGORITHMS, Latent, Learner
from hessian_tools.inner.penalty import CurvaturePenalty
from hessian_tools.inner.pretraining import ShotPretraining
from hessian_tools.inner.shot import Shot
from hessian_tools.inner.steps import RULES, StepRule
from hessian_tools.train.config import OPTIMISERS, TrainConfig


class RuleConfig(Strict):
    """The rule that makes an inner step from the gradients; see ``hessian_tools.inner.steps``.

    name: the kind of rule: plain for gradient descent, momentum for the heavy ball, preconditioned for RMSProp.
    decay: the weight of the past, in momentum and preconditioned steps.

    Settings that are left out take the rule's defaults; ``epsilon`` is described in ``Preconditioned``.
    """

    name: Annotated[str, OneOf(RULES)] = "plain"
    decay: float | None = None
    epsilon: float | None = None

    @model_validator(mode="after")
    def _settings_are_of_this_rule(self) -> "RuleConfig":
        for setting in self.model_dump(exclude_none=True, exclude={"name"}):
            rules = [name for name, rule in RULES.items() if setting in {field.name for field in fields(rule)}]
            if self.name not in rules:
                raise ValueError(f"{setting} is a setting of {listed(rules)}, not of {self.name}; leave it out")
        self.built()  # called for its errors: the rule checks the values
        return self

    def built(self) -> StepRule:
        """The library's step rule."""
        return RULES[self.name](**self.model_dump(exclude_none=True, exclude={"name"}))


class LatentConfig(settings_of(Latent)):  # type: ignore[misc]
    """The settings of LEO (Rusu et al. 2019), whose inner loop moves latent codes from which the head is decoded.

    See ``hessian_tools.inner.learners.Latent`` for the settings that are not described here.
    fine_tuning_steps: how many of the study's inner steps move the decoded weights. These steps come last; the steps
        before them move the codes. The default is half of the inner steps, rounded down (Rusu et al. take 5 of each
        kind).
    """

    fine_tuning_steps: Natural | None = None

    @model_validator(mode="after")
    def _the_library_accepts_the_values(self) -> "LatentConfig":
        Latent(**self.model_dump(exclude_none=True))  # called for its errors
        return self

    def built(self, *, inner_steps: int) -> Latent:
        """The library's settings in a study of ``inner_steps`` inner steps."""
        fine_tuning_steps = inner_steps // 2 if self.fine_tuning_steps is None else self.fine_tuning_steps
        if fine_tuning_steps >= inner_steps:
            raise ValueError(
                f"latent.fine_tuning_steps={fine_tuning_steps} leaves none of inner.steps={inner_steps} for the codes;"
                f" give at most {inner_steps - 1}"
            )
        return Latent(**self.model_dump() | {"fine_tuning_steps": fine_tuning_steps})


class LearnerConfig(Strict):
    """One learner of a study.

    The algorithm "untrained" is the control: the initial network, adapted to new tasks like the trained ones.

    algorithm: how the learner is trained and adapts; see docs/new_learner.md.
    first_order: True treats each inner gradient as a constant in the outer gradient.
    rule: how an inner step follows from the gradients.
    minibatches: the number of parts into which training cuts the examples of an inner loop, of which each inner step
        takes one.
    latent: the settings of leo (LEO, Rusu et al. 2019).
    logarithmic: True if meta-sgd learns the logarithms of its inner step sizes, which keeps the step sizes positive;
        False if it learns the step sizes themselves.
    moves: the parameters that the inner loop moves ("head", "body", or names of modules); by default the head for anil,
        the body for boil, and all parameters for the other algorithms.
    step_size: the inner step size alpha. The default is the study's step size, or 1 for leo, whose steps move codes. A
        learner with SHOT is compared with the learner that differs in nothing but SHOT, so give both the same step
        size.
    evaluation_steps: the number of inner steps after which accuracy is measured; curvature is always measured along
        the ``inner.steps`` of the study.
    shot: the penalty SHOT on the distance between the ends of few large and of many small inner steps (Lee, Yoo,
        Kwak 2023). pretraining: the settings of training by this distance alone, without query labels (SHOT_p).
    penalty: the penalty on the mean of alpha |Hg| / |g| over the inner steps, where alpha is the inner step size, g the
        gradient of the support loss and H its Hessian; see ``hessian_tools.inner.penalty.CurvaturePenalty``.
    start: the name of another learner of the study. This learner begins from that learner's checkpoint that is best by
        validation, among those of the same seed.
    optimiser: the optimiser of the outer loop; by default the algorithm's own, if it has one (sgd for reptile), or else
        that of the study.
    learning_rate: the learning rate of the outer loop; by default that of the study.
    seeds: a list of seeds, if the learner is to have only those seeds of the study that are in it; by default the
        learner has all of them. The list may name seeds that will be added to the study later.
    shuffle_labels: True trains the learner on tasks whose labels are permuted at random, as a control that has nothing
        to learn; it is validated and measured with the true labels.

    Two learners are equal if they are trained and adapt in the same way, whichever seeds they have.
    """

    later_settings = ("shuffle_labels", "penalty", "seeds")

    algorithm: Annotated[str, OneOf(ALGORITHMS)] = "maml"
    first_order: Flag = Learner.first_order
    moves: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    rule: RuleConfig = RuleConfig()
    step_size: Rate | None = None
    evaluation_steps: Positive | None = None
    logarithmic: Flag = False
    minibatches: Positive = Learner.minibatches
    latent: LatentConfig | None = None
    shot: Annotated[Shot, FromLibrary] | None = None
    pretraining: Annotated[ShotPretraining, FromLibrary] | None = None
    penalty: Annotated[CurvaturePenalty, FromLibrary] | None = None
    start: str | None = None
    optimiser: Annotated[str, OneOf(OPTIMISERS)] | None = None
    learning_rate: Rate | None = None
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] | None = None
    shuffle_labels: Flag = TrainConfig.shuffle_labels

    @model_validator(mode="after")
    def _settings_are_of_this_algorithm(self) -> "LearnerConfig":
        for setting, algorithms in LEARNER_SETTINGS.items():
            default = LearnerConfig.model_fields[setting].default
            if getattr(self, setting) != default and self.algorithm not in algorithms:
                raise ValueError(
                    f"{setting} is a setting of {listed(algorithms)}, not of {self.algorithm}; leave it out"
                )
        if self.pretraining is not None and self.shot is None:
            raise ValueError("pretraining minimises SHOT's distance alone, so it needs shot, such as shot: {weight: 1}")
        if self.algorithm == "reptile" and self.learning_rate is None and self.optimiser != "adam":
            raise ValueError(
                "reptile moves a fraction of the way to where its inner loops end; give that fraction, such as"
                " learning_rate: 0.5, or optimiser: adam"
            )
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LearnerConfig) and self._without_seeds == other._without_seeds

    def __hash__(self) -> int:
        return hash(tuple(self._without_seeds.values()))

    @property
    def _without_seeds(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "seeds"}

    @property
    def trained(self) -> bool:
        """False for the untrained control, True for every other learner."""
        return ALGORITHMS[self.algorithm].is_trained

    def built(self, *, inner_steps: int, step_size: float) -> Learner:
        """The library's learner, in a study with ``inner_steps`` inner steps of size ``step_size``.

        The step size is the one in the learner's own settings, or else the algorithm's default, or else ``step_size``.
        Raises ValueError if the learner cannot take that number of inner steps.
        """
        algorithm = ALGORITHMS[self.algorithm]
        settings = {name: getattr(self, name) for name in algorithm.learner_settings}
        if "rule" in settings:
            settings["rule"] = self.rule.built()
        if "latent" in settings:
            settings["latent"] = (self.latent or LatentConfig()).built(inner_steps=inner_steps)
            # In the library, a LEO learner's ``steps`` are only those that move the codes.
            inner_steps -= settings["latent"].fine_tuning_steps
        return algorithm.learner(inner_steps, self.step_size or algorithm.step_size or step_size, **settings)


# Maps each setting to the algorithms that have it; every algorithm has step_size and seeds.
LEARNER_SETTINGS: dict[str, tuple[str, ...]] = {
    setting: tuple(
        name
        for name, algorithm in ALGORITHMS.items()
        if setting in (*algorithm.learner_settings, *algorithm.training_settings)
    )
    for setting in LearnerConfig.model_fields
    if setting not in ("algorithm", "step_size", "seeds")
}
