"""The whole configuration of a study: data, network, inner loop, learners, outer loop and measurement."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from analysis.config.base import NAME, Flag, Natural, OneOf, Positive, Rate, Strict, listed
from analysis.config.learner import LearnerConfig
from hessian_tools.runs.manifest import digest
from hessian_tools.train import TrainConfig, logarithmic_schedule
from hessian_tools.train.config import OPTIMISERS

# The networks of a study: the import path that builds each, and its settings that stand beside ``options``.
NETWORKS = {
    "conv4": ("hessian_tools.nets:Conv4", ("width", "normalisation")),
    "resnet12": ("hessian_tools.nets:ResNet12", ("normalisation",)),
    "vit": ("hessian_tools.nets:VisionTransformer", ()),
    "mlp": ("hessian_tools.nets:MLP", ("hidden",)),
}
IMPORT_PATH = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"


class DataConfig(Strict):
    """The tasks: a bundled set by ``name``, or data of the user's own by ``path``.

    queries, test_queries: query images per class in training and on held-out tasks.
    test_path, test_split: other data from which the held-out tasks are drawn.
    The other settings are those of ``hessian_tools.data.open_data``.
    """

    name: Literal["quickdraw", "sine-line"] = "quickdraw"
    ways: Positive = 5
    shots: Positive = 1
    queries: Positive = 15
    test_queries: Positive = 15
    path: str | None = None
    split: str | None = None
    image_size: Positive | None = None
    channels: Literal[1, 3] | None = None
    rotations: Flag = False
    crop: Flag | None = None
    test_path: str | None = None
    test_split: str | None = None

    @model_validator(mode="after")
    def _only_images_have_settings_of_images(self) -> "DataConfig":
        of_images = self.model_dump(exclude_defaults=True, exclude={"name", "ways", "shots", "queries", "test_queries"})
        if self.source == "sine-line" and of_images:
            raise ValueError(f"{next(iter(of_images))} is for images; sine-line has none")
        return self

    @property
    def source(self) -> str:
        """The path of the data, or the name of the bundled set."""
        return self.path or self.name


class NetworkConfig(Strict):
    """The network: conv4, resnet12, vit, mlp, or one of the user's as "package.module:name".

    width is a setting of conv4, normalisation of conv4 and resnet12, and hidden (the sizes of the layers) of mlp.
    options: further keyword arguments of the network, such as groups, widths, residual, patch, depth or heads; a
        network of the user's takes all of its settings from here.
    head: the module that learners take for the head. By default it is the one called head, or else the last module
        that has parameters.
    """

    name: str = "conv4"
    width: Positive = 64
    normalisation: Literal["batch", "group", "none"] = "batch"
    hidden: tuple[Positive, ...] = (40, 40)
    options: dict[str, Any] = {}
    head: str | None = None

    @field_validator("name")
    @classmethod
    def _known_or_imported(cls, name: str) -> str:
        if name not in NETWORKS and not re.fullmatch(IMPORT_PATH, name):
            raise ValueError(f"{name!r} is not one of {', '.join(NETWORKS)}, nor an import path package.module:name")
        return name

    @model_validator(mode="after")
    def _settings_are_of_this_network(self) -> "NetworkConfig":
        for setting in ("width", "normalisation", "hidden"):
            if getattr(self, setting) == NetworkConfig.model_fields[setting].default or setting in self.settings:
                continue
            owners = listed(name for name, (_, settings) in NETWORKS.items() if setting in settings)
            advice = "leave it out" if self.name in NETWORKS else "write it under options"
            raise ValueError(f"{setting} is a setting of {owners}, not of {self.name}; {advice}")
        for setting in set(self.settings) & set(self.options):
            raise ValueError(f"{setting} stands beside options for {self.name}, not in them")
        if self.name == "mlp" and self.options:
            raise ValueError(f"mlp has no options, got {', '.join(self.options)}; its layers are set by hidden")
        return self

    @property
    def import_path(self) -> str:
        """The "package.module:name" of what builds the network."""
        return NETWORKS[self.name][0] if self.name in NETWORKS else self.name

    @property
    def settings(self) -> dict[str, Any]:
        """The settings beside ``options`` that this network has."""
        return {name: getattr(self, name) for name in NETWORKS.get(self.name, ("", ()))[1]}

    def __hash__(self) -> int:
        # pydantic's own hash fails on the mapping of options.
        return hash(digest(self.model_dump(mode="json")))


class LevelConfig(Strict):
    """How much is measured at a point.

    eigenvalues: how many of the largest by magnitude. tolerance: their relative tolerance. probes: random vectors for
    the trace. max_matvecs: the largest number of Hessian-vector products that the eigenvalues may cost.
    """

    eigenvalues: Positive = 5
    tolerance: Rate = 1e-3
    probes: Annotated[int, Field(ge=2, strict=True)] = 20
    max_matvecs: Positive = 80

    @model_validator(mode="after")
    def _enough_products(self) -> "LevelConfig":
        least = 2 * (self.eigenvalues + 2)
        if self.max_matvecs < least:
            raise ValueError(
                f"max_matvecs={self.max_matvecs} cannot find and check {self.eigenvalues} eigenvalues and both ends;"
                f" give {least} or more"
            )
        return self


class MeasureConfig(Strict):
    """What is measured on held-out tasks.

    tasks, full_tasks: all tasks get the light measurement, the first full_tasks of them the full one at the first and
        the last checkpoint.
    block: the number of tasks in one unit of work.
    evaluation_tasks: further tasks, for accuracy alone.
    transductive: whether the queries of a task form one batch there and in validation; see ``hessian_tools.evaluate``.
    """

    tasks: Positive = 16
    full_tasks: Natural = 4
    light: LevelConfig = LevelConfig(eigenvalues=1, tolerance=1e-2, probes=4, max_matvecs=40)
    full: LevelConfig = LevelConfig()
    block: Positive = 4
    evaluation_tasks: Positive = 100
    transductive: Flag = TrainConfig.transductive
    seed: Natural = 0

    @model_validator(mode="after")
    def _full_within_tasks(self) -> "MeasureConfig":
        if self.full_tasks > self.tasks:
            raise ValueError(f"full_tasks={self.full_tasks} exceeds tasks={self.tasks}")
        if self.light.eigenvalues > self.full.eigenvalues or self.light.probes > self.full.probes:
            raise ValueError("the light measurement asks for more eigenvalues or probes than the full one")
        return self


class StepSizeSearch(Strict):
    """The choice of one inner step size for all learners: one learner without SHOT is trained briefly per candidate.

    The candidate with the best validation accuracy wins, for regression the one with the lowest loss. The seed is
    none of the study's.
    """

    candidates: tuple[Rate, ...] = Field(min_length=1)
    learner: str = "maml"
    meta_steps: Positive = 60
    validation_tasks: Positive = 100
    seed: Natural = 1000


class InnerConfig(Strict):
    """The inner loop: the number of steps, and one step size for all learners, given or to be chosen."""

    steps: Positive = 3
    step_size: Rate | StepSizeSearch = 0.1


class TrainSettings(Strict):
    """The outer loop, for every learner that does not name its own optimiser or learning rate.

    checkpoints: meta-iterations, or one number N for the logarithmic schedule 0, 1, 3, 10, 30, ... up to N.
    The other settings are those of ``hessian_tools.TrainConfig``.
    """

    checkpoints: tuple[Natural, ...] = (0, 30, 100, 300)
    meta_batch: Positive = TrainConfig.meta_batch
    optimiser: Annotated[str, OneOf(OPTIMISERS)] = TrainConfig.optimiser
    learning_rate: Rate = TrainConfig.learning_rate
    validation_tasks: Natural = TrainConfig.validation_tasks
    save_every: Positive | None = TrainConfig.save_every

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
    """The whole study, as ``study.yaml`` holds it."""

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

    def starts(self, name: str) -> list[str]:
        """The learners from which a learner begins, the nearest first; raises ValueError where they form a circle."""
        passed, start = [name], self.learners[name].start
        while start is not None:
            if start not in self.learners or not self.learners[start].trained:
                raise ValueError(f"learners.{passed[-1]}.start={start!r} must name a trained learner of this study")
            if start in passed:
                raise ValueError(f"learners.{name}.start: {' begins from '.join([*passed, start])}, in a circle")
            passed, start = [*passed, start], self.learners[start].start
        return passed[1:]

    def _check_start(self, name: str) -> None:
        if self.starts(name) and not self.train.validation_tasks:
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
