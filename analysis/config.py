"""A study's configuration: checked models; `study_file` makes them of YAML."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hessian_tools.runs.manifest import digest
from hessian_tools.train import logarithmic_schedule

Positive = Annotated[int, Field(gt=0, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Rate = Annotated[float, Field(gt=0)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of studies and learners: they become names of folders
NETWORKS = ("conv4", "resnet12", "vit", "mlp")
IMPORT_PATH = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
NETWORK_SETTINGS = {"width": ("conv4",), "normalisation": ("conv4", "resnet12"), "hidden": ("mlp",)}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class DataConfig(_Strict):
    """The tasks. queries and test_queries are query images per class in training and on held-out tasks.

    path: data of the user's own; test_path, test_split: others for held-out tasks; the rest: see data.open_data.
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
    def _wishes_have_data(self) -> "DataConfig":
        wishes = self.model_dump(exclude_defaults=True, exclude={"name", "ways", "shots", "queries", "test_queries"})
        if self.source == "sine-line" and wishes:
            raise ValueError(f"{next(iter(wishes))} is for images; sine-line has none")
        return self

    @property
    def source(self) -> str:
        """The path, or the name of a bundled set."""
        return self.path or self.name


class NetworkConfig(_Strict):
    """The network: conv4, resnet12, vit, mlp, or one of yours as "package.module:name".

    width is of conv4, normalisation of conv4 and resnet12, hidden (layer sizes) of mlp. options: further
    keywords of the network, such as groups, widths, residual, patch, depth, heads; of yours, all of them.
    """

    name: str = "conv4"
    width: Positive = 64
    normalisation: Literal["batch", "group", "none"] = "batch"
    hidden: tuple[Positive, ...] = (40, 40)
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known_or_imported(cls, name: str) -> str:
        if name not in NETWORKS and not re.fullmatch(IMPORT_PATH, name):
            raise ValueError(f"{name!r} is not one of {', '.join(NETWORKS)}, nor an import path package.module:name")
        return name

    @model_validator(mode="after")
    def _settings_are_of_this_network(self) -> "NetworkConfig":
        for field, names in NETWORK_SETTINGS.items():
            given, default = getattr(self, field), NetworkConfig.model_fields[field].default
            if given != default and self.name not in names:
                raise ValueError(f"{field} is a setting of {' and '.join(names)}, not of {self.name}; {_instead(self)}")
            if field in self.options and self.name in names:
                raise ValueError(f"{field} stands beside options for {self.name}, not in them")
        if self.name == "mlp" and self.options:
            raise ValueError(f"mlp has no options, got {', '.join(self.options)}; its layers are set by hidden")
        return self

    def __hash__(self) -> int:
        return hash(digest(self.model_dump(mode="json")))


def _instead(network: NetworkConfig) -> str:
    return "leave it out" if network.name in NETWORKS else "write it under options"


class StepSizeSearch(_Strict):
    """Choosing one inner learning rate for all learners: brief training of one learner without SHOT per candidate.

    The candidate with the best validation accuracy (lowest loss for regression) wins; the seed is none of the study's.
    """

    candidates: tuple[Rate, ...] = Field(min_length=1)
    learner: str = "maml"
    meta_steps: Positive = 60
    validation_tasks: Positive = 100
    seed: Natural = 1000


class InnerConfig(_Strict):
    """The inner loop: number of steps, and one step size for all learners, given or chosen."""

    steps: Positive = 3
    step_size: Rate | StepSizeSearch = 0.1


class ShotConfig(_Strict):
    """SHOT's penalty; see hessian_tools.Shot."""

    weight: float = 0.1
    target_steps: Positive = 1
    reference_steps: Positive | None = None
    distance: Literal["kl_reference_target", "kl_target_reference", "squared_error"] = "kl_reference_target"
    detach_reference: Flag = True


class LearnerConfig(_Strict):
    """One learner. "untrained" is the control: the initial network, adapted by the same inner loop."""

    algorithm: Literal["maml", "untrained"] = "maml"
    first_order: Flag = False
    shot: ShotConfig | None = None

    @model_validator(mode="after")
    def _untrained_is_plain(self) -> "LearnerConfig":
        if self.algorithm == "untrained" and (self.first_order or self.shot):
            raise ValueError("an untrained learner takes neither first_order nor shot")
        return self


class TrainSettings(_Strict):
    """The outer loop, for every learner alike.

    checkpoints: meta-iterations, or one number N for the logarithmic schedule 0, 1, 3, 10, 30, ... up to N.
    """

    checkpoints: tuple[Natural, ...] = (0, 30, 100, 300)
    meta_batch: Positive = 4
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


class LevelConfig(_Strict):
    """How much is measured at a point: eigenvalues by magnitude, their relative tolerance, trace probes."""

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


class MeasureConfig(_Strict):
    """Held-out tasks: all get the light measurement, the first few the full one at the first and last checkpoint."""

    tasks: Positive = 16
    full_tasks: Natural = 4
    light: LevelConfig = LevelConfig(eigenvalues=1, tolerance=1e-2, probes=4, max_matvecs=40)
    full: LevelConfig = LevelConfig()
    block: Positive = 4
    evaluation_tasks: Positive = 100
    seed: Natural = 0

    @model_validator(mode="after")
    def _full_within_tasks(self) -> "MeasureConfig":
        if self.full_tasks > self.tasks:
            raise ValueError(f"full_tasks={self.full_tasks} exceeds tasks={self.tasks}")
        if self.light.eigenvalues > self.full.eigenvalues or self.light.probes > self.full.probes:
            raise ValueError("the light measurement asks for more eigenvalues or probes than the full one")
        return self


class StudyConfig(_Strict):
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
        search = self.inner.step_size
        if isinstance(search, StepSizeSearch):
            chosen = self.learners.get(search.learner)
            if chosen is None or chosen.shot or chosen.algorithm == "untrained":
                raise ValueError(
                    f"inner.step_size.learner={search.learner!r} must name a trained learner of this study without shot"
                )
            if search.seed in self.seeds:
                raise ValueError(f"inner.step_size.seed={search.seed} is one of the study's seeds; choose another")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the whole configuration."""
        return digest(self.model_dump(mode="json"))


def trained(config: StudyConfig) -> dict[str, bool]:
    """Which learners are trained: all but the untrained controls."""
    return {name: learner.algorithm != "untrained" for name, learner in config.learners.items()}


def without_shot(config: StudyConfig) -> dict[str, str]:
    """For each learner with SHOT the one that is the same but for SHOT, where the study has it."""
    plain = {learner: name for name, learner in config.learners.items() if learner.shot is None}
    bare = {
        name: learner.model_copy(update={"shot": None}) for name, learner in config.learners.items() if learner.shot
    }
    return {name: plain[learner] for name, learner in bare.items() if learner in plain}
