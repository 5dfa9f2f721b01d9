"""Lines that say what a study's folder holds and how far the study is, for the command ``info``."""

from collections.abc import Iterator

import numpy as np

from analysis import store
from analysis.folder import REPORT, VERDICTS, measurements, open_verdicts, stale_parts
from analysis.study import Study
from hessian_tools.runs.checkpoints import checkpoint_path
from hessian_tools.train import diverged_at


def describe(study: Study) -> Iterator[str]:
    """The lines that ``info`` prints."""
    config = study.config
    yield f"study {config.name} ({config.digest[:12]}) in {study.path}"
    yield (
        f"{config.data.source} {config.data.ways}-way {config.data.shots}-shot, {config.network.name}, seeds "
        + ", ".join(map(str, config.seeds))
    )
    # The names as they stand in the YAML, because the user's own files are not imported here.
    losses = f"; also on other losses: {', '.join(config.measure.losses)}" if config.measure.losses else ""
    yield f"quantities: {', '.join(config.measure.quantities)}{losses}"
    for learner, seed in study.runs:
        is_kept = (learner, seed) not in study.runs_to_measure
        done = "kept" if is_kept else f"{_training(study, learner, seed)}; {_measuring(study, learner, seed)}"
        yield f"  {learner:<12} seed {seed}: {done}"
    measured = bool(study.kept) or any((study.run(*run) / store.NAME).exists() for run in study.runs)
    # The parts ("verdicts", "figures") that were made from other measurements than the present ones.
    outdated = stale_parts(study, measurements(study)) if measured else []
    yield _verdicts(study) + (" (of older measurements)" if "verdicts" in outdated else "")
    drawn = sorted(path.stem for path in study.figures.glob("*.pdf"))
    yield f"figures: {', '.join(drawn) or 'none yet'}" + (" (of older measurements)" if "figures" in outdated else "")
    report = study.path / REPORT
    yield f"report: {report if report.exists() else 'none yet'}" + (
        " (of older results)" if "report" in outdated else ""
    )


def _training(study: Study, learner: str, seed: int) -> str:
    run, steps = study.run(learner, seed), study.learners[learner].checkpoints
    stopped = diverged_at(run)
    if stopped is not None:
        return f"diverged at meta-iteration {stopped}"
    reached = [step for step in steps if checkpoint_path(run, step).exists()]
    if len(reached) == len(steps):
        return f"trained to {steps[-1]}"
    return f"at {reached[-1]} of {steps[-1]} meta-iterations" if reached else "not begun"


def _measuring(study: Study, learner: str, seed: int) -> str:
    path = study.run(learner, seed) / store.NAME
    if not path.exists():
        return "not measured"
    done = store.open_run(path)["done"].values == 1  # [checkpoint, task]
    if done.all():
        return f"measured ({done.size} tasks, counted at each checkpoint)"
    return f"{int(np.sum(done))} of {done.size} tasks measured, counted at each checkpoint"


def _verdicts(study: Study) -> str:
    if not (study.path / VERDICTS).exists():
        return "verdicts: none yet"
    outcomes = [verdict.outcome for verdict in open_verdicts(study.path)]
    return "verdicts: " + ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))
