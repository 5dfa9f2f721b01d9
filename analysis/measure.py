"""Measures a study: records inner loops on held-out tasks, and measures the curvature along them.

The work is split into units. A run is the training of one learner with one seed. A unit is one checkpoint of a run and
some held-out tasks, with all inner steps. ``measure_unit`` records the inner loops of the unit's tasks, measures the
curvature at their parameter vectors, and writes the results into the store of the run. On the first tasks, at the first
and the last checkpoint, the measurement is full; everywhere else it is light, with fewer eigenvalues and probes. These
are its two levels.

On a CPU a unit has one block of tasks, as many as ``measure.block`` says. A GPU has enough work only if it computes at
many parameter vectors together. On a GPU, a unit therefore has all tasks of one level. As many of its blocks as fit in
memory are measured together, and each block is stored as on a CPU.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from analysis import store
from analysis.config import LevelConfig
from analysis.engines.engine import Engine
from analysis.errors import UserError
from analysis.problem import Problem
from analysis.progress import Reporter
from analysis.quantities import Points, Quantity
from analysis.quantities.values import is_bundled, values_of
from analysis.schema import DIVERGED, LEVEL_MEANINGS, MEASURED, ZERO_GRADIENT, Sizes
from analysis.study import Study, StudyLearner
from analysis.times import stopwatch
from analysis.training import record_run_ownership, refuse_changed_data
from analysis.verify import refuse_damaged_training
from hessian_tools.batches import cast_like
from hessian_tools.curvature import rademacher
from hessian_tools.curvature.engines.engine import VECTORS_OF_A_POINT
from hessian_tools.curvature.engines.memory import card_memory
from hessian_tools.inner.learners import untrained
from hessian_tools.inner.parameters import num_moved, without_projector
from hessian_tools.loss import Loss
from hessian_tools.nets import normalised_weights
from hessian_tools.runs.checkpoints import checkpoint_path, load_theta
from hessian_tools.runs.worker_pool import Emit
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.train import TrainConfig, diverged_at, evaluate, meta_train, task_loss
from hessian_tools.train.task_chunks import TaskChunks
from hessian_tools.trajectory import SaveAt, stack
from hessian_tools.trajectory.record import record

LIGHT, FULL = LEVEL_MEANINGS.index("light"), LEVEL_MEANINGS.index("full")
VECTORS = SaveAt(thetas=True, gradients=True)  # a recorded inner loop keeps these vectors

# The tasks that are measured together on a GPU may take this share of its memory. Each of their points (the parameter
# vectors of their inner loops) is assumed to take VECTORS_OF_A_POINT vectors as long as the parameters. The rest of the
# memory is for the Hessian-vector products and for what else the points hold.
POINTS_SHARE = 1 / 4


@dataclass(frozen=True)
class Unit:
    """One unit: a checkpoint of a run and some held-out tasks, one block or several.

    learners: the learners into whose runs the results are written. Before training, the learners of one seed that adapt
        by the same inner loop have the same network, so checkpoint 0 is measured once for all of them. A later
        checkpoint belongs to a single learner.
    checkpoint: the meta-iteration of the checkpoint.
    tasks: the indices of the held-out tasks on which curvature is measured, or None for the unit that measures loss
        and accuracy on the evaluation tasks.
    """

    study: Study
    learners: tuple[str, ...]
    seed: int
    checkpoint: int
    tasks: tuple[int, ...] | None

    @property
    def learner(self) -> StudyLearner:
        """The learner whose checkpoint is read."""
        return self.study.learners[self.learners[0]]

    @property
    def run(self) -> Path:
        """The folder of the run whose checkpoint is read."""
        return self.study.run(self.learner.name, self.seed)

    @property
    def stores(self) -> list[Path]:
        """The stores to which the measurements are written."""
        return [self.study.run(learner, self.seed) / store.NAME for learner in self.learners]

    @property
    def blocks(self) -> list[tuple[int, ...] | None]:
        """The tasks that are stored together; a single None for the unit that measures loss and accuracy."""
        size = self.study.config.measure.block
        return [None] if self.tasks is None else [self.tasks[i : i + size] for i in range(0, len(self.tasks), size)]

    @property
    def level(self) -> int:
        """FULL for the first full_tasks tasks at the first and the last checkpoint of the study, LIGHT otherwise."""
        config = self.study.config
        ends = (config.train.checkpoints[0], config.train.checkpoints[-1])
        has_first_tasks = self.tasks is not None and max(self.tasks) < config.measure.full_tasks
        return FULL if has_first_tasks and self.checkpoint in ends else LIGHT

    @property
    def diverged(self) -> bool:
        """True if training diverged before the checkpoint was reached."""
        return not checkpoint_path(self.run, self.checkpoint).exists() and diverged_at(self.run) is not None

    @property
    def task_seed(self) -> int:
        """The seed of the held-out tasks.

        Runs with other seeds have other held-out tasks, so that the means of the seeds are independent. All learners of
        one seed have the same held-out tasks, so that learners can be compared task by task.
        """
        # A prime factor that is larger than any seed in use keeps the pairs (measure.seed, seed) apart.
        return 1_000_003 * self.study.config.measure.seed + self.seed

    @property
    def name(self) -> str:
        """A short description for progress messages."""
        if not self.checkpoint:
            return f"before training, seed {self.seed}"
        return f"{self.learner.name} seed {self.seed} at {self.checkpoint}"

    def __str__(self) -> str:
        return f"measuring {self.name}"


def measure(study: Study, engine: Engine, reporter: Reporter) -> None:
    """Record the inner loops on held-out tasks and measure the curvature along them."""
    record_run_ownership(study)
    refuse_damaged_training(study)
    for learner, seed in study.runs_to_measure:
        store.refuse_damaged(allocate(study, learner, seed))
    work = units(study)
    for unit in work:
        if not checkpoint_path(unit.run, unit.checkpoint).exists() and not unit.diverged:
            raise UserError(
                f"{unit.run} has no checkpoint at meta-iteration {unit.checkpoint}; run 'hessian-tools train' first"
            )
    with reporter.stage("measure", len(work), "units") as advance:
        engine.run(measure_unit, work, emit=advance)


def units(study: Study) -> list[Unit]:
    """Every unit of a study, with the full measurements first, because they take longest."""
    settings = study.config.measure
    full_tasks, size = settings.full_tasks, tasks_of_a_unit(study)
    # A unit has at most ``size`` tasks, all of which get the same measurement, full or light.
    cuts = sorted({*range(0, full_tasks, size), *range(full_tasks, settings.tasks, size), settings.tasks})
    groups = [*(tuple(range(first, end)) for first, end in pairwise(cuts)), None]  # None: loss and accuracy
    # Each row is (learners, seed, checkpoint), of which a unit is made for every group of tasks.
    rows, runs = [], study.runs_to_measure
    for names in study.alike_before_training:
        for seed in study.config.seeds:
            present = tuple(name for name in names if (name, seed) in runs)
            rows += [(present, seed, 0)] if present else []
    rows += [
        ((learner,), seed, checkpoint)
        for learner, seed in runs
        for checkpoint in study.learners[learner].checkpoints[1:]
    ]
    all_units = [Unit(study, *row, tasks) for row in rows for tasks in groups]
    return sorted(all_units, key=lambda unit: -unit.level)


def tasks_of_a_unit(study: Study) -> int:
    """The most tasks of a unit: a block on a CPU, where more would gain nothing, and all of a level on a GPU."""
    settings = study.config.measure
    return settings.tasks if torch.device(study.device).type == "cuda" else settings.block


def blocks_at_once(unit: Unit) -> int:
    """How many blocks of a unit's tasks are first tried together, at least one.

    TaskChunks halves this number each time that the GPU runs out of memory.
    """
    study, device = unit.study, torch.device(unit.study.device)
    if device.type != "cuda":
        return 1
    points = study.config.measure.block * (study.config.inner.steps + 1)
    vector_bytes = study.problem.layout.numel * torch.get_default_dtype().itemsize
    return max(1, int(POINTS_SHARE * card_memory(device)) // (points * VECTORS_OF_A_POINT * vector_bytes))


@cache
def _chunks(folder: Path, level: int, blocks: int) -> TaskChunks:
    """How many blocks are computed at once in the units of a study's folder and a level.

    All these units share one object in a process. A number that was halved for want of memory then stays halved.
    """
    # ``demanded`` makes it raise all other errors, which it would otherwise take for a refusal of vmap.
    return TaskChunks(largest=blocks, demanded=True)


def allocate(study: Study, learner: str, seed: int) -> Path:
    """Make the empty store of a run, unless it exists; returns its path."""
    config, study_learner, layout = study.config, study.learners[learner], study.problem.layout
    settings, why_no_alpha = config.measure, study_learner.learner.why_no_alpha
    quantities = study.quantities
    sizes = Sizes(
        checkpoints=study_learner.checkpoints,
        tasks=tuple(range(settings.tasks)),
        steps=config.inner.steps,
        layers=layout.names,
        eigenvalues=settings.full.eigenvalues,
        probes=settings.full.probes,
        evaluation_tasks=settings.evaluation_tasks,
    )
    for quantity in quantities:
        sizes = replace(sizes, further={**sizes.further, **quantity.coords(sizes)})
    variables = [variable for quantity in quantities for variable in quantity.variables]
    path = study.run(learner, seed) / store.NAME
    missing = [variable.name for variable in variables if path.exists() and not (path / variable.name).exists()]
    if missing:
        raise UserError(
            f"{path} was made by an earlier version and has no {missing[0]}; choose another --out, or move the folder"
            " measurements.zarr away, and all of the run is measured again"
        )
    data_digest = study.problem.held_out.digest
    attrs = {"study": config.name, "learner": learner, "seed": seed, "data_digest": data_digest, "split": "test"}
    attrs |= {"step_size_missing": why_no_alpha} if why_no_alpha else {}
    return store.create(
        study.run(learner, seed),
        sizes,
        variables=variables,
        block=chunk_tasks(study),
        attrs=attrs,
        scalars={"step_size": study_learner.alpha, "num_params": num_moved(study_learner.learner, layout)},
    )


def chunk_tasks(study: Study) -> int:
    """The number of tasks in a chunk of the store, such that every unit writes whole chunks."""
    settings = study.config.measure
    # All chunks have the same size, and the blocks of the light measurement begin at task full_tasks.
    return settings.block if settings.full_tasks % settings.block == 0 else 1


def try_own_quantities(study: Study) -> None:
    """Measure the user's own quantities on one task of an untrained network, so that mistakes show before the training.

    Raises UserError where a quantity fails or returns something else than it declares.
    """
    own = [quantity for quantity in study.quantities if not is_bundled(quantity)]
    if not own:
        return
    study = replace(study, device="cpu")  # this process may have no card, as on the login node of a cluster
    trained = [name for name, learner in study.learners.items() if learner.settings.trained]
    name = [*trained, *study.learners][0]  # a learner that is trained, if there is one
    seed = study.config.seeds_of(name)[0]
    unit = Unit(study, (name,), seed, study.learners[name].checkpoints[0], (0,))
    untrained_run = next(meta_train(replace(study.training(name, seed), checkpoints=(0,), validation_tasks=0)))
    loss = _loss(study.problem, study.config.seeds[0], study.device)
    points = _points(unit, (0,), loss, without_projector(unit.learner.learner, loss, untrained_run.theta))
    for quantity in own:
        values_of(quantity, points)


def is_measured(unit: Unit) -> bool:
    """True if the results of a unit are already in all of its stores."""
    row, place = _row(unit), _place(unit.tasks)
    return all(path.exists() and store.is_done(path, row, place) for path in unit.stores)


def _row(unit: Unit) -> int:
    """The position of a unit's checkpoint in its stores."""
    return unit.learner.checkpoints.index(unit.checkpoint)


def _place(tasks: tuple[int, ...] | None) -> slice | None:
    """The positions of consecutive tasks in a store."""
    return None if tasks is None else slice(tasks[0], tasks[-1] + 1)


@full_precision
def measure_unit(unit: Unit, emit: Emit) -> None:
    """Measure one unit, unless its results are already in all of its stores."""
    unit.study.limit_memory()
    row = _row(unit)
    # For each block that is still to be measured, the stores that wait for it.
    waiting = {b: [path for path in unit.stores if not store.is_done(path, row, _place(b))] for b in unit.blocks}
    left = [block for block in unit.blocks if waiting[block]]

    def measure_blocks(chosen: range) -> None:
        blocks = left[chosen.start : chosen.stop]
        # The single block of the unit that measures loss and accuracy is None, and has no such tasks.
        tasks = tuple(task for block in blocks for task in block or ())
        values = _measurements(unit, tasks) if tasks else _evaluation(unit)
        start = 0
        for block in blocks:
            stop = start + len(block or ())
            of_block = values if block is None else {name: value[start:stop] for name, value in values.items()}
            for path in waiting[block]:
                store.write_unit(path, row, _place(block), of_block)
            start = stop

    if left:
        # This process has opened the data for itself, perhaps later than the one that began the run.
        refuse_changed_data(unit.study, [(learner, unit.seed) for learner in unit.learners])
        record_time = stopwatch(unit.run, "measure")
        _chunks(unit.study.path, unit.level, blocks_at_once(unit)).run(len(left), measure_blocks)
        record_time()
    emit(1, unit.name)


def _measurements(unit: Unit, tasks: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The values of every variable on some tasks of a unit, [task, ...]."""
    num_tasks = len(tasks)
    values = {"status": np.full(num_tasks, DIVERGED), "level": np.full(num_tasks, unit.level)}
    if unit.diverged:
        return values
    points = _points(unit, tasks, *network(unit))
    finite = ~points.trajectory.diverged  # [task]
    values["status"][finite.cpu().numpy()] = MEASURED
    for quantity in _quantities(unit):
        # ``quantity.products`` is True where the quantity needs products with the Hessian; see ``Quantity``. There are
        # none if the inner loops of all tasks diverged.
        if quantity.products and not finite.any():
            continue
        dims = {variable.name: variable.dims for variable in quantity.variables}
        for name, value in values_of(quantity, points).items():
            if quantity.products:
                value[~finite] = float("nan")
            values[name] = _padded(value, dims[name], unit.study.config.measure.full)
    _mark_overflow(values)
    return values


def _quantities(unit: Unit) -> list[Quantity]:
    """The quantities that are measured at the unit's level, in order."""
    return [quantity for quantity in unit.study.quantities if unit.level >= LEVEL_MEANINGS.index(quantity.level)]


def _mark_overflow(values: dict[str, np.ndarray]) -> None:
    """Mark a task as diverged if its losses are finite but its curvature is not.

    Where the gradient is zero, rho is 0 / 0 without any overflow, so these points do not count.
    """
    if "rho" in values:
        has_gradient = values["grad_norm"] >= ZERO_GRADIENT
        overflowed = [has_gradient & ~np.isfinite(values[name]) for name in ("rho", "rho_normalised")]
        values["status"][np.any(overflowed, axis=(0, 2))] = DIVERGED


@lru_cache
def _loss(problem: Problem, seed: int, device: str) -> Loss:
    """The loss of a study's network as a function of all its parameters, which is the same for all learners.

    Every call returns the same object, so that Hessian-vector products are traced only once in a process. TrainConfig
    requires a learner and a seed, but neither has an effect here: the loss contains no inner loop, and the parameters
    that the seed draws are not used.
    """
    config = TrainConfig(
        learner=untrained(1, 1.0),  # any number of steps and any step size
        tasks=problem.tasks,
        network=problem.network,
        seed=seed,
        head=problem.network_config.head,
        device=device,
    )
    loss, _ = task_loss(config)
    return loss


def network(unit: Unit) -> tuple[Loss, Tensor]:
    """The loss, and the meta-parameters in the unit's checkpoint.

    The parameters of the projector, which only pre-training by SHOT_p uses, are left out.
    """
    study = unit.study
    theta = load_theta(unit.run, unit.checkpoint).to(study.device)
    loss = _loss(study.problem, study.config.seeds[0], study.device)
    return loss, without_projector(unit.learner.learner, loss, theta)


def _points(unit: Unit, tasks: tuple[int, ...], loss: Loss, theta: Tensor) -> Points:
    """Record the inner loops of tasks of a unit, and gather all that the quantities are computed from.

    loss, theta: those of the unit's network; see ``network``.
    """
    settings, study_learner = unit.study.config.measure, unit.learner
    level = settings.full if unit.level == FULL else settings.light
    held_out, num_tasks = unit.study.problem.held_out, settings.tasks
    trajectories, episodes, others, probes = [], [], [], []
    for task in tasks:
        # The support set of another task, here the next one, serves as a control: a study may ask for the curvature of
        # that task's loss at this task's points (``other_task`` in measure.losses).
        episode, other = (
            cast_like(held_out.episode(seed=unit.task_seed, split="test", index=index), theta)
            for index in (task, (task + 1) % num_tasks)
        )
        trajectories.append(record(study_learner.learner, loss, theta, *episode, save=VECTORS))
        episodes.append(episode)
        others.append(other.support)
        # Probes have an entry for each parameter of the network and for none of a learner's other meta-parameters (such
        # as learned step sizes), on which the support loss does not depend.
        path = ("probes", task)
        probes.append(rademacher(loss.layout.numel, level.probes, seed=unit.task_seed, path=path))
    return Points(
        loss=loss,
        learner=study_learner.learner,
        meta_theta=theta,
        trajectory=stack(trajectories),
        support=_stacked(episode.support for episode in episodes),
        query=_stacked(episode.query for episode in episodes),
        other_support=_stacked(others),
        normalised=normalised_weights(loss.model),
        step_size=study_learner.alpha,
        level=level,
        probes=torch.stack(probes).to(theta),
        tasks=tasks,
        task_seed=unit.task_seed,
        seed=settings.seed,
        eigenvectors=any(quantity.eigenvectors for quantity in _quantities(unit)),
    )


def _stacked(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Batches (x, y) of equal shape as one batch with a leading axis."""
    x, y = zip(*batches, strict=True)
    return torch.stack(x), torch.stack(y)


def _evaluation(unit: Unit) -> dict[str, np.ndarray]:
    """Loss and accuracy on the evaluation tasks, [evaluation_task]."""
    settings = unit.study.config.measure
    if unit.diverged:
        blank = np.full(settings.evaluation_tasks, np.nan)
        return {"evaluation_loss": blank, "evaluation_accuracy": blank}
    losses, accuracies = evaluate(
        unit.learner.learner,
        *network(unit),
        unit.study.problem.held_out,
        split="test",
        num_tasks=settings.evaluation_tasks,
        seed=unit.task_seed,
        transductive=settings.transductive,
    )
    return {"evaluation_loss": losses.double().cpu().numpy(), "evaluation_accuracy": accuracies.double().cpu().numpy()}


def _padded(value: Tensor, dims: tuple[str, ...], full: LevelConfig) -> np.ndarray:
    """The values, padded with NaN where a light measurement has fewer eigenvalues or probes than the store."""
    array = value.cpu().numpy()
    lengths = {"eigen_index": full.eigenvalues, "probe": full.probes}
    num_missing = lengths.get(dims[-1], array.shape[-1]) - array.shape[-1]
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, num_missing)], constant_values=np.nan)
