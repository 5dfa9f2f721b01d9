"""A study from beginning to end: train, measure, test, draw and report; each part goes on where it was stopped."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from analysis import store
from analysis.claims import Verdict, judge, load_plan, verdicts_to_json
from analysis.config import StudyConfig
from analysis.drawing.figures import FIGURES, save
from analysis.errors import UserError
from analysis.folder import (
    CLAIMS,
    DRAWN,
    REPORT,
    STUDY,
    VERDICTS,
    begin,
    content_digest,
    in_folder,
    locked,
    measurements,
    open_verdicts,
    plan_of,
    refuse_occupied,
    stale,
)
from analysis.measure import measure
from analysis.progress import ProgressOption, Reporter, reporter
from analysis.report import render
from analysis.setup_facts import command, facts, notes
from analysis.study import Study, check
from analysis.study_file import load_study, overridden, study_of, with_data
from analysis.training import step_size_table, train
from hessian_tools.data import summary
from hessian_tools.runs.files import write_json, write_text
from hessian_tools.runs.manifest import NAME as MANIFEST
from hessian_tools.runs.manifest import read_manifest
from hessian_tools.runs.worker_pool import WorkerPool, available_cores

Source = str | Path | StudyConfig | Mapping[str, Any]


@dataclass(frozen=True)
class StudyResult:
    """A finished study: its folder, everything measured (as from ``open_study``), and the verdicts."""

    path: Path
    dataset: xr.Dataset
    verdicts: tuple[Verdict, ...]

    def __repr__(self) -> str:
        outcomes = [verdict.outcome for verdict in self.verdicts]
        counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
        sizes = ", ".join(f"{size} {dim}" for dim, size in self.dataset.sizes.items() if dim in ("learner", "seed"))
        return f"StudyResult({str(self.path)!r}, {sizes}; verdicts: {counts or 'none'})"

    @property
    def report(self) -> Path:
        """The page that shows the study."""
        return self.path / REPORT


def run_study(
    source: Source,
    *,
    out: str | Path | None = None,
    seeds: tuple[int, ...] | None = None,
    claims: str | Path | None = None,
    data: str | None = None,
    workers: int | None = None,
    device: str = "cpu",
    progress: ProgressOption = None,
) -> StudyResult:
    """Train, measure, test, draw and report a study; the same call goes on where an earlier one was stopped.

    source: a YAML file, a bundled study (demo, micro), the folder of a study, or the settings themselves, as nested
        mappings or a ``StudyConfig``.
    out: the folder of the study; by default runs/NAME. seeds: in place of the study's; more can be added later.
    claims: the file of the plan of the claims for a new study; by default the bundled plan.
    data: images or features in place of the study's own data.
    workers: processes of one thread each, or 0 for the present process; by default 0 for a small study and otherwise
        one for each core. A script that uses processes needs ``if __name__ == "__main__":``.
    device: "cpu" or "cuda".
    progress: None for silence, True for bars or lines on standard output, or a function that is called with
        (done, total) of the present stage.

    Raises UserError for a mistake in what was asked, before anything is written.
    """
    study, plan = prepare(source, out=out, seeds=seeds, claims=claims, data=data, device=device)
    with session(study, workers=workers, progress=progress) as (pool, report_progress):
        study, ds, verdicts = run(study, pool, report_progress, plan=plan)
    return StudyResult(study.path, ds, tuple(verdicts))


def prepare(
    source: Source,
    *,
    out: str | Path | None = None,
    seeds: tuple[int, ...] | None = None,
    claims: str | Path | None = None,
    data: str | None = None,
    device: str = "cpu",
) -> tuple[Study, str | None]:
    """The study and the text of its plan (None: the bundled one): everything is checked, and nothing is written.

    The arguments are those of :func:`run_study`.
    """
    if isinstance(source, str | Path) and (Path(source) / STUDY).is_file():
        out, source = out or source, Path(source) / STUDY  # the folder of a study goes on in that folder
    if isinstance(source, str | Path):
        config = load_study(source)
    else:
        config = source if isinstance(source, StudyConfig) else study_of(source)
    config = overridden(with_data(config, data), {"seeds": seeds})
    study = in_folder(config, Path(out or Path("runs") / config.name), device=device)
    check(study)
    if claims is not None and not Path(claims).is_file():
        raise UserError(f"there is no plan of the claims {claims}; start from a copy of analysis/claims/claims.yaml")
    load_plan(claims).check_steps(config.inner.steps)
    refuse_occupied(study)
    return study, Path(claims).read_text(encoding="utf-8") if claims else None


@contextmanager
def session(study: Study, *, workers: int | None, progress: ProgressOption) -> Iterator[tuple[WorkerPool, Reporter]]:
    """Lock the study's folder and provide the worker pool and the reporter for the parts of the study."""
    if workers is not None and workers < 0:
        raise UserError(f"--workers {workers} must be 0 (this process) or a number of processes")
    if study.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this torch sees no CUDA device; use --device cpu, or install a CUDA build")
    if workers is None:
        workers = 0 if study.device == "cuda" or _is_small(study) else available_cores()
    with locked(study.path), WorkerPool(workers) as pool:
        yield pool, reporter(progress)


def _is_small(study: Study) -> bool:
    """Whether starting worker processes, which takes some seconds, would cost more than it saves."""
    outer = study.config.train
    return len(study.runs) * outer.checkpoints[-1] * outer.meta_batch < 500


def run(
    study: Study, pool: WorkerPool, reporter: Reporter, *, plan: str | None = None
) -> tuple[Study, xr.Dataset, list[Verdict]]:
    """All parts of a study in their order; what is already there is not done again."""
    study = start(study, pool, reporter, plan=plan)
    measure(study, pool, reporter)
    ds = measurements(study)
    verdicts = test(study, ds)
    figures(study, ds, reporter)
    report(study, ds)
    return study, ds, verdicts


def start(study: Study, pool: WorkerPool, reporter: Reporter, *, plan: str | None = None) -> Study:
    """Begin the folder and train; returns the study with the step size that was chosen, if it was to be."""
    begin(study, claims=plan)
    if study.config.data.path or study.config.data.test_path:
        reporter.say(f"data: {summary(study.problem.tasks)}")
    return train(study, pool, reporter)


def test(study: Study, ds: xr.Dataset) -> list[Verdict]:
    """The verdicts, from the measurements and the plan that was fixed before them."""
    plan = plan_of(study)
    places = [study.run(*run) for run in study.runs]
    if any(read_manifest(place)["claims_digest"] != plan.digest for place in places if (place / MANIFEST).exists()):
        raise UserError(
            f"{study.path / CLAIMS} was changed after the runs were begun, and a plan is fixed before the data;"
            " put it back, or begin a study with --claims and another --out"
        )
    _refuse_incomplete(study)
    verdicts = judge(ds, plan)
    rests_on = {"measurements": content_digest(ds), "plan": plan.digest}
    write_text(study.path / VERDICTS, verdicts_to_json(verdicts, **rests_on))
    return verdicts


def figures(study: Study, ds: xr.Dataset, reporter: Reporter) -> list[Path]:
    """Draw every figure as PDF and PNG; returns the files."""
    _refuse_incomplete(study)
    (study.figures / DRAWN).unlink(missing_ok=True)
    store.sweep(study.path)
    saved: list[Path] = []
    with reporter.stage("draw", len(FIGURES), "figures") as stage:
        for name, figure in FIGURES.items():
            saved += save(figure.draw(ds), study.figures / name)
            stage.advance(1, name)
    write_json(study.figures / DRAWN, {"measurements": content_digest(ds)})
    return saved


def report(study: Study, ds: xr.Dataset) -> Path:
    """Write the study as one self-contained page; returns the file."""
    _refuse_incomplete(study)
    images = {name: study.figures / f"{name}.png" for name in FIGURES}
    for image in images.values():
        if not image.exists():
            raise UserError(f"{image} is not drawn yet; run 'hessian-tools figures {study.path}' first")
    for part in stale(study, ds):
        raise UserError(
            f"the {part} of {study.path} rest on other measurements than are there now;"
            f" run 'hessian-tools {part.replace('verdicts', 'test')} {study.path}' first"
        )
    page = render(
        ds=ds,
        verdicts=open_verdicts(study.path),
        figures=images,
        setup=facts(study),
        command=command(study),
        notes=notes(study),
        step_size_table=step_size_table(study),
        confidence=plan_of(study).confidence,
    )
    write_text(study.path / REPORT, page)
    return study.path / REPORT


def _refuse_incomplete(study: Study) -> None:
    for learner, seed in study.runs:
        if not (study.run(learner, seed) / store.NAME).exists():
            raise UserError(
                f"{learner} seed {seed} is not measured yet, and a part of a study would pass for the whole;"
                f" run 'hessian-tools measure {study.path}' first"
            )
