"""The learners a study may name, each with the settings that are its own."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from analysis.config.base import Flag, Natural, Positive, Rate, Strict, listed
from analysis.config.penalty import PretrainingConfig, ShotConfig
from hessian_tools.inner.learners import Latent
from hessian_tools.inner.steps import PLAIN, Momentum, Preconditioned, StepRule

Algorithm = Literal["maml", "anil", "boil", "meta-sgd", "reptile", "leo", "supervised", "untrained"]

_QUERY = ("maml", "anil", "boil", "meta-sgd")  # a query loss after steps on parameters
_TRAINED = (*_QUERY, "reptile", "leo", "supervised")
_OF_PARAMETERS = (*_QUERY, "reptile", "supervised", "untrained")
LEARNER_SETTINGS: dict[str, tuple[str, ...]] = {
    "first_order": (*_QUERY, "leo"),
    "moves": _OF_PARAMETERS,
    "rule": _OF_PARAMETERS,
    "evaluation_steps": _OF_PARAMETERS,
    "logarithmic": ("meta-sgd",),
    "minibatches": ("reptile",),
    "latent": ("leo",),
    "shot": (*_QUERY, "reptile", "leo"),
    "pretraining": _QUERY,
    "start": _TRAINED,
    "optimiser": _TRAINED,
    "learning_rate": _TRAINED,
}


class RuleConfig(Strict):
    """How an inner step follows from the gradients; see hessian_tools.inner.steps."""

    name: Literal["plain", "momentum", "preconditioned"] = "plain"
    decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    epsilon: Rate | None = None

    @model_validator(mode="after")
    def _settings_are_of_this_rule(self) -> "RuleConfig":
        if self.name == "plain" and self.decay is not None:
            raise ValueError("decay is a setting of momentum and preconditioned, not of plain; leave it out")
        if self.name != "preconditioned" and self.epsilon is not None:
            raise ValueError(f"epsilon is a setting of preconditioned, not of {self.name}; leave it out")
        return self

    def built(self) -> StepRule:
        """The library's object."""
        given = self.model_dump(exclude_none=True, exclude={"name"})
        if self.name == "plain":
            return PLAIN
        return Momentum(**given) if self.name == "momentum" else Preconditioned(**given)


class LatentConfig(Strict):
    """LEO's own settings; see hessian_tools.inner.learners.Latent.

    fine_tuning_steps: how many of the study's inner steps, the last ones, are on the decoded weights; the others are
    on the codes. By default half of them, rounded down (the paper: 5 and 5).
    """

    size: Positive = Latent.size
    fine_tuning_steps: Natural | None = None
    fine_tuning_step_size: Rate = Latent.fine_tuning_step_size
    dropout: Annotated[float, Field(ge=0, lt=1)] = Latent.dropout
    kl_weight: float = Latent.kl_weight
    encoder_weight: float = Latent.encoder_weight
    l2_weight: float = Latent.l2_weight
    orthogonality_weight: float = Latent.orthogonality_weight

    def built(self, *, inner_steps: int) -> Latent:
        """The library's object, in a study of so many inner steps."""
        tuned = inner_steps // 2 if self.fine_tuning_steps is None else self.fine_tuning_steps
        if tuned >= inner_steps:
            raise ValueError(
                f"latent.fine_tuning_steps={tuned} leaves none of inner.steps={inner_steps} for the codes;"
                f" give at most {inner_steps - 1}"
            )
        return Latent(**self.model_dump() | {"fine_tuning_steps": tuned})


class LearnerConfig(Strict):
    """One learner. "untrained" is the control: the initial network, adapted by the same inner loop.

    moves: what the inner loop moves ("head", "body", names of modules); by default the head of anil, the body of boil,
    all of others. step_size: alpha where it is not the study's (of leo, on codes: 1 by default); a learner with
    SHOT and its twin without must agree in it. evaluation_steps: inner steps where accuracy is judged; curvature is
    measured along inner.steps. optimiser, learning_rate: where not those of train. start: another learner of
    the study, from whose best checkpoint (validation, same seed) this one begins. pretraining: SHOT_p.
    """

    algorithm: Algorithm = "maml"
    first_order: Flag = False
    moves: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    rule: RuleConfig = RuleConfig()
    step_size: Rate | None = None
    evaluation_steps: Positive | None = None
    logarithmic: Flag = False
    minibatches: Positive = 1
    latent: LatentConfig | None = None
    shot: ShotConfig | None = None
    pretraining: PretrainingConfig | None = None
    start: str | None = None
    optimiser: Literal["adam", "sgd"] | None = None
    learning_rate: Rate | None = None

    @model_validator(mode="after")
    def _settings_are_of_this_algorithm(self) -> "LearnerConfig":
        for field, algorithms in LEARNER_SETTINGS.items():
            given, default = getattr(self, field), LearnerConfig.model_fields[field].default
            if given != default and self.algorithm not in algorithms:
                raise ValueError(f"{field} is a setting of {listed(algorithms)}, not of {self.algorithm}; leave it out")
        if self.pretraining is not None and self.shot is None:
            raise ValueError("pretraining descends SHOT's distance alone, so it needs shot, such as shot: {weight: 1}")
        if self.algorithm == "reptile" and self.learning_rate is None and self.optimiser != "adam":
            raise ValueError(
                "reptile goes a share of the way to where its inner loops end: give that share, such as"
                " learning_rate: 0.5, or optimiser: adam"
            )
        return self

    @property
    def trained(self) -> bool:
        """Whether it is trained: all but the untrained control."""
        return self.algorithm != "untrained"
