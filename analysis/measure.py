"""Trajectories x quantities -> measurements, one unit of work at a time.

A unit is (run, checkpoint, block of held-out tasks) with all inner steps: it records the inner
loops, measures the curvature at their points in the same pass, and writes one chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from analysis import algorithms, setting, store
from analysis.config import DataConfig, LevelConfig, NetworkConfig, StudyConfig
from analysis.folder import StudyFolder
from analysis.quantities import QUANTITIES, Points
from analysis.schema import BY_NAME, LEVEL_MEANINGS, STATUS_MEANINGS, ZERO_GRADIENT, Sizes
from hessian_tools.curvature import rademacher
from hessian_tools.data import TaskSource
from hessian_tools.layout import flatten
from hessian_tools.loss import Loss, cast_like
from hessian_tools.nets import normalised_weights, seeded
from hessian_tools.runs.checkpoints import checkpoint_path, load_theta
from hessian_tools.runs.worker_pool import Emit
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.train import diverged_at, evaluate, task_loss
from hessian_tools.trajectory import SaveAt, Trajectory, stack
from hessian_tools.trajectory.record import record

MEASURED, DIVERGED = STATUS_MEANINGS.index("measured"), STATUS_MEANINGS.index("diverged")
LIGHT, FULL = LEVEL_MEANINGS.index("light"), LEVEL_MEANINGS.index("full")
_LOSSES: dict[tuple[NetworkConfig, DataConfig, str], Loss] = {}
VECTORS = SaveAt(thetas=True, gradients=True)


@dataclass(frozen=True)
class Unit:
    """One unit of work; tasks None: the evaluation of accuracy on many held-out tasks at a checkpoint.

    learners: the runs it is written to. Before training, learners of a seed that adapt by the same inner loop are one
    network, so their checkpoint 0 is measured once for all of them; later units have one learner.
    """

    config: StudyConfig
    folder: Path
    learners: tuple[str, ...]
    seed: int
    step_size: float
    checkpoint: int
    tasks: tuple[int, ...] | None
    device: str = "cpu"

    @property
    def learner(self) -> str:
        """The learner whose checkpoint is read."""
        return self.learners[0]

    @property
    def run(self) -> Path:
        """The folder of the run whose checkpoint is read."""
        return StudyFolder(self.folder, self.config).run(self.learner, self.seed)

    @property
    def stores(self) -> list[Path]:
        """Where the measurements go."""
        study = StudyFolder(self.folder, self.config)
        return [study.run(learner, self.seed) / store.NAME for learner in self.learners]

    @property
    def level(self) -> int:
        """Full for the first blocks of tasks at the first and last checkpoint, light elsewhere."""
        ends = (self.config.train.checkpoints[0], self.config.train.checkpoints[-1])
        full = self.tasks is not None and max(self.tasks) < self.config.measure.full_tasks
        return FULL if full and self.checkpoint in ends else LIGHT

    def __str__(self) -> str:
        return f"measuring {self.name}"

    @property
    def name(self) -> str:
        """For people watching."""
        who = self.learner if self.checkpoint else "before training,"
        return f"{who} seed {self.seed} at {self.checkpoint}"


def units(folder: StudyFolder, *, device: str) -> list[Unit]:
    """Every unit of a study, the costly ones first."""
    plan = folder.config.measure
    blocks: list[tuple[int, ...] | None] = [*_blocks(plan.tasks, plan.full_tasks, plan.block), None]

    def unit(learners: tuple[str, ...], seed: int, checkpoint: int, block: tuple[int, ...] | None) -> Unit:
        return Unit(folder.config, folder.path, learners, seed, folder.step_size, checkpoint, block, device)

    together = _alike_before_training(folder.config)
    found = [unit(names, seed, 0, block) for names in together for seed in folder.config.seeds for block in blocks]
    found += [
        unit((learner,), seed, checkpoint, block)
        for learner, seed in folder.runs
        for checkpoint in setting.checkpoints(folder.config, learner)[1:]
        for block in blocks
    ]
    return sorted(found, key=lambda unit: -unit.level)


def _alike_before_training(config: StudyConfig) -> list[tuple[str, ...]]:
    """Learners that are one network with one inner loop at checkpoint 0."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in config.learners:
        groups.setdefault(algorithms.inner_loop(config, name), []).append(name)
    return [tuple(names) for names in groups.values()]


def allocate(folder: StudyFolder, learner: str, seed: int) -> None:
    """The run's empty store."""
    config, plan = folder.config, folder.config.measure
    layout = flatten(seeded(setting.network(config), seed=seed), head=config.network.head)[1]
    sizes = Sizes(
        checkpoints=setting.checkpoints(config, learner),
        tasks=tuple(range(plan.tasks)),
        steps=config.inner.steps,
        layers=layout.names,
        eigenvalues=plan.full.eigenvalues,
        probes=plan.full.probes,
        evaluation_tasks=plan.evaluation_tasks,
    )
    held_out = setting.tasks(config, held_out=True)
    attrs = {"study": config.name, "learner": learner, "seed": seed, "data_digest": held_out.digest, "split": "test"}
    why = algorithms.why_no_alpha(config, learner)
    attrs |= {"step_size_missing": why} if why else {}
    path = store.create(folder.run(learner, seed), sizes, block=chunk_tasks(config), attrs=attrs)
    moved = algorithms.moved_params(algorithms.learner(config, learner, step_size=folder.step_size), layout)
    alpha = algorithms.alpha(config, learner, step_size=folder.step_size)
    store.write_scalars(path, {"step_size": alpha, "num_params": moved})


def chunk_tasks(config: StudyConfig) -> int:
    """Tasks in a chunk: one for which every unit writes whole chunks."""
    plan = config.measure
    return plan.block if plan.full_tasks % plan.block == 0 else 1


@full_precision
def measure_unit(unit: Unit, emit: Emit) -> None:
    """Do one unit, unless it is on disk already."""
    at = setting.checkpoints(unit.config, unit.learner).index(unit.checkpoint)
    if unit.tasks is None:
        waiting = [path for path in unit.stores if not store.evaluation_is_done(path, at)]
        evaluated = _evaluation(unit) if waiting else {}
        for path in waiting:
            store.write_evaluation(path, at, evaluated)
    else:
        block = slice(unit.tasks[0], unit.tasks[-1] + 1)
        waiting = [path for path in unit.stores if not store.is_done(path, at, block)]
        values = _values(unit) if waiting else {}
        for path in waiting:
            store.write_unit(path, at, block, values)
    emit(1, unit.name)


def _blocks(tasks: int, full: int, size: int) -> list[tuple[int, ...]]:
    """Blocks of at most ``size`` tasks that do not straddle the full and the light ones."""
    cuts = sorted({*range(0, full, size), *range(full, tasks, size), tasks})
    return [tuple(range(a, b)) for a, b in pairwise(cuts)]


def _values(unit: Unit) -> dict[str, np.ndarray]:
    assert unit.tasks is not None
    status = np.full(len(unit.tasks), DIVERGED)
    level = np.full(len(unit.tasks), unit.level)
    if not checkpoint_path(unit.run, unit.checkpoint).exists() and diverged_at(unit.run) is not None:
        return {"status": status, "level": level}
    points = _points(unit)
    finite = ~points.trajectory.diverged
    status[finite.cpu().numpy()] = MEASURED
    values: dict[str, np.ndarray] = {"status": status, "level": level}
    for quantity in QUANTITIES:
        if quantity.curvature and not finite.any():
            continue
        for name, value in quantity.measure(points).items():
            if quantity.curvature:
                value[~finite] = float("nan")
            values[name] = _padded(name, value, unit.config)
    _mark_overflow(values)
    return values


def _mark_overflow(values: dict[str, np.ndarray]) -> None:
    """A task whose losses are finite but whose curvature is not has diverged too; a zero gradient has no rho."""
    if "rho" in values:
        moving = values["grad_norm"] >= ZERO_GRADIENT
        lost = [moving & ~np.isfinite(values[name]) for name in ("rho", "rho_normalised")]
        values["status"][np.any(lost, axis=(0, 2))] = DIVERGED


def _loss(config: StudyConfig, device: str) -> Loss:
    """The loss of a study's network, one object for the life of the process: products are traced once for it.

    Of which learner and seed does not matter, as every parameter is part of theta.
    """
    key = (config.network, config.data, device)
    if key not in _LOSSES:
        name, seed = next(iter(config.learners)), config.seeds[0]
        training = setting.training(config, name, seed, step_size=1.0, folder=None, device=device)
        _LOSSES[key] = task_loss(training)[0]
    return _LOSSES[key]


def _points(unit: Unit) -> Points:
    config, plan = unit.config, unit.config.measure
    loss = _loss(config, unit.device)
    theta = load_theta(unit.run, unit.checkpoint).to(unit.device)
    tasks = setting.tasks(config, held_out=True)
    trajectories, supports = _record(unit, loss, theta, tasks)
    level = plan.full if unit.level == FULL else plan.light
    return Points(
        loss=loss,
        trajectory=trajectories,
        support=(torch.stack([x for x, _ in supports]), torch.stack([y for _, y in supports])),
        normalised=normalised_weights(loss.model),
        step_size=algorithms.alpha(config, unit.learner, step_size=unit.step_size),
        level=level,
        probes=_probes(unit, loss, level).to(theta),
        seed=plan.seed,
    )


def _record(
    unit: Unit, loss: Loss, theta: Tensor, tasks: TaskSource
) -> tuple[Trajectory, Sequence[tuple[Tensor, Tensor]]]:
    learner = algorithms.learner(unit.config, unit.learner, step_size=unit.step_size)
    trajectories, supports = [], []
    for index in unit.tasks or ():
        episode = cast_like(tasks.episode(seed=_task_seed(unit), split="test", index=index), theta)
        trajectories.append(record(learner, loss, theta, *episode, save=VECTORS))
        supports.append(episode.support)
    return stack(trajectories), supports


def _task_seed(unit: Unit) -> int:
    """Held-out tasks differ between seeds, so that per-seed means are independent; learners share them."""
    return 1_000_003 * unit.config.measure.seed + unit.seed


def _probes(unit: Unit, loss: Loss, level: LevelConfig) -> Tensor:
    """Over the network's parameters: what else a learner learns is no part of the support loss."""
    size, seed = loss.layout.numel, _task_seed(unit)
    return torch.stack([rademacher(size, level.probes, seed=seed, path=("probes", task)) for task in unit.tasks or ()])


def _evaluation(unit: Unit) -> dict[str, np.ndarray]:
    plan = unit.config.measure
    if not checkpoint_path(unit.run, unit.checkpoint).exists() and diverged_at(unit.run) is not None:
        blank = np.full(plan.evaluation_tasks, np.nan)
        return {"evaluation_loss": blank, "evaluation_accuracy": blank}
    losses, accuracies = evaluate(
        algorithms.learner(unit.config, unit.learner, step_size=unit.step_size),
        _loss(unit.config, unit.device),
        load_theta(unit.run, unit.checkpoint).to(unit.device),
        setting.tasks(unit.config, held_out=True),
        split="test",
        num_tasks=plan.evaluation_tasks,
        seed=_task_seed(unit),
        transductive=plan.transductive,
    )
    return {"evaluation_loss": losses.double().cpu().numpy(), "evaluation_accuracy": accuracies.double().cpu().numpy()}


def _padded(name: str, value: Tensor, config: StudyConfig) -> np.ndarray:
    """Fewer eigenvalues or probes than the store holds are filled up with NaN."""
    array = value.detach().double().cpu().numpy()
    lengths = {"eigen_index": config.measure.full.eigenvalues, "probe": config.measure.full.probes}
    missing = lengths.get(BY_NAME[name].dims[-1], array.shape[-1]) - array.shape[-1]
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)], constant_values=np.nan) if missing else array
