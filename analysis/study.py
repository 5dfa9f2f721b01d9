"""A study resolved once: its learners, tasks, network, step size and runs, made here and handed down everywhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from math import nan, prod
from pathlib import Path
from typing import Any

from torch import nn

from analysis.config import DataConfig, LearnerConfig, NetworkConfig, StepSizeSearch, StudyConfig
from analysis.errors import UserError
from hessian_tools.data import CrossDomainTasks, TaskSource, open_tasks
from hessian_tools.inner.descent import row_parts
from hessian_tools.inner.learners import ALGORITHMS, Learner
from hessian_tools.inner.meta_loss import joined
from hessian_tools.inner.parameters import num_moved
from hessian_tools.layout import ParamLayout, flatten
from hessian_tools.nets import MLP, load_network, refuse_unfit, seeded, source_digest
from hessian_tools.train import TrainConfig, meta_train


@dataclass(frozen=True)
class Problem:
    """The tasks of a study and the network that learns them, both opened at first use.

    Reading what a study has measured must not need the data, so nothing is opened before it is asked for.
    """

    data: DataConfig
    network_config: NetworkConfig

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process opens the problem once, however many units of work bring it along: half a second each.
        return opened, (self.data, self.network_config)

    @cached_property
    def tasks(self) -> TaskSource:
        """The tasks with the query sets of training."""
        return self._open(self.data.queries)

    @cached_property
    def held_out(self) -> TaskSource:
        """The tasks with the query sets of held-out measurement."""
        return self._open(self.data.test_queries)

    @cached_property
    def network(self) -> Callable[[], nn.Module]:
        """A function that builds the network."""
        config, tasks = self.network_config, self.tasks
        if config.name == "mlp":
            return partial(MLP, (prod(tasks.input_shape), *config.hidden, tasks.outputs))
        if ":" not in config.name and len(tasks.input_shape) != 3:
            raise UserError(f"network: {config.name} needs images, {self.data.source} has none; use name: mlp")
        options = config.settings | config.options
        try:
            return load_network(
                config.import_path, outputs=tasks.outputs, input_shape=tasks.input_shape, options=options
            )
        except ValueError as e:
            raise UserError(f"network: {e}") from None

    @cached_property
    def layout(self) -> ParamLayout:
        """The layout of the network's parameters."""
        return flatten(seeded(self.network, seed=0), head=self.network_config.head)[1]

    @property
    def source_digest(self) -> str | None:
        """The digest of the file that holds a network of the user's; None for a network of the library."""
        return source_digest(self.network_config.name) if ":" in self.network_config.name else None

    def _open(self, queries: int) -> TaskSource:
        data = self.data
        if data.source == "sine-line":
            return open_tasks("sine-line")
        open_images = partial(
            open_tasks,
            ways=data.ways,
            shots=data.shots,
            queries=queries,
            image_size=data.image_size,
            channels=data.channels,
        )
        try:
            if data.test_split and not data.test_path:
                raise ValueError("test_split needs test_path, whose split it is")
            source = open_images(data.source, split=data.split, rotations=data.rotations, crop=data.crop)
            if not data.test_path:
                return source
            return CrossDomainTasks(source, open_images(data.test_path, split=data.test_split))
        except ValueError as e:
            raise UserError(f"data: {e}") from None


@lru_cache(maxsize=8)
def opened(data: DataConfig, network_config: NetworkConfig) -> Problem:
    """The problem of a study, one object for the life of the process."""
    return Problem(data, network_config)


@dataclass(frozen=True)
class StudyLearner:
    """One learner of a study as the library's object, with the outer loop that trains it.

    checkpoints: the meta-iterations at which the learner is kept; the untrained control has only the first.
    """

    name: str
    settings: LearnerConfig
    learner: Learner
    optimiser: str
    learning_rate: float
    checkpoints: tuple[int, ...]

    @property
    def alpha(self) -> float:
        """The alpha of alpha rho: the step size of steps that are alpha times the gradient, NaN for other steps.

        Step sizes learned per parameter, other step rules and steps on codes have no such number, so whatever is
        scaled by alpha does not exist for them.
        """
        return nan if self.learner.why_no_alpha else self.learner.step_size

    @property
    def inner_loop(self) -> tuple[Learner, float | None]:
        """The inner loop alone: learners for which it is equal adapt one network by the same steps.

        The step size is the learner's own, or None for the study's, whatever value is chosen for that.
        """
        loop = replace(self.learner, name="", step_size=1.0, first_order=False, outer="query", minibatches=1)
        return loop, self.settings.step_size


@dataclass(frozen=True)
class Study:
    """A study with everything that its configuration names; made by :func:`build`.

    path: the folder of the study. device: where the tensors live. step_size: the inner step size of all learners that
    name none of their own; None until the search has chosen it, and every such learner then stands at step size 1.
    """

    config: StudyConfig
    path: Path
    device: str
    step_size: float | None
    learners: Mapping[str, StudyLearner]
    problem: Problem

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Every run of the study as (learner, seed)."""
        return [(name, seed) for name in self.learners for seed in self.config.seeds]

    def run(self, learner: str, seed: int) -> Path:
        """The folder of one run."""
        return self.path / "runs" / f"{learner}-seed{seed}"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    @property
    def chosen_step_size(self) -> float:
        """The inner step size; raises UserError where the search has not chosen it yet."""
        if self.step_size is None:
            raise UserError(f"the inner step size of {self.path} is not chosen yet; run 'hessian-tools train' first")
        return self.step_size

    def with_step_size(self, step_size: float) -> "Study":
        """The same study with the step size that its search has chosen, or with a candidate for it."""
        return replace(self, step_size=step_size, learners=_learners(self.config, step_size))

    def training(self, name: str, seed: int, *, folder: Path | None = None, start: Path | None = None) -> TrainConfig:
        """The training run of one learner with one seed.

        start: the checkpoint file from which the run begins; by default it is the seed's network.
        """
        one, outer = self.learners[name], self.config.train
        try:
            return TrainConfig(
                learner=one.learner,
                tasks=self.problem.tasks,
                network=self.problem.network,
                seed=seed,
                shot=one.settings.shot,
                checkpoints=one.checkpoints,
                meta_batch=outer.meta_batch,
                optimiser=one.optimiser,
                learning_rate=one.learning_rate,
                validation_tasks=outer.validation_tasks,
                device=self.device,
                folder=folder,
                save_every=outer.save_every,
                start=start,
                pretraining=one.settings.pretraining,
                transductive=self.config.measure.transductive,
                head=self.config.network.head,
            )
        except ValueError as e:
            raise UserError(f"learners.{name}: {e}") from None

    @property
    def training_order(self) -> list[list[str]]:
        """The learners in groups: those of a group begin only from learners of the groups before it."""
        depths = {name: len(self.config.starts(name)) for name in self.learners}
        return [[name for name in depths if depths[name] == depth] for depth in range(max(depths.values()) + 1)]

    @property
    def alike_before_training(self) -> list[tuple[str, ...]]:
        """The learners in groups that are one network with one inner loop at checkpoint 0."""
        groups: dict[object, list[str]] = {}
        for name, one in self.learners.items():
            groups.setdefault((one.inner_loop, one.settings.start), []).append(name)
        return [tuple(names) for names in groups.values()]

    @property
    def untrained_start(self) -> dict[str, str]:
        """For each learner the one whose checkpoint 0 is the untrained network under the same inner loop.

        That is the learner itself, unless it begins from another one. A learner is absent where the study has none.
        """

        def steps(one: StudyLearner) -> tuple[Learner, float | None]:
            loop, step_size = one.inner_loop
            return replace(loop, evaluation_steps=None), step_size  # how long accuracy is judged plays no part

        untrained = {steps(one): name for name, one in reversed([*self.learners.items()]) if not one.settings.start}
        starts = {
            name: untrained.get(steps(one)) if one.settings.start else name for name, one in self.learners.items()
        }
        return {name: start for name, start in starts.items() if start is not None}

    @property
    def without_shot(self) -> dict[str, str]:
        """For each learner with SHOT the one whose settings are the same but for SHOT, where the study has it.

        A learner is with SHOT if it has the penalty, or if it begins from a learner that was pre-trained by SHOT
        alone (SHOT_p). The learner that is being pre-trained has no twin.
        """
        configs = self.config.learners
        plain, with_shot = {}, {}
        for name, settings in configs.items():
            pretrained = settings.start is not None and configs[settings.start].pretraining is not None
            if settings.shot is None and not pretrained:
                plain[settings] = name
            elif settings.pretraining is None:
                with_shot[name] = settings.model_copy(update={"shot": None} | ({"start": None} if pretrained else {}))
        return {name: plain[settings] for name, settings in with_shot.items() if settings in plain}


def build(config: StudyConfig, path: str | Path = ".", *, device: str = "cpu", step_size: float | None = None) -> Study:
    """The study of a configuration. step_size: the one that a search has chosen; unused where one is given."""
    given = config.inner.step_size
    alpha = step_size if isinstance(given, StepSizeSearch) else given
    problem = opened(config.data, config.network)
    return Study(config, Path(path), device, alpha, _learners(config, alpha), problem)


def _learners(config: StudyConfig, step_size: float | None) -> dict[str, StudyLearner]:
    outer, learners = config.train, {}
    for name, settings in config.learners.items():
        try:
            learner = settings.built(inner_steps=config.inner.steps, step_size=step_size or 1.0)
        except ValueError as e:
            raise UserError(f"learners.{name}: {e}") from None
        optimiser = settings.optimiser or ALGORITHMS[settings.algorithm].optimiser or outer.optimiser
        checkpoints = outer.checkpoints if settings.trained else (0,)
        rate = settings.learning_rate or outer.learning_rate
        learners[name] = StudyLearner(name, settings, learner, optimiser, rate, checkpoints)
    return learners


def check(study: Study) -> None:
    """Refuse what the data, the network or the learners cannot do, before anything is written."""
    config, problem = study.config, study.problem
    validates = config.train.validation_tasks or isinstance(config.inner.step_size, StepSizeSearch)
    for source in (problem.tasks, problem.held_out):
        for split in ("train", "val", "test") if validates else ("train", "test"):
            try:
                source.episode(seed=0, split=split, index=0)
            except ValueError as e:
                raise UserError(f"data: {e}") from None
    try:
        model = seeded(problem.network, seed=config.seeds[0])
        num_params = problem.layout.numel
        refuse_unfit(model, outputs=problem.tasks.outputs, input_shape=problem.tasks.input_shape)
    except ValueError as e:
        raise UserError(f"network: {e}") from None
    eigenvalues = config.measure.full.eigenvalues
    if eigenvalues > num_params:
        raise UserError(
            f"measure.full.eigenvalues={eigenvalues} of a network with {num_params} parameters; ask for fewer"
        )
    for name in study.learners:
        _check_learner(study, name)


def _check_learner(study: Study, name: str) -> None:
    training = replace(study.training(name, study.config.seeds[0]), device="cpu")
    learner, tasks = training.learner, training.tasks
    if learner.needs_classes and tasks.kind != "classification":
        algorithm = study.learners[name].settings.algorithm
        raise UserError(f"learners.{name}: {algorithm} needs classes, {study.config.data.source} has none")
    try:
        num_moved(learner, study.problem.layout)
        row_parts(joined(*tasks.episode(seed=0, split="train", index=0)), learner.minibatches)
        if learner.needs_classes:  # what such a learner learns besides the network depends on the network's head
            next(meta_train(replace(training, checkpoints=(0,), validation_tasks=0)))
    except ValueError as e:
        raise UserError(f"learners.{name}: {e}") from None
