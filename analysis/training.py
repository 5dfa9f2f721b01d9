"""Trains the runs of a study, and before that searches for the inner step size if the configuration asks for it.

Training and measuring are split into jobs for worker processes. A job is a picklable value (``TrainUnit``,
``Candidate``), and the function that does it leaves out what is already on disk. Either part can therefore be stopped
at any moment and started again.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from analysis import kept, store
from analysis.config import StepSizeSearch
from analysis.engines.engine import Engine
from analysis.engines.sharing import training_jobs
from analysis.errors import UserError
from analysis.folder import STEP_SIZE, plan_of
from analysis.networks import NOT_OF_TRAINING, OF_THIS_STUDY, take_network, trained_in
from analysis.progress import Reporter
from analysis.study import Study
from analysis.times import stopwatch
from hessian_tools.runs.checkpoints import checkpoint_path
from hessian_tools.runs.files import json_digest, read_json, write_json
from hessian_tools.runs.manifest import NAME as MANIFEST
from hessian_tools.runs.manifest import entries, environment, record_ownership
from hessian_tools.runs.worker_pool import Emit
from hessian_tools.train import best_checkpoint, diverged_at, meta_train, meta_train_runs, saved_checkpoints

# A file in the folder of a run that begins from another learner; it names the checkpoint from which the run began.
WARM_START = "begun.json"
STEP_SIZE_TRIALS = ".step-size"  # the folder of the results of the step sizes that were tried


@dataclass(frozen=True)
class TrainUnit:
    """A job: training runs of one learner, with one seed or with several that are trained together."""

    study: Study
    learner: str
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        plural = "s" if len(self.seeds) > 1 else ""
        return f"training {self.learner} seed{plural} {', '.join(map(str, self.seeds))}"


def is_trained(study: Study, learner: str, seed: int) -> bool:
    """True if all checkpoints of a run exist, or if the run has diverged."""
    run, steps = study.run(learner, seed), study.learners[learner].checkpoints
    return diverged_at(run) is not None or all(checkpoint_path(run, step).exists() for step in steps)


def train(study: Study, engine: Engine, reporter: Reporter) -> Study:
    """Train every run that is not complete; returns the study, with its step size where a search has chosen one."""
    study = choose_step_size(study, engine, reporter)
    taken_over = sum(trained_in(study, *run) is not study for run in study.runs_to_train)
    record_run_ownership(study)
    if taken_over:
        reporter.say(f"networks: {taken_over} taken over from {study.networks_from}, where they were trained")
    # The costliest runs come first, so that no worker begins one when the others have finished: those with the penalty
    # SHOT (``hessian_tools.inner.shot``), then those of second order, then those of first order.
    settings = study.config.learners
    runs = sorted(study.runs_to_train, key=lambda run: (settings[run[0]].shot is None, settings[run[0]].first_order))
    waiting = [run for run in runs if not is_trained(study, *run)]
    if waiting:
        total = sum(study.learners[learner].checkpoints[-1] for learner, _ in waiting)
        with reporter.stage("train", total, "meta-iterations") as advance:
            for group in study.training_order:  # a learner begins only from learners of earlier groups
                units = units_of(study, [run for run in waiting if run[0] in group], engine.min_units)
                engine.run(train_unit, units, emit=advance)
    for learner, seed in runs:
        stopped = diverged_at(study.run(learner, seed))
        if stopped is not None:
            reporter.say(f"{learner} seed {seed} diverged at meta-iteration {stopped}; recorded as such")
    return study


def units_of(study: Study, runs: Sequence[tuple[str, int]], min_units: int | None) -> list[TrainUnit]:
    """The jobs in which runs, given as (learner, seed), are trained; ``min_units`` is that of the engine."""
    return [TrainUnit(study, *job) for job in training_jobs(study, runs, min_units)]


def train_unit(unit: TrainUnit, emit: Emit) -> None:
    """Train the runs and report each meta-iteration; those that an earlier command made are reported at once."""
    unit.study.limit_memory()
    study, learner, seeds = unit.study, unit.learner, unit.seeds
    # This process has opened the data for itself, perhaps later than the one that began the runs.
    refuse_changed_data(study, [(learner, seed) for seed in seeds])
    starts = [warm_start(study, learner, seed) for seed in seeds]
    folders = [study.run(learner, seed) for seed in seeds]
    record_times = [stopwatch(folder, "train") for folder in folders]
    done, steps = [0] * len(seeds), [0] * len(seeds)

    def advance(run: int, meta_step: int, loss: float) -> None:
        emit(meta_step - done[run], f"{learner} seed {seeds[run]}  loss {loss:.2f}")
        done[run] = meta_step

    def step(run: int, meta_step: int, loss: float) -> None:
        steps[run] += 1
        advance(run, meta_step, loss)

    configs = [
        study.training(learner, seed, folder=folder, start=start)
        for seed, folder, start in zip(seeds, folders, starts, strict=True)
    ]
    for checkpoints in meta_train_runs(configs, progress=[partial(step, run) for run in range(len(seeds))]):
        for run, checkpoint in enumerate(checkpoints):
            # The time of the process belongs to its runs in proportion to the outer steps that they have taken.
            record_times[run](steps[run] / sum(steps) if any(steps) else 1 / len(seeds))
            if not checkpoint.diverged and checkpoint.meta_step > done[run]:
                advance(run, checkpoint.meta_step, checkpoint.validation_loss)
        steps = [0] * len(seeds)


def warm_start(study: Study, learner: str, seed: int) -> Path | None:
    """The checkpoint file from which a run begins; None where it begins from the untrained network of the seed.

    The file is the checkpoint that is best by validation in the run of the learner's ``start`` with the same seed. The
    choice is made once and written to the file WARM_START, so that a resumed run begins from the same checkpoint.
    """
    start = study.config.learners[learner].start
    if start is None:
        return None
    source, record = study.run(start, seed), study.run(learner, seed) / WARM_START
    if not record.exists():
        try:
            best = best_checkpoint(saved_checkpoints(source))
        except ValueError as e:
            raise UserError(f"{learner} cannot begin from {start} seed {seed}: {e}") from None
        write_json(record, {"learner": start, "meta_step": best.meta_step})
    return checkpoint_path(source, int(read_json(record, "meta_step")["meta_step"]))


def record_run_ownership(study: Study) -> None:
    """Write a manifest into the folder of every run; refuse a folder that holds another run.

    The manifest records everything on which the numbers of the run depend.
    """
    refuse_changed_data(study, study.runs)
    refuse_other_step_size(study)
    sources = _digests_of_own_code(study)
    facts = environment(device=study.device) | {
        "threads": 1,  # every process that trains or measures computes on one thread, whatever this one does
        **_data_digests(study),
        "claims_digest": plan_of(study).digest,
    }
    for learner, seed in study.runs_to_train:
        if "quantity_sources" in sources:
            _take_changed_quantities(study, learner, seed, sources["quantity_sources"])
        identity = run_settings(study, learner, seed) | sources
        if trained_in(study, learner, seed) is not study:
            take_network(study, learner, seed, identity, facts)
        record_ownership(study.run(learner, seed), "config", identity, facts=facts)


def refuse_other_training(study: Study) -> None:
    """Raise UserError if a network that is to be taken over was trained in another way than in this study."""
    sources = _digests_of_own_code(study)
    for learner, seed in study.runs_to_train:
        other = trained_in(study, learner, seed)
        if other is study:
            continue
        begun = entries(other.run(learner, seed)).get("config", {})
        wanted = json.loads(json.dumps(run_settings(study, learner, seed) | sources))  # as JSON returns it
        for key in wanted:
            if key not in NOT_OF_TRAINING and begun.get(key) != wanted[key]:
                raise UserError(
                    f"--from {study.networks_from}: {learner} seed {seed} was trained there with another {key};\n"
                    "take its settings, or leave --from out, which trains the networks anew"
                )


def _digests_of_own_code(study: Study) -> dict[str, Any]:
    """The digests of the user's own network and quantities, by their names in a manifest."""
    sources: dict[str, Any] = {}
    if ":" in study.config.network.name:
        sources["network_source"] = study.source_digest(study.config.network.name)
    own = [target for target in study.config.measure.quantities if ":" in target]
    if own:
        sources["quantity_sources"] = {target: study.source_digest(target) for target in own}
    return sources


def _take_changed_quantities(study: Study, learner: str, seed: int, present: dict[str, str]) -> None:
    """If the files of the user's own quantities have changed, record the present ones for a run not yet measured.

    Raises UserError where something has been measured, because all values of a variable must come from one definition.
    """
    run = study.run(learner, seed)
    recorded = entries(run)
    before = recorded.get("config", {}).get("quantity_sources", present)
    if before == present or set(before) != set(present):
        return  # another list of quantities is another study, which the manifest refuses
    changed = next(target for target in present if before[target] != present[target])
    if store.any_done(run / store.NAME):
        raise UserError(
            f"{changed.rpartition(':')[0]} has changed since {learner} seed {seed} was measured with it, and all values"
            " of a variable must come from one definition;\nput the old file back, or begin another study with --out"
        )
    shutil.rmtree(run / store.NAME, ignore_errors=True)  # it holds descriptions of variables from the old files
    write_json(run / MANIFEST, recorded | {"config": recorded["config"] | {"quantity_sources": present}})


def run_settings(study: Study, learner: str, seed: int) -> dict[str, Any]:
    """The settings of a study on which a run depends, as its manifest records them.

    The digests of the user's own code, which the manifest holds too, are not among them.
    """
    config = study.config.model_dump(mode="json")
    return {
        **{key: config[key] for key in ("data", "network", "train", "measure")},
        "steps": study.config.inner.steps,
        "step_size": study.chosen_step_size,
        "learner": _of_one_run(config["learners"][learner]),
        "begins_from": [_of_one_run(config["learners"][start]) for start in study.config.starts(learner)],
        "seed": seed,
    }


def refuse_other_step_size(study: Study) -> None:
    """Raise UserError if the step size that a search has left is not that with which the runs were begun.

    Raises DamagedFileError if the file of the search lacks an entry.
    """
    step_size_table(study)  # called for its error, where the file is damaged
    for learner, seed in study.runs_to_train if (study.path / STEP_SIZE).exists() else ():
        path = study.run(learner, seed) / MANIFEST
        begun = entries(path.parent).get("config", {}).get("step_size")
        if begun not in (None, study.chosen_step_size):
            raise UserError(
                f"{study.path / STEP_SIZE} holds the step size {study.chosen_step_size:g}, but {path.parent} was begun"
                f" with {begun:g}, so that file is of another study;\nput the right one back, or move it elsewhere and"
                " run the same command again, which repeats the search"
            )


def _of_one_run(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a learner on which its run depends: all but its list of seeds, to which more may be added."""
    return {name: value for name, value in settings.items() if name != "seeds"}


def refuse_changed_data(study: Study, runs: Iterable[tuple[str, int]]) -> None:
    """Raise UserError if the data are not those with which one of the runs was begun."""
    for learner, seed in runs:
        trained = trained_in(study, learner, seed)
        path = trained.run(learner, seed) / MANIFEST
        recorded = entries(path.parent)
        if learner in study.kept.get(seed, ()):
            folder = study.goes_on_from or study.path
            path, recorded = kept.files(folder, seed)[1], kept.seed_facts(folder, seed)
        for name, present in _data_digests(study).items():
            if trained is not study and name in OF_THIS_STUDY:
                continue  # a network that is taken over may be measured on other held-out tasks
            before = recorded.get(name, present)  # version 0.1 recorded only data_digest
            if before != present:
                data = study.config.data
                places = " and ".join(str(place) for place in (data.source, data.test_path) if place)
                raise UserError(
                    f"the data ({places}) have changed since {path} was written: their SHA-256 was"
                    f" {str(before)[:16]} and is now {present[:16]};\nput the old data back, or begin another study"
                    " with --out"
                )


def _data_digests(study: Study) -> dict[str, str]:
    """The digests of the training tasks and of the held-out tasks, by their names in a manifest."""
    return {"data_digest": study.problem.tasks.digest, "held_out_digest": study.problem.held_out.digest}


@dataclass(frozen=True)
class Candidate:
    """A job: a brief training with one candidate for the inner step size alpha.

    The chosen step size serves learners with and without SHOT alike. With different step sizes, a difference in alpha
    rho (alpha times the curvature rho along the inner gradient) could come from alpha alone.
    """

    study: Study
    search: StepSizeSearch
    step_size: float

    def __str__(self) -> str:
        return f"training with step size {self.step_size:g}"

    @property
    def result(self) -> Path:
        """The file of the candidate's validation result."""
        return self.study.path / STEP_SIZE_TRIALS / f"{self.step_size}.json"


def choose_step_size(study: Study, engine: Engine, reporter: Reporter) -> Study:
    """The study with its inner step size, which is searched for if the configuration asks for it.

    The search is made once, and its results are kept in the study's folder.
    """
    search = study.config.inner.step_size
    if study.step_size is not None or not isinstance(search, StepSizeSearch):
        return study
    candidates = [Candidate(study, search, step_size) for step_size in search.candidates]
    with reporter.stage("step size", len(candidates) * search.meta_steps, "meta-iterations") as advance:
        engine.run(try_candidate, candidates, emit=advance)
    rows = [read_json(candidate.result, "step_size") for candidate in candidates]
    best = _best(rows, classification=study.problem.tasks.kind == "classification")
    write_json(
        study.path / STEP_SIZE,
        {"step_size": best, "search": search.model_dump(mode="json"), "digest": json_digest(rows), "candidates": rows},
    )
    tried = ", ".join(f"{step_size:g}" for step_size in search.candidates)
    reporter.say(f"step size {best:g}, the best of {tried} for {search.learner}")
    return study.with_step_size(best)


def step_size_table(study: Study) -> list[dict[str, Any]] | None:
    """The step sizes that were tried, with their validation results; None where there was no search."""
    path = study.path / STEP_SIZE
    return read_json(path, "candidates")["candidates"] if path.exists() else None


def try_candidate(candidate: Candidate, emit: Emit) -> None:
    """Train the learner briefly with one step size and keep its validation result."""
    search = candidate.search
    if candidate.result.exists():
        emit(search.meta_steps, "")
        return
    training = replace(
        candidate.study.with_step_size(candidate.step_size).training(search.learner, search.seed),
        checkpoints=(search.meta_steps,),
        validation_tasks=search.validation_tasks,
    )
    *_, last = meta_train(training, progress=lambda step, loss: emit(1, f"alpha {candidate.step_size:g}"))
    row: dict[str, Any] = {"step_size": candidate.step_size, "diverged": last.diverged}
    # NaN is left out, because JSON has no such number; regression has no accuracy, a diverged run no finite loss.
    validation = {"validation_accuracy": last.validation_accuracy, "validation_loss": last.validation_loss}
    write_json(candidate.result, row | {name: value for name, value in validation.items() if isfinite(value)})


def _best(rows: list[dict[str, Any]], *, classification: bool) -> float:
    """The step size with the highest validation accuracy or, for regression, the lowest validation loss.

    Of several that are equally good, it is the smallest.
    """
    criterion = "validation_accuracy" if classification else "validation_loss"
    finite = [row for row in rows if isinstance(row.get(criterion), float)]
    if not finite:
        tried = ", ".join(f"{row['step_size']:g}" for row in rows)
        raise UserError(
            f"training diverged at every step size of inner.step_size.candidates ({tried}); add smaller ones"
        )
    sign = -1 if classification else 1
    return min(finite, key=lambda row: (sign * row[criterion], row["step_size"]))["step_size"]
