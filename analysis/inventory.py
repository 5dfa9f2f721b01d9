"""What a study's folder holds and how far it is."""

from collections.abc import Iterator

import numpy as np

from analysis import setting, store
from analysis.folder import REPORT, VERDICTS, StudyFolder, open_study, open_verdicts, stale
from hessian_tools.runs.checkpoints import checkpoint_path
from hessian_tools.train import diverged_at


def describe(folder: StudyFolder) -> Iterator[str]:
    """Lines for people."""
    config = folder.config
    yield f"study {config.name} ({config.digest[:12]}) in {folder.path}"
    yield (
        f"{config.data.source} {config.data.ways}-way {config.data.shots}-shot, {config.network.name}, seeds "
        + ", ".join(map(str, config.seeds))
    )
    for learner, seed in folder.runs:
        yield f"  {learner:<12} seed {seed}: {_training(folder, learner, seed)}; {_measuring(folder, learner, seed)}"
    old = _stale(folder)
    yield _verdicts(folder) + (" (of older measurements)" if "verdicts" in old else "")
    drawn = sorted(path.stem for path in folder.figures.glob("*.pdf"))
    yield f"figures: {', '.join(drawn) or 'none yet'}" + (" (of older measurements)" if "figures" in old else "")
    report = folder.path / REPORT
    yield f"report: {report if report.exists() else 'none yet'}"


def _training(folder: StudyFolder, learner: str, seed: int) -> str:
    steps = setting.checkpoints(folder.config, learner)
    reached = [step for step in steps if checkpoint_path(folder.run(learner, seed), step).exists()]
    stopped = diverged_at(folder.run(learner, seed))
    if stopped is not None:
        return f"diverged at meta-iteration {stopped}"
    if len(reached) == len(steps):
        return f"trained to {steps[-1]}"
    return f"at {reached[-1]} of {steps[-1]} meta-iterations" if reached else "not begun"


def _measuring(folder: StudyFolder, learner: str, seed: int) -> str:
    path = folder.run(learner, seed) / store.NAME
    if not path.exists():
        return "not measured"
    done = store.open_run(path)["done"].values
    if np.all(done == 1):
        return f"measured ({done.size} task units)"
    return f"{int(np.sum(done == 1))} of {done.size} task units measured"


def _stale(folder: StudyFolder) -> list[str]:
    measured = any((folder.run(*run) / store.NAME).exists() for run in folder.runs)
    return stale(folder, open_study(folder.path)) if measured else []


def _verdicts(folder: StudyFolder) -> str:
    if not (folder.path / VERDICTS).exists():
        return "verdicts: none yet"
    outcomes = [verdict.outcome for verdict in open_verdicts(folder.path)]
    return "verdicts: " + ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))
