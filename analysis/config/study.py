"""The whole study."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from analysis.config.base import NAME, Natural, Positive, Rate, Strict
from analysis.config.data import DataConfig
from analysis.config.learner import LearnerConfig
from analysis.config.measuring import MeasureConfig
from analysis.config.network import NetworkConfig
from hessian_tools.runs.manifest import digest
from hessian_tools.train import logarithmic_schedule


class StepSizeSearch(Strict):
    """Choosing one inner learning rate for all learners: brief training of one learner without SHOT per candidate.

    The candidate with the best validation accuracy (lowest loss for regression) wins; the seed is none of the study's.
    """

    candidates: tuple[Rate, ...] = Field(min_length=1)
    learner: str = "maml"
    meta_steps: Positive = 60
    validation_tasks: Positive = 100
    seed: Natural = 1000


class InnerConfig(Strict):
    """The inner loop: number of steps, and one step size for all learners, given or chosen."""

    steps: Positive = 3
    step_size: Rate | StepSizeSearch = 0.1


class TrainSettings(Strict):
    """The outer loop, for every learner that does not name its own optimiser or learning rate.

    checkpoints: meta-iterations, or one number N for the logarithmic schedule 0, 1, 3, 10, 30, ... up to N.
    """

    checkpoints: tuple[Natural, ...] = (0, 30, 100, 300)
    meta_batch: Positive = 4
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: Rate = 1e-3
    validation_tasks: Natural = 50
    save_every: Positive | None = None

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _logarithmic(cls, value: Any) -> Any:
        return logarithmic_schedule(value) if type(value) is int and value > 0 else value

    @model_validator(mode="after")
    def _rising_from_zero(self) -> "TrainSettings":
        steps = self.checkpoints
        if len(steps) < 2 or steps[0] != 0 or list(steps) != sorted(set(steps)):
            raise ValueError("checkpoints must rise from 0 and name at least two, such as [0, 30, 100, 300]")
        return self


class StudyConfig(Strict):
    """The whole study: what ``study.yaml`` holds."""

    name: Annotated[str, Field(pattern=NAME)]
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    inner: InnerConfig = InnerConfig()
    learners: dict[Annotated[str, Field(pattern=NAME)], LearnerConfig] = Field(min_length=1)
    seeds: tuple[Natural, ...] = Field(default=(0, 1), min_length=1)
    train: TrainSettings = TrainSettings()
    measure: MeasureConfig = MeasureConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "StudyConfig":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} hold one twice")
        for name in self.learners:
            self._check_start(name)
        if isinstance(self.inner.step_size, StepSizeSearch):
            self._check_search(self.inner.step_size)
        return self

    def _check_start(self, name: str) -> None:
        """A learner begins from one of the study that is trained, without a circle, and by validation."""
        passed, at = [name], self.learners[name].start
        while at is not None:
            if at not in self.learners or not self.learners[at].trained:
                raise ValueError(f"learners.{passed[-1]}.start={at!r} must name a trained learner of this study")
            if at in passed:
                raise ValueError(f"learners.{name}.start: {' begins from '.join([*passed, at])}, in a circle")
            passed, at = [*passed, at], self.learners[at].start
        if len(passed) > 1 and not self.train.validation_tasks:
            raise ValueError(f"learners.{name}.start takes the best checkpoint by validation; give validation_tasks")

    def _check_search(self, search: StepSizeSearch) -> None:
        chosen = self.learners.get(search.learner)
        if chosen is None or chosen.shot or not chosen.trained:
            raise ValueError(
                f"inner.step_size.learner={search.learner!r} must name a trained learner of this study without shot"
            )
        if chosen.start or chosen.step_size or chosen.algorithm == "leo":
            raise ValueError(
                f"inner.step_size.learner={search.learner!r} must take the study's step size, from the untrained"
                " network; choose one without step_size and start, and not leo"
            )
        if search.seed in self.seeds:
            raise ValueError(f"inner.step_size.seed={search.seed} is one of the study's seeds; choose another")

    @property
    def digest(self) -> str:
        """SHA-256 of the whole configuration."""
        return digest(self.model_dump(mode="json"))
