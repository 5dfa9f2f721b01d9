"""The objects that a configuration describes: the learners, tasks, network, inner step size and runs of a study.

:func:`build` makes one :class:`Study` of a configuration, and all other modules receive that object. A run is the
training of one learner with one seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any

import torch

from analysis.claims import Judge
from analysis.config import LearnerConfig, StepSizeSearch, StudyConfig
from analysis.errors import UserError
from analysis.problem import Problem, open_problem
from analysis.quantities import Quantity, chosen_quantities
from analysis.trust import trusted_object
from hessian_tools.importing import source_digest
from hessian_tools.inner.descent import row_parts
from hessian_tools.inner.learners import ALGORITHMS, Learner
from hessian_tools.inner.meta_loss import joined
from hessian_tools.inner.parameters import num_moved
from hessian_tools.nets import refuse_unfit, seeded
from hessian_tools.train import TrainConfig, meta_train


@dataclass(frozen=True)
class StudyLearner:
    """One learner of a study: its settings, the library's ``Learner`` made of them, and how the outer loop trains it.

    optimiser, learning_rate: those of the outer loop.
    checkpoints: the meta-iterations at which a checkpoint is kept; the untrained control has only meta-iteration 0.
    """

    name: str
    settings: LearnerConfig
    learner: Learner
    optimiser: str
    learning_rate: float
    checkpoints: tuple[int, ...]

    @property
    def alpha(self) -> float:
        """The inner step size alpha, where each inner step is alpha times the gradient; NaN for all other learners.

        There is no such number where step sizes are learned per parameter, where steps follow another rule (such as
        momentum), or where they move LEO's latent codes. Quantities that are scaled by alpha, such as alpha rho (alpha
        times the curvature rho along the inner gradient), are NaN for these learners.
        """
        return nan if self.learner.why_no_alpha else self.learner.step_size

    @property
    def inner_loop(self) -> tuple[Learner, float | None]:
        """The inner loop without its training, as (learner, step size); equal values mean equal adaptation.

        Learners with equal values take the same steps on a new task from the same network. The step size is the one
        given in the learner's own settings. It is None for a learner that takes the study's step size, because the
        search may not have chosen that yet.
        """
        # These fields matter only for names and for training, and the step size is compared separately.
        loop = replace(self.learner, name="", step_size=1.0, first_order=False, outer="query", minibatches=1)
        return loop, self.settings.step_size


@dataclass(frozen=True, repr=False)
class Study:
    """A study with everything that its configuration names; made by :func:`build`.

    path: the folder of the study.
    device: where the tensors live.
    device_share: the share of a GPU's memory that this process may take; it is below 1 where workers share the GPU.
    step_size: the inner step size of every learner whose settings give none. It is None until the search has chosen
        it; until then these learners hold the placeholder 1, with which nothing is trained or measured.
    kept: for each seed, the learners whose results lie in the folder as kept results, the small files that the command
        ``keep`` writes (``analysis.kept``). Their runs need not be made.
    goes_on_from: the folder of kept results that is copied into the study's folder when the study is begun.
    networks_from: the folder of a study whose trained networks are copied, so that they can be measured in another way.

    A run is one learner with one seed. ``runs`` lists all of them, with those whose results are kept.
    ``runs_to_measure`` leaves the kept ones out. ``runs_to_train`` lists those to measure and, besides, the runs that
    must be trained because one to measure begins from their checkpoints; the results of the latter may be kept.
    """

    config: StudyConfig
    path: Path
    device: str
    step_size: float | None
    learners: Mapping[str, StudyLearner]
    problem: Problem
    kept: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    goes_on_from: Path | None = None
    networks_from: Path | None = None
    device_share: float = 1.0

    def __repr__(self) -> str:
        seeds = sorted({seed for _, seed in self.runs})
        step_size = "not chosen yet" if self.step_size is None else f"{self.step_size:g}"
        learners = ", ".join(self.learners)
        return (
            f"Study({self.config.name!r} in {str(self.path)!r}: learners {learners}; "
            f"seeds {', '.join(map(str, seeds))}, inner step size {step_size})"
        )

    def limit_memory(self) -> None:
        """Keep this process to its share of the GPU's memory, so that the workers on a GPU leave room for each other.

        If the process asks for more than its share, only this process runs out of memory, and then computes fewer tasks
        or points at once.
        """
        if self.device_share < 1:
            index = torch.device(self.device).index
            torch.cuda.set_per_process_memory_fraction(
                self.device_share, torch.cuda.current_device() if index is None else index
            )

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Every run of the study as (learner, seed)."""
        return [(name, seed) for name in self.learners for seed in self.config.seeds_of(name)]

    @property
    def runs_to_measure(self) -> list[tuple[str, int]]:
        """The runs whose results are not kept."""
        return [(name, seed) for name, seed in self.runs if name not in self.kept.get(seed, ())]

    @property
    def runs_to_train(self) -> list[tuple[str, int]]:
        """The runs whose results are not kept, and all runs from whose checkpoints these runs begin."""
        needed = {(start, seed) for name, seed in self.runs_to_measure for start in (name, *self.config.starts(name))}
        return [run for run in self.runs if run in needed]

    def run(self, learner: str, seed: int) -> Path:
        """The folder of one run."""
        return self.path / "runs" / f"{learner}-seed{seed}"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    @property
    def chosen_step_size(self) -> float:
        """The study's inner step size; raises UserError where the search has not chosen it yet."""
        if self.step_size is None:
            raise UserError(f"the inner step size of {self.path} is not chosen yet; run 'hessian-tools train' first")
        return self.step_size

    def with_step_size(self, step_size: float) -> "Study":
        """The same study with a given inner step size: the one that the search has chosen, or one of its candidates."""
        return replace(self, step_size=step_size, learners=_learners(self.config, step_size))

    def training(self, name: str, seed: int, *, folder: Path | None = None, start: Path | None = None) -> TrainConfig:
        """The settings of the training run of one learner with one seed.

        folder: the folder into which the run is written; by default nothing is written.
        start: the checkpoint file from which the run begins; by default it begins from the untrained network of the
            seed.
        """
        study_learner, train_settings = self.learners[name], self.config.train
        try:
            return TrainConfig(
                learner=study_learner.learner,
                tasks=self.problem.tasks,
                network=self.problem.network,
                seed=seed,
                shot=study_learner.settings.shot,
                checkpoints=study_learner.checkpoints,
                meta_batch=train_settings.meta_batch,
                optimiser=study_learner.optimiser,
                learning_rate=study_learner.learning_rate,
                validation_tasks=train_settings.validation_tasks,
                device=self.device,
                folder=folder,
                save_every=train_settings.save_every,
                start=start,
                pretraining=study_learner.settings.pretraining,
                penalty=study_learner.settings.penalty,
                shuffle_labels=study_learner.settings.shuffle_labels,
                transductive=self.config.measure.transductive,
                head=self.config.network.head,
            )
        except ValueError as e:
            raise UserError(f"learners.{name}: {e}") from None

    # Not cached, because a study is sent to worker processes, which cannot unpickle the functions of a user's file.
    @property
    def quantities(self) -> list[Quantity]:
        """The quantities that the study measures; the user's own are imported.

        Raises UserError for a quantity that does not exist, and for one of the user's own if the study is not trusted.
        """
        settings = self.config.measure
        try:
            return chosen_quantities(settings.quantities, settings.losses, self._load)
        except (ValueError, UserError) as e:
            raise UserError(f"measure.quantities: {e}") from None

    @property
    def own_claims(self) -> dict[str, Judge]:
        """The functions of the user's own claims, which are imported, by the names of the claims.

        Raises UserError for one that does not exist or is no function, and for any if the study is not trusted.
        """
        judges: dict[str, Judge] = {}
        for name, target in self.config.claims.items():
            try:
                judge = self._load(target)
            except (ValueError, UserError) as e:
                raise UserError(f"claims.{name}: {e}") from None
            if not callable(judge) or isinstance(judge, type):
                kind = judge.__name__ if isinstance(judge, type) else type(judge).__name__
                raise UserError(f"claims.{name}: {target} is a {kind}, not a function of the Dataset and the plan")
            judges[name] = judge
        return judges

    def source_digest(self, target: str) -> str:
        """The digest of the source file of an object of the user's own, which is imported.

        See ``hessian_tools.importing.source_digest``.
        """
        self._load(target)  # called for its error where there is no trust
        return source_digest(target)

    def _load(self, target: str) -> object:
        """The object with an import path, imported if the study is trusted; raises UserError if it is not."""
        return trusted_object(target, trust=self.problem.trust)

    @property
    def training_order(self) -> list[list[str]]:
        """The learners in groups, to be trained one group after the other.

        A learner that begins from the checkpoint of another learner is in a later group than that one.
        """
        # The depth of a learner is the number of learners that are trained, one from the other, before it begins.
        depths = {name: len(self.config.starts(name)) for name in self.learners}
        return [[name for name in depths if depths[name] == depth] for depth in range(max(depths.values()) + 1)]

    @property
    def alike_before_training(self) -> list[tuple[str, ...]]:
        """The learners in groups; those of a group have the same network and the same inner loop at checkpoint 0.

        One measurement at checkpoint 0 therefore serves the whole group.
        """
        groups: dict[object, list[str]] = {}
        for name, learner in self.learners.items():
            groups.setdefault((learner.inner_loop, learner.settings.start), []).append(name)
        return [tuple(names) for names in groups.values()]

    @property
    def untrained_start(self) -> dict[str, str]:
        """For each learner, the name of a learner with the same inner loop whose checkpoint 0 is the untrained network.

        It is the learner's own name, unless the learner begins from another learner's checkpoint. A learner for which
        the study has no such learner is absent from the result.
        """

        def measured_loop(learner: StudyLearner) -> tuple[Learner, float | None]:
            # evaluation_steps only say after how many steps accuracy is measured; curvature does not depend on them.
            loop, step_size = learner.inner_loop
            return replace(loop, evaluation_steps=None), step_size

        # A dict keeps the last value of a key, so the order is reversed: of several learners with the same inner loop,
        # the first one stays.
        untrained = {
            measured_loop(learner): name
            for name, learner in reversed([*self.learners.items()])
            if not learner.settings.start
        }
        starts = {
            name: untrained.get(measured_loop(learner)) if learner.settings.start else name
            for name, learner in self.learners.items()
        }
        return {name: start for name, start in starts.items() if start is not None}

    @property
    def without_shot(self) -> dict[str, str]:
        """For each learner with SHOT, the learner of the study that has the same settings except for SHOT.

        SHOT (Lee, Yoo, Kwak 2023) is the penalty on the distance between the ends of few large and of many small inner
        steps. SHOT_p is pre-training by this distance alone. A learner counts as one with SHOT if it is trained with
        the penalty, or if it begins from a learner that was pre-trained by SHOT_p. The pre-trained learner itself is
        compared with no other and is absent, as is any learner whose counterpart the study lacks.
        """
        configs = self.config.learners
        plain: dict[LearnerConfig, str] = {}  # the learners without SHOT, by their settings
        with_shot: dict[str, LearnerConfig] = {}  # for each learner with SHOT, its settings without SHOT
        for name, settings in configs.items():
            pretrained = settings.start is not None and configs[settings.start].pretraining is not None
            if settings.shot is None and not pretrained:
                plain[settings] = name
            elif settings.pretraining is None:
                with_shot[name] = settings.model_copy(update={"shot": None} | ({"start": None} if pretrained else {}))
        return {name: plain[settings] for name, settings in with_shot.items() if settings in plain}

    @property
    def relations(self) -> dict[str, dict[str, Any]]:
        """How the learners are related, as arguments of ``analysis.schema.describe_learners``, which explains each.

        Two learners are of one family if their settings differ only in SHOT, in the penalty on the curvature and in
        ``first_order``; the family is named after its first learner.
        """
        configs = self.config.learners
        plain: dict[LearnerConfig, str] = {}  # the learners without SHOT and penalty, by their settings
        families: dict[LearnerConfig, str] = {}  # the first learner of each family, by the settings that it shares
        for name, settings in configs.items():
            if self._bare(settings) == settings:
                plain.setdefault(settings, name)
            families.setdefault(self._bare(settings, first_order=False), name)
        bare = {name: self._bare(settings) for name, settings in configs.items()}
        # Training by SHOT's distance alone (pretraining) has no query loss beside which SHOT could have a weight.
        weights = {name: each.shot.weight for name, each in configs.items() if each.shot and each.pretraining is None}
        return {
            "dose": {name: weights.get(name, 0.0) for name in configs},
            "penalty": {name: each.penalty.weight if each.penalty else 0.0 for name, each in configs.items()},
            "without_intervention": {
                name: plain[other] for name, other in bare.items() if other in plain and other != configs[name]
            },
            "control": {name: _control(settings) for name, settings in configs.items()},
            "family": {name: families[self._bare(settings, first_order=False)] for name, settings in configs.items()},
            "algorithm": {name: settings.algorithm for name, settings in configs.items()},
            "first_order": {name: learner.learner.first_order for name, learner in self.learners.items()},
        }

    def _bare(self, settings: LearnerConfig, **changes: Any) -> LearnerConfig:
        """The settings without SHOT, without a start from pre-training by SHOT alone, and without the penalty.

        changes: further settings to replace.
        """
        removed: dict[str, Any] = {"shot": None, "pretraining": None, "penalty": None}
        if settings.start is not None and self.config.learners[settings.start].pretraining is not None:
            removed["start"] = None
        return settings.model_copy(update=removed | changes)


def _control(settings: LearnerConfig) -> str:
    """The kind of control that a learner is: "untrained", "supervised", "shuffled" or, for the others, ""."""
    if not settings.trained or settings.algorithm == "supervised":
        return settings.algorithm
    return "shuffled" if settings.shuffle_labels else ""


def build(
    config: StudyConfig,
    path: str | Path = ".",
    *,
    device: str = "cpu",
    step_size: float | None = None,
    trust: bool = False,
    kept: Mapping[int, tuple[str, ...]] | None = None,
) -> Study:
    """The study that a configuration describes.

    step_size: the inner step size that the search has chosen; it is ignored where the configuration gives a number.
    trust: whether modules that the configuration names may be imported, once something of them is used.
    kept: the learners of each seed whose results are kept.
    """
    configured = config.inner.step_size
    alpha = step_size if isinstance(configured, StepSizeSearch) else configured
    problem = open_problem(config.data, config.network, trust)
    return Study(config, Path(path), device, alpha, _learners(config, alpha), problem, kept or {})


def _learners(config: StudyConfig, step_size: float | None) -> dict[str, StudyLearner]:
    """The learners of a study with its inner step size, which is None until the search has chosen it."""
    train_settings, learners = config.train, {}
    for name, settings in config.learners.items():
        try:
            # 1 is a placeholder for a step size that is still to be chosen; see Study.
            learner = settings.built(inner_steps=config.inner.steps, step_size=step_size or 1.0)
        except ValueError as e:
            raise UserError(f"learners.{name}: {e}") from None
        optimiser = settings.optimiser or ALGORITHMS[settings.algorithm].optimiser or train_settings.optimiser
        checkpoints = train_settings.checkpoints if settings.trained else (0,)
        learning_rate = settings.learning_rate or train_settings.learning_rate
        learners[name] = StudyLearner(name, settings, learner, optimiser, learning_rate, checkpoints)
    return learners


def check(study: Study) -> None:
    """Raise UserError where data, network and learners do not fit together, before anything is written.

    Functions of the library are called here only for the errors that they raise; their results are dropped.
    """
    config, problem = study.config, study.problem
    validates = config.train.validation_tasks or isinstance(config.inner.step_size, StepSizeSearch)
    for source in (problem.tasks, problem.held_out):
        for split in ("train", "val", "test") if validates else ("train", "test"):
            try:
                source.episode(seed=0, split=split, index=0)  # fails for a split that is missing or too small
            except ValueError as e:
                raise UserError(f"data: {e}") from None
    try:
        model = seeded(problem.network, seed=config.seeds[0])
        refuse_unfit(model, outputs=problem.tasks.outputs, input_shape=problem.tasks.input_shape)
        num_params = problem.layout.numel
    except ValueError as e:
        raise UserError(f"network: {e}") from None
    eigenvalues = config.measure.full.eigenvalues
    if eigenvalues > num_params:
        raise UserError(
            f"measure.full.eigenvalues={eigenvalues} is more than the {num_params} parameters of the network;"
            f" ask for at most {num_params}"
        )
    _ = study.quantities, study.own_claims  # read for their errors
    for name in study.learners:
        _check_learner(study, name)


def _check_learner(study: Study, name: str) -> None:
    """Raise UserError where a learner does not fit the data and the network."""
    # On the CPU, because these errors do not depend on the device and this process may have no GPU.
    training = replace(study.training(name, study.config.seeds[0]), device="cpu")
    learner, tasks = training.learner, training.tasks
    if learner.needs_classes and tasks.kind != "classification":
        algorithm = study.learners[name].settings.algorithm
        raise UserError(f"learners.{name}: {algorithm} needs classes, but {study.config.data.source} has none")
    try:
        num_moved(learner, study.problem.layout)  # fails where the setting moves names no parameter
        # This fails where there are more minibatches than examples.
        row_parts(joined(*tasks.episode(seed=0, split="train", index=0)), learner.minibatches)
        if learner.needs_classes:
            # Such a learner trains parameters besides the network's (LEO an encoder and a decoder, the supervised
            # control a head for all classes), which do not fit every head. Making checkpoint 0 builds them.
            next(meta_train(replace(training, checkpoints=(0,), validation_tasks=0)))
    except ValueError as e:
        raise UserError(f"learners.{name}: {e}") from None
