"""The whole configuration of a study: data, network, inner loop, learners, outer loop and measurement."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from analysis.config.base import NAME, Flag, Natural, OneOf, Positive, Rate, Strict, listed
from analysis.config.learner import LearnerConfig
from hessian_tools.runs.files import json_digest
from hessian_tools.train import TrainConfig, logarithmic_schedule
from hessian_tools.train.config import OPTIMISERS
from hessian_tools.validation import did_you_mean

# The networks that a study knows by name. Each has the import path of the function or class that builds it, and the
# names of those of its settings that are fields of NetworkConfig; all others are given under ``options``.
NETWORKS = {
    "conv4": ("hessian_tools.nets:Conv4", ("width", "normalisation")),
    "resnet12": ("hessian_tools.nets:ResNet12", ("normalisation",)),
    "vit": ("hessian_tools.nets:VisionTransformer", ()),
    "mlp": ("hessian_tools.nets:MLP", ("hidden",)),
}
# An object of the user's own: "package.module:name" or "path/to/file.py:name", without control characters.
IMPORT_PATH = r"([A-Za-z_][\w.]*|[^\x00-\x1f]+\.py):[A-Za-z_]\w*"


class DataConfig(Strict):
    """The data from which tasks are drawn: a bundled set by ``name``, or the user's own by ``path``.

    name: a bundled set: quickdraw, small drawings of 345 classes, or sine-line, a regression.
    ways: the number of classes in a task.
    shots: the number of support images per class.
    queries: the number of query images per class in training.
    test_queries: the number of query images per class on held-out tasks.
    path: the folder or file of data of your own, which then take the place of ``name``; see docs/my_data.md.
    image_size: the side of the square images, in pixels; by default the usual one of the data set.
    channels: 1 for grey images or 3 for coloured ones; by default as the data set has them.
    test_path: the path of other data from which the held-out tasks are drawn; by default they are drawn from the same
        data. The images of both need the same size and channels.
    test_split: the split of the data at ``test_path``, given as ``split`` is for the data at ``path``.

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
        # The settings that the user has given and that make sense for images only.
        for_images = self.model_dump(
            exclude_defaults=True, exclude={"name", "ways", "shots", "queries", "test_queries"}
        )
        if self.source == "sine-line" and for_images:
            raise ValueError(f"{next(iter(for_images))} is for images, but sine-line has none; leave it out")
        return self

    @property
    def source(self) -> str:
        """The path of the data, or the name of the bundled set."""
        return self.path or self.name


class NetworkConfig(Strict):
    """The network that learns the tasks.

    name: one of conv4, resnet12, vit and mlp, or one of the user's own by its import path or file, which needs
        ``--trust``. The data sine-line need mlp.
    width: the number of filters in a layer of conv4.
    normalisation: the kind of normalisation in conv4 and in resnet12.
    hidden: the sizes of the hidden layers, a setting of mlp.
    options: further keyword arguments of the network, such as groups, widths, residual, patch, depth or heads. A
        network of the user's own takes all of its settings from here.
    head: the name of the module that counts as the head, which anil moves and boil does not. By default it is the
        module called head, or else the last one that has parameters.
    """

    name: str = "conv4"
    width: Positive = 64
    normalisation: Literal["batch", "group", "none"] = "batch"
    hidden: Annotated[tuple[Positive, ...], Field(max_length=100)] = (40, 40)
    options: dict[str, Any] = {}
    head: str | None = None

    @field_validator("name")
    @classmethod
    def _known_or_imported(cls, name: str) -> str:
        if name not in NETWORKS and not re.fullmatch(IMPORT_PATH, name):
            raise ValueError(
                f"{name!r} is not one of {', '.join(NETWORKS)}, nor an import path package.module:name or file.py:name"
                f"{did_you_mean(name, NETWORKS)}"
            )
        return name

    @field_validator("options")
    @classmethod
    def _plain_values(cls, options: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(options, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as e:
            raise ValueError(f"options must be mappings, lists, texts and finite numbers ({str(e)[:100]})") from None
        return options

    @model_validator(mode="after")
    def _settings_are_of_this_network(self) -> "NetworkConfig":
        for setting in ("width", "normalisation", "hidden"):
            if getattr(self, setting) == NetworkConfig.model_fields[setting].default or setting in self.settings:
                continue
            owners = listed(name for name, (_, settings) in NETWORKS.items() if setting in settings)
            advice = "leave it out" if self.name in NETWORKS else "write it under options"
            raise ValueError(f"{setting} is a setting of {owners}, not of {self.name}; {advice}")
        for setting in set(self.settings) & set(self.options):
            raise ValueError(
                f"{setting} of {self.name} is written directly under network, not under options; move it out of options"
            )
        if self.name == "mlp" and self.options:
            raise ValueError(f"mlp has no options, got {', '.join(self.options)}; its layers are set by hidden")
        return self

    @property
    def import_path(self) -> str:
        """The "package.module:name" of the function or class that builds the network."""
        return NETWORKS[self.name][0] if self.name in NETWORKS else self.name

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of this network that are fields of NetworkConfig; those in ``options`` are not among them."""
        _, names = NETWORKS.get(self.name, ("", ()))
        return {name: getattr(self, name) for name in names}

    def __hash__(self) -> int:
        # pydantic's own hash fails on the dict of options.
        return hash(json_digest(self.model_dump(mode="json")))


class LevelConfig(Strict):
    """How much of the curvature is measured at each parameter vector of an inner loop.

    eigenvalues: how many eigenvalues of largest magnitude are sought. tolerance: their relative tolerance.
    probes: the number of random vectors for the trace.
    max_matvecs: the largest number of Hessian-vector products that the eigenvalues may cost.
    """

    eigenvalues: Positive = 5
    tolerance: Rate = 1e-3
    probes: Annotated[int, Field(ge=2, strict=True)] = 20
    max_matvecs: Positive = 80

    @model_validator(mode="after")
    def _enough_products(self) -> "LevelConfig":
        # Besides those of largest magnitude, the largest and the smallest algebraic eigenvalue are sought (+ 2). Each
        # eigenvalue takes at least one product to be found and one more to be checked (2 *).
        least = 2 * (self.eigenvalues + 2)
        if self.max_matvecs < least:
            raise ValueError(
                f"max_matvecs={self.max_matvecs} is too few for eigenvalues={self.eigenvalues}: finding and checking"
                f" these and both ends of the spectrum takes at least {least} products; give {least} or more"
            )
        return self


class MeasureConfig(Strict):
    """What is measured on held-out tasks.

    tasks: the number of tasks on which curvature is measured.
    full_tasks: the first ``full_tasks`` of these tasks get the measurement ``full`` at the first and the last
        checkpoint. All other measurements are ``light``.
    light: how much is measured wherever ``full`` does not apply.
    full: how much is measured of the first ``full_tasks`` tasks at the first and the last checkpoint.
    block: the number of tasks that are stored together. On a CPU these tasks are also measured together; on a GPU, as
        many blocks as fit in its memory are measured together.
    evaluation_tasks: the number of further tasks, on which only loss and accuracy are measured.
    quantities: what is measured: names in docs/quantities.md, "standard" or "all", or import paths or files of the
        user's own quantities, such as my_quantities.py:SHARPNESS.
    losses: on which losses, besides the support loss, curvature is measured: "query", "across", "other_task"; see
        ``analysis.quantities.variants``.
    transductive: True if all queries of a task pass through the network as one batch when accuracy is measured, on the
        evaluation tasks and in validation; see ``hessian_tools.evaluate``.
    seed: together with the seed of a run, it determines the held-out tasks and the random probes of the curvature.
    """

    later_settings = ("quantities", "losses")

    tasks: Positive = 16
    full_tasks: Natural = 4
    light: LevelConfig = LevelConfig(eigenvalues=1, tolerance=1e-2, probes=4, max_matvecs=40)
    full: LevelConfig = LevelConfig()
    block: Positive = 4
    evaluation_tasks: Positive = 100
    quantities: tuple[str, ...] = ("standard",)
    losses: tuple[Literal["query", "across", "other_task"], ...] = ()
    transductive: Flag = TrainConfig.transductive
    seed: Natural = 0

    @model_validator(mode="after")
    def _full_within_tasks(self) -> "MeasureConfig":
        if self.full_tasks > self.tasks:
            raise ValueError(f"full_tasks={self.full_tasks} exceeds tasks={self.tasks}; give at most {self.tasks}")
        if self.light.eigenvalues > self.full.eigenvalues or self.light.probes > self.full.probes:
            raise ValueError("light asks for more eigenvalues or probes than full; give it at most as many")
        return self


class StepSizeSearch(Strict):
    """A search for one inner step size for all learners, in which one learner is trained briefly.

    candidates: the step sizes to try. The step size with the highest validation accuracy is chosen or, for regression,
        the one with the lowest validation loss.
    learner: the name of the learner that is trained with each candidate. Give one without the penalty SHOT, because a
        step size that is best for a learner with SHOT would favour SHOT in every comparison.
    meta_steps: the number of meta-iterations of each such training.
    validation_tasks: the number of tasks on which a candidate is validated.
    seed: the seed of the trainings, which must not be one of the study's seeds.
    """

    candidates: tuple[Rate, ...] = Field(min_length=1)
    learner: str = "maml"
    meta_steps: Positive = 60
    validation_tasks: Positive = 100
    seed: Natural = 1000


class InnerConfig(Strict):
    """The inner loop of the study.

    steps: the number of inner steps. step_size: the step size of every learner whose own settings give none, as a
        number or as a search that chooses it.
    """

    steps: Positive = 3
    step_size: Rate | StepSizeSearch = 0.1


class TrainSettings(Strict):
    """The outer loop. The settings of a learner may give another optimiser and another learning rate.

    checkpoints: the meta-iterations at which checkpoints are kept and measured. They rise from 0, and training ends
        with the last one. One number N stands for the logarithmic schedule 0, 1, 3, 10, 30, ... up to N.
    meta_batch: the number of tasks in a meta-iteration.
    optimiser: the optimiser of the outer loop, for learners that give none and whose algorithm has none of its own.
    learning_rate: the learning rate of the outer loop, for learners that give none.
    validation_tasks: the number of validation tasks at each checkpoint; 0 validates nothing.

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
    def _expand_logarithmic_schedule(cls, value: Any) -> Any:
        # The exact type, because True is an int as well.
        return logarithmic_schedule(value) if type(value) is int and value > 0 else value

    @model_validator(mode="after")
    def _rising_from_zero(self) -> "TrainSettings":
        steps = self.checkpoints
        if len(steps) < 2 or steps[0] != 0 or list(steps) != sorted(set(steps)):
            raise ValueError("checkpoints must rise from 0 and be at least two, such as [0, 30, 100, 300]")
        return self


class StudyConfig(Strict):
    """The whole study, as ``study.yaml`` holds it.

    name: the name of the study, after which its folder is called.
    data: the data from which tasks are drawn.
    network: the network that learns the tasks.
    inner: the inner loop that the learners share.
    learners: what is trained and measured, each learner under a name of its own.
    seeds: the seeds of the repetitions, over which every statistic is taken; more can be added to a study later.
    train: the outer loop.
    measure: what is measured along the inner loops, and how much of it.
    claims: the user's own claims, each by its name with the import path or file of its function, such as
        my_claims.py:judge; see docs/claims.md.
    """

    later_settings = ("claims",)

    name: Annotated[str, Field(pattern=NAME)]
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    inner: InnerConfig = InnerConfig()
    learners: dict[Annotated[str, Field(pattern=NAME)], LearnerConfig] = Field(min_length=1)
    seeds: tuple[Natural, ...] = Field(default=(0, 1), min_length=1)
    train: TrainSettings = TrainSettings()
    measure: MeasureConfig = MeasureConfig()
    claims: dict[Annotated[str, Field(pattern=NAME)], Annotated[str, Field(pattern=f"^{IMPORT_PATH}$")]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "StudyConfig":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} hold one twice; give each seed once")
        if not any(self.seeds_of(name) for name in self.learners):
            raise ValueError(f"no learner has any of the seeds {list(self.seeds)}; add one to a learner's seeds")
        for name in self.learners:
            self._check_start(name)
        if isinstance(self.inner.step_size, StepSizeSearch):
            self._check_search(self.inner.step_size)
        return self

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """The seeds of a learner, which are all seeds of the study unless the learner's settings name some of them."""
        own = self.learners[name].seeds
        return self.seeds if own is None else tuple(seed for seed in self.seeds if seed in own)

    def starts(self, name: str) -> list[str]:
        """The chain of learners from which a learner begins: its start, the start of its start, and so on.

        Raises ValueError where the chain is a circle, or where one of its names is not a trained learner of the study.
        """
        chain, start = [name], self.learners[name].start
        while start is not None:
            if start not in self.learners or not self.learners[start].trained:
                raise ValueError(f"learners.{chain[-1]}.start={start!r} must name a trained learner of this study")
            if start in chain:
                raise ValueError(
                    f"learners.{name}.start: {' begins from '.join([*chain, start])}, in a circle; drop a start"
                )
            chain, start = [*chain, start], self.learners[start].start
        return chain[1:]

    def _check_start(self, name: str) -> None:
        if self.starts(name) and not self.train.validation_tasks:
            raise ValueError(
                f"learners.{name}.start takes the best checkpoint by validation; give train.validation_tasks"
            )
        for start in self.starts(name):
            lacking = [seed for seed in self.seeds_of(name) if seed not in self.seeds_of(start)]
            if lacking:
                raise ValueError(
                    f"learners.{name} begins from {start}, which has no seed {lacking[0]}; add it to the seeds of"
                    f" {start}, or leave it out of those of {name}"
                )

    def _check_search(self, search: StepSizeSearch) -> None:
        learner = self.learners.get(search.learner)
        if learner is None or learner.penalty or learner.shuffle_labels or not learner.trained:
            raise ValueError(
                f"inner.step_size.learner={search.learner!r} must name a trained learner of this study without"
                " penalty and shuffle_labels"
            )
        if learner.start or learner.step_size or learner.algorithm == "leo":
            raise ValueError(
                f"inner.step_size.learner={search.learner!r} must use the study's step size and begin from the"
                " untrained network; choose a learner that has neither step_size nor start and is not leo"
            )
        if search.seed in self.seeds:
            raise ValueError(f"inner.step_size.seed={search.seed} is one of the study's seeds; choose another")

    @property
    def digest(self) -> str:
        """The SHA-256 of the whole configuration."""
        return json_digest(self.model_dump(mode="json"))
