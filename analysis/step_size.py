"""One inner learning rate for all learners, chosen on a learner without SHOT by a stated, seeded procedure.

Each candidate trains the named learner briefly with a seed that is none of the study's; the best
mean validation accuracy after adaptation wins (lowest loss for regression; ties: the smaller step).
A learner with and without SHOT must share one step size: alpha is a confound of every curvature
scaled by it.
"""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from analysis import setting
from analysis.config import StepSizeSearch, StudyConfig
from analysis.errors import UserError
from analysis.folder import STEP_SIZE, StudyFolder
from analysis.progress import Reporter
from hessian_tools.runs.files import read_json, write_json
from hessian_tools.runs.manifest import digest
from hessian_tools.runs.worker_pool import Emit, WorkerPool
from hessian_tools.train import TrainConfig, meta_train

HIDDEN = ".step-size"


@dataclass(frozen=True)
class Candidate:
    """One step size to try."""

    config: StudyConfig
    folder: Path
    step_size: float
    device: str

    def __str__(self) -> str:
        return f"training with step size {self.step_size:g}"

    @property
    def result(self) -> Path:
        """Where its validation result lies."""
        return self.folder / HIDDEN / f"{self.step_size}.json"


def choose(folder: StudyFolder, reporter: Reporter, *, crew: WorkerPool, device: str) -> float:
    """The study's step size; the search is made once and kept with all its numbers."""
    search = folder.config.inner.step_size
    if not isinstance(search, StepSizeSearch):
        return search
    path = folder.path / STEP_SIZE
    if path.exists():
        return float(read_json(path)["step_size"])
    candidates = [Candidate(folder.config, folder.path, step, device) for step in search.candidates]
    with reporter.stage("step size", len(candidates) * search.meta_steps, "meta-iterations") as stage:
        crew.run(try_candidate, candidates, emit=stage.advance)
    rows = [read_json(candidate.result) for candidate in candidates]
    best = _best(rows, classification=setting.tasks(folder.config).kind == "classification")
    write_json(
        path,
        {"step_size": best, "search": search.model_dump(mode="json"), "digest": digest(rows), "candidates": rows},
    )
    reporter.say(
        f"step size {best:g}, the best of {', '.join(f'{s:g}' for s in search.candidates)} for {search.learner}"
    )
    return best


def table(folder: StudyFolder) -> list[dict[str, Any]] | None:
    """The candidates with their validation results, or None where the step size was given."""
    path = folder.path / STEP_SIZE
    return read_json(path)["candidates"] if path.exists() else None


def try_candidate(candidate: Candidate, emit: Emit) -> None:
    """Train the learner briefly with one step size and keep its validation result."""
    search = candidate.config.inner.step_size
    assert isinstance(search, StepSizeSearch)
    if candidate.result.exists():
        emit(search.meta_steps, "")
        return
    *_, last = meta_train(
        _training(candidate, search), progress=lambda step, _: emit(1, f"alpha {candidate.step_size:g}")
    )
    row: dict[str, Any] = {"step_size": candidate.step_size, "diverged": last.diverged}
    found = {"validation_accuracy": last.validation_accuracy, "validation_loss": last.validation_loss}
    row |= {name: value for name, value in found.items() if isfinite(value)}
    write_json(candidate.result, row)


def _training(candidate: Candidate, search: StepSizeSearch) -> TrainConfig:
    outer = candidate.config.train.model_copy(
        update={"checkpoints": (search.meta_steps,), "validation_tasks": search.validation_tasks}
    )
    config = candidate.config.model_copy(update={"train": outer})
    return setting.training(
        config, search.learner, search.seed, step_size=candidate.step_size, folder=None, device=candidate.device
    )


def _best(rows: list[dict[str, Any]], *, classification: bool) -> float:
    judged = "validation_accuracy" if classification else "validation_loss"
    finite = [row for row in rows if isinstance(row.get(judged), float)]
    if not finite:
        tried = ", ".join(f"{row['step_size']:g}" for row in rows)
        raise UserError(
            f"training diverged at every step size of inner.step_size.candidates ({tried}); add smaller ones"
        )
    if classification:
        return max(finite, key=lambda row: (row["validation_accuracy"], -row["step_size"]))["step_size"]
    return min(finite, key=lambda row: (row["validation_loss"], row["step_size"]))["step_size"]
