"""A study from beginning to end; every part can be stopped at any moment and started again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from analysis import measure as measuring
from analysis import setting, step_size, store
from analysis.beginning import start_of
from analysis.claims import Verdict, judge, verdicts_to_json
from analysis.config import StudyConfig, rounds
from analysis.drawing.figures import FIGURES, save
from analysis.errors import UserError
from analysis.folder import (
    CLAIMS,
    DRAWN,
    REPORT,
    VERDICTS,
    StudyFolder,
    content_digest,
    open_study,
    open_verdicts,
    plan_of,
    stale,
)
from analysis.progress import Reporter
from analysis.report import render
from analysis.setup_facts import command, facts, notes
from hessian_tools.runs.checkpoints import checkpoint_path
from hessian_tools.runs.files import write_json, write_text
from hessian_tools.runs.manifest import NAME as MANIFEST
from hessian_tools.runs.manifest import environment, read_manifest, record_ownership
from hessian_tools.runs.worker_pool import Emit, WorkerPool
from hessian_tools.train import diverged_at, meta_train


@dataclass(frozen=True)
class Resources:
    """Where the work runs."""

    crew: WorkerPool
    device: str = "cpu"


@dataclass(frozen=True)
class TrainUnit:
    """One training run."""

    config: StudyConfig
    folder: Path
    learner: str
    seed: int
    step_size: float
    device: str

    def __str__(self) -> str:
        return f"training {self.learner} seed {self.seed}"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return StudyFolder(self.folder, self.config).run(self.learner, self.seed)


def small(config: StudyConfig) -> bool:
    """Whether starting worker processes, some seconds, would cost more than it brings."""
    return len(config.learners) * len(config.seeds) * config.train.checkpoints[-1] * config.train.meta_batch < 500


def run(folder: StudyFolder, reporter: Reporter, resources: Resources) -> list[Verdict]:
    """Train, measure, test, draw, report; what is there already is not done again."""
    train(folder, reporter, resources)
    measure(folder, reporter, resources)
    ds = open_study(folder.path)
    verdicts = test(folder, ds)
    figures(folder, ds, reporter)
    report(folder, ds)
    return verdicts


def train(folder: StudyFolder, reporter: Reporter, resources: Resources) -> None:
    """Choose the step size if the study asks for it, then train every run that is not complete."""
    step_size.choose(folder, reporter, crew=resources.crew, device=resources.device)
    units = _claimed_units(folder, resources)
    # The costliest first: with SHOT, then second order, then first order.
    units.sort(key=lambda u: (u.config.learners[u.learner].shot is None, u.config.learners[u.learner].first_order))
    waiting = [unit for unit in units if not _trained(unit)]
    total = sum(setting.checkpoints(u.config, u.learner)[-1] for u in waiting)
    if waiting:
        with reporter.stage("train", total, "meta-iterations") as stage:
            for learners in rounds(folder.config):  # a learner may begin from one that is trained before it
                resources.crew.run(train_unit, [u for u in waiting if u.learner in learners], emit=stage.advance)
    for unit in units:
        stopped = diverged_at(unit.run)
        if stopped is not None:
            reporter.say(f"{unit.learner} seed {unit.seed} diverged at meta-iteration {stopped}; recorded as such")


def train_unit(unit: TrainUnit, emit: Emit) -> None:
    """Train one run; each meta-iteration is reported, those of an earlier session at once."""
    training = setting.training(
        unit.config,
        unit.learner,
        unit.seed,
        step_size=unit.step_size,
        folder=unit.run,
        device=unit.device,
        start=start_of(StudyFolder(unit.folder, unit.config), unit.learner, unit.seed),
    )
    done = 0

    def advance(meta_step: int, loss: float) -> None:
        nonlocal done
        emit(meta_step - done, f"{unit.learner} seed {unit.seed}  loss {loss:.2f}")
        done = meta_step

    for checkpoint in meta_train(training, progress=advance):
        if not checkpoint.diverged and checkpoint.meta_step > done:
            advance(checkpoint.meta_step, checkpoint.validation_loss)


def measure(folder: StudyFolder, reporter: Reporter, resources: Resources) -> None:
    """Record the inner loops on held-out tasks and measure the curvature along them."""
    _claimed_units(folder, resources)
    for learner, seed in folder.runs:
        measuring.allocate(folder, learner, seed)
    units = measuring.units(folder, device=resources.device)
    missing = [unit for unit in units if not _present(unit)]
    if missing:
        first = missing[0]
        raise UserError(
            f"{first.run} has no checkpoint at meta-iteration {first.checkpoint}; run 'hessian-tools train' first"
        )
    with reporter.stage("measure", len(units), "units") as stage:
        resources.crew.run(measuring.measure_unit, units, emit=stage.advance)


def test(folder: StudyFolder, ds: xr.Dataset) -> list[Verdict]:
    """The verdicts, from the measurements and the plan that was fixed before them."""
    plan = plan_of(folder)
    _refuse_a_changed_plan(folder, plan.digest)
    _refuse_a_part(folder)
    verdicts = judge(ds, plan)
    facts = {"measurements": content_digest(ds), "plan": plan.digest}
    write_text(folder.path / VERDICTS, verdicts_to_json(verdicts, **facts))
    return verdicts


def figures(folder: StudyFolder, ds: xr.Dataset, reporter: Reporter) -> list[Path]:
    """Every figure as PDF and PNG."""
    _refuse_a_part(folder)
    (folder.figures / DRAWN).unlink(missing_ok=True)
    store.sweep(folder.path)
    saved: list[Path] = []
    with reporter.stage("draw", len(FIGURES), "figures") as stage:
        for name, figure in FIGURES.items():
            saved += save(figure.draw(ds), folder.figures / name)
            stage.advance(1, name)
    write_json(folder.figures / DRAWN, {"measurements": content_digest(ds)})
    return saved


def report(folder: StudyFolder, ds: xr.Dataset) -> Path:
    """The study on one self-contained page."""
    _refuse_a_part(folder)
    images = {name: folder.figures / f"{name}.png" for name in FIGURES}
    for image in images.values():
        if not image.exists():
            raise UserError(f"{image} is not drawn yet; run 'hessian-tools figures {folder.path}' first")
    for part in stale(folder, ds):
        raise UserError(
            f"the {part} of {folder.path} rest on other measurements than are there now;"
            f" run 'hessian-tools {part.replace('verdicts', 'test')} {folder.path}' first"
        )
    page = render(
        ds=ds,
        verdicts=open_verdicts(folder.path),
        figures=images,
        setup=facts(folder),
        command=command(folder),
        notes=notes(folder),
        step_size_table=step_size.table(folder),
        confidence=plan_of(folder).confidence,
    )
    write_text(folder.path / REPORT, page)
    return folder.path / REPORT


def _claimed_units(folder: StudyFolder, resources: Resources) -> list[TrainUnit]:
    """Every run, its folder marked as this study's; a folder that holds another run is refused."""
    units = [
        TrainUnit(folder.config, folder.path, learner, seed, folder.step_size, resources.device)
        for learner, seed in folder.runs
    ]
    for unit in units:
        _claim(unit)
    return units


def _claim(unit: TrainUnit) -> None:
    config = unit.config.model_dump(mode="json")
    settings = {key: config[key] for key in ("data", "network", "train", "measure")}
    settings |= {
        "steps": config["inner"]["steps"],
        "step_size": unit.step_size,
        "learner": config["learners"][unit.learner],
        "begins_from": _chain(config["learners"], unit.learner),
        "seed": unit.seed,
        **setting.network_source(unit.config),
    }
    found = environment(device=unit.device) | {
        "threads": 1,
        "data_digest": setting.tasks(unit.config).digest,
        "claims_digest": plan_of(StudyFolder(unit.folder, unit.config)).digest,
    }
    record_ownership(unit.run, "config", settings, facts=found)


def _chain(learners: dict[str, Any], name: str) -> list[Any]:
    """The settings of the learners that a learner begins from, the nearest first."""
    found, at = [], learners[name]["start"]
    while at is not None:
        found.append(learners[at])
        at = learners[at]["start"]
    return found


def _refuse_a_part(folder: StudyFolder) -> None:
    for learner, seed in folder.runs:
        if not (folder.run(learner, seed) / store.NAME).exists():
            raise UserError(
                f"{learner} seed {seed} is not measured yet, and a part of a study would pass for the whole;"
                f" run 'hessian-tools measure {folder.path}' first"
            )


def _refuse_a_changed_plan(folder: StudyFolder, digest: str) -> None:
    places = [folder.run(*run) for run in folder.runs]
    if any(read_manifest(place)["claims_digest"] != digest for place in places if (place / MANIFEST).exists()):
        raise UserError(
            f"{folder.path / CLAIMS} was changed after the runs were begun, and a plan is fixed before the data;"
            " put it back, or begin a study with --claims and another --out"
        )


def _trained(unit: TrainUnit) -> bool:
    kept = setting.checkpoints(unit.config, unit.learner)
    return diverged_at(unit.run) is not None or all(checkpoint_path(unit.run, step).exists() for step in kept)


def _present(unit: measuring.Unit) -> bool:
    return checkpoint_path(unit.run, unit.checkpoint).exists() or diverged_at(unit.run) is not None
