"""What a study would run and what that would take, for the option ``--dry-run``; nothing is written."""

from collections import Counter
from collections.abc import Iterator

from analysis.cost import bytes_on_disk, estimate, estimate_of_runs, is_on_card
from analysis.engines.processes import Processes
from analysis.folder import plan_to_begin
from analysis.measure import is_measured, units
from analysis.networks import trained_in
from analysis.status import megabytes, meta_iteration, recorded_times
from analysis.study import Study
from analysis.times import duration
from analysis.training import is_trained, refuse_changed_data, units_of
from hessian_tools.data import summary
from hessian_tools.runs.worker_pool import WorkerPool

VERBS = {"train": "training", "measure": "measuring"}
Run = tuple[str, int]  # a learner and a seed


def dry_run(study: Study, engine: object, *, plan: str | None, only_train: bool = False) -> Iterator[str]:
    """The lines that say what the command would do. All that can be checked without doing it has been checked.

    engine: what ``analysis.engines.engine.open_engine`` returns; it is not entered, so no worker is started.
    plan: the text of the plan of the claims, as for ``analysis.folder.begin``.
    only_train: whether the command only trains.

    Raises UserError where the study's folder was begun with another plan or other data.
    """
    plan_to_begin(study, plan)
    refuse_changed_data(study, study.runs)
    config, problem = study.config, study.problem
    yield f"study {config.name} in {study.path}: nothing is run or written, because this is a dry run"
    yield f"data: {summary(problem.tasks)}"
    yield f"network: {config.network.name}, {problem.layout.numel:,} parameters, on {study.device}"
    num_kept = len(study.runs) - len(study.runs_to_measure)  # those whose results the command ``keep`` has stored
    kept_words = f", of which {num_kept} are kept already" if num_kept else ""
    yield f"runs: {len(study.runs)} ({len(study.learners)} learners, {len(config.seeds)} seeds){kept_words}"
    yield f"learners: {', '.join(study.learners)}; seeds: {', '.join(map(str, config.seeds))}"
    to_do = {"train": _training_to_do(study)}  # for each part of the work, the share of each run that is left
    goals = {run: study.learners[run[0]].checkpoints[-1] for run in study.runs_to_train}
    waiting = [run for run, share in to_do["train"].items() if share]
    steps = round(sum(share * goals[run] for run, share in to_do["train"].items()))
    if study.networks_from is not None:
        yield f"networks: taken over from {study.networks_from}, as far as it has them"
    if study.step_size is None:
        yield "before training: a search for the inner step size"
    yield f"to train: {len(waiting)} of {len(goals)} runs, {steps} of {sum(goals.values())} meta-iterations"
    together = [unit for unit in units_of(study, waiting, _min_units(engine)) if len(unit.seeds) > 1]
    if together:
        yield f"trained together: {'; '.join(str(unit).removeprefix('training ') for unit in together)}"
    if not only_train:
        work = units(study)
        left = [unit for unit in work if not is_measured(unit)]
        num_units = Counter((learner, unit.seed) for unit in work for learner in unit.learners)
        num_left = Counter((learner, unit.seed) for unit in left for learner in unit.learners)
        to_do["measure"] = {run: num_left[run] / number for run, number in num_units.items()}
        yield f"to measure: {len(left)} of {len(work)} units, each some tasks at a checkpoint"
        yield "then: verdicts, figures, the report and the explorer's page"
    yield _time(study, engine, to_do)
    memory = megabytes(sum(estimate(study).num_bytes.values()))
    yield f"on disk: about {megabytes(bytes_on_disk(study))} when all is measured; in memory: {memory} besides torch"
    yield "to run it, give the same command without --dry-run"


def _training_to_do(study: Study) -> dict[Run, float]:
    """The share of the meta-iterations of each run that is still to be trained."""
    shares = {}
    for learner, seed in study.runs_to_train:
        goal = study.learners[learner].checkpoints[-1]
        trained = trained_in(study, learner, seed)
        if goal == 0 or is_trained(trained, learner, seed):  # a learner that is not trained has the goal 0
            shares[learner, seed] = 0.0
        else:
            shares[learner, seed] = 1.0 - (meta_iteration(trained, learner, seed) or 0) / goal
    return shares


def _time(study: Study, engine: object, to_do: dict[str, dict[Run, float]]) -> str:
    """The line on the time that is left: an estimate, corrected by the times that runs have taken so far.

    to_do: for each of ``PARTS``, the share of each run that is left.
    """
    estimates = estimate_of_runs(study)
    seconds, corrected = {}, False
    for part, shares in to_do.items():
        left = sum(share * estimates[learner][part] for (learner, _), share in shares.items())
        took = sum(recorded_times(study, *run).get(part, 0.0) for run in study.runs)
        # The estimate of the work that took this time: the share that is done of each run with a recorded time.
        estimated = sum(
            (1.0 - shares.get((learner, seed), 0.0)) * estimates[learner][part]
            for learner, seed in study.runs
            if recorded_times(study, learner, seed).get(part)
        )
        if took and estimated:
            left, corrected = left * took / estimated, True
        seconds[part] = left
    if study.step_size is None:
        seconds["train"] += estimate(study).seconds["the search for the step size"]
    total = sum(seconds.values())
    parts = ", ".join(f"{VERBS[part]} {duration(time)}" for part, time in seconds.items())
    basis = "by the times so far" if corrected else "a rough estimate, up to five times off"
    kind, at_best = "processor time", ""
    if is_on_card(study):
        # The workers take turns on the card. Nobody has measured how much that costs, nor how far off the estimate is.
        kind, at_best = "one process on the card", "at best "
        basis = basis if corrected else "a rough guess for an H200"
    workers = engine.workers if isinstance(engine, WorkerPool) else 0
    shared = f", {at_best}{duration(total / workers)} on {workers} workers" if workers > 1 else ""
    return f"time: {duration(total)} of {kind} ({parts}){shared}; {basis}"


def _min_units(engine: object) -> int | None:
    """The ``min_units`` of an engine that is not entered yet; those of a cluster are known only once it is."""
    return engine.min_units if isinstance(engine, Processes) else None
