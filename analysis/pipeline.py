"""Runs the parts of a study in their order: train, measure, test the claims, draw and report.

Training and measuring go on where they were stopped; the other parts are done anew. In names such as ``own_claims``,
own means made by the user.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import xarray as xr

from analysis import folder, store
from analysis.claims import Verdict, judge, load_plan, unjudged, verdicts_to_json
from analysis.claims.verdict import counted
from analysis.config import StudyConfig
from analysis.cost import refuse_above_limits
from analysis.drawing.figures import figures_of, save
from analysis.drawing.forest import forest
from analysis.engines.engine import Engine, open_engine
from analysis.engines.place import THIS_PROCESS, Place, parse_devices
from analysis.engines.remote import end_earlier_jobs
from analysis.errors import UserError
from analysis.explorer.explorer import study_page
from analysis.folder import measurements, open_verdicts, plan_of
from analysis.measure import measure, try_own_quantities
from analysis.own_figures import FOREST
from analysis.progress import ProgressOption, Reporter, reporter_for
from analysis.record import with_record
from analysis.report import render
from analysis.setup_facts import command, facts, notes
from analysis.study import Study, check
from analysis.study_file import load_study, overridden, study_of, with_data, with_own_files
from analysis.training import refuse_changed_data, refuse_other_training, step_size_table, train
from analysis.verify import (
    mend,
    refuse_changed_figures,
    refuse_changed_plan,
    refuse_damaged_training,
    refuse_incomplete,
)
from hessian_tools.data import summary
from hessian_tools.runs.files import file_digest, without_fsync, write_json, write_text

MAX_VERDICTS = 12
"""The largest number of verdicts that a notebook shows of a study, because a large study has hundreds."""

Source = str | Path | StudyConfig | Mapping[str, Any]


@dataclass(frozen=True)
class StudyResult:
    """A finished study: its folder, all its measurements (as from ``open_study``), and the verdicts on the claims."""

    path: Path
    dataset: xr.Dataset
    verdicts: tuple[Verdict, ...]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{size} {dim}" for dim, size in self.dataset.sizes.items() if dim in ("learner", "seed"))
        return f"StudyResult({str(self.path)!r}, {sizes}; verdicts: {counted(self.verdicts) or 'none'})"

    def _repr_html_(self) -> str:
        rows = "".join(verdict._repr_html_() for verdict in self.verdicts[:MAX_VERDICTS])
        more = f"<div>and {len(self.verdicts) - MAX_VERDICTS} more</div>" if len(self.verdicts) > MAX_VERDICTS else ""
        return f"<div><div>{escape(repr(self))}</div>{rows}{more}<div>report: {escape(str(self.report))}</div></div>"

    @property
    def report(self) -> Path:
        """The file of the report, a page of HTML."""
        return self.path / folder.REPORT


def run_study(
    source: Source,
    *,
    out: str | Path | None = None,
    seeds: tuple[int, ...] | None = None,
    claims: str | Path | None = None,
    data: str | None = None,
    kept: str | Path | None = None,
    workers: int | None = None,
    devices: str | Sequence[str] | None = None,
    cluster: str | Path | None = None,
    dask: str | None = None,
    device: str = "cpu",
    trust: bool = False,
    yes: bool = False,
    fsync: bool = True,
    progress: ProgressOption = None,
) -> StudyResult:
    """Train, measure, test, draw and report a study; the same call goes on where an earlier one was stopped.

    To test is to judge the claims about the learners from the measurements.

    source: a YAML file, the name of a bundled study (such as demo or micro), the folder of a study, or the settings
        themselves, as nested mappings or a ``StudyConfig``.
    out: the folder of the study; by default runs/NAME.
    seeds: seeds in place of those in ``source``; more can be added to a study later.
    claims: the file with the plan of the claims for a new study; by default the bundled plan.
    data: the path of images or features that replace the study's own data.
    kept: a folder of kept results of this study, as ``hessian-tools keep`` writes it, whose runs are not made again; or
        the folder of a study whose trained networks are taken over, to be measured in another way.
    workers: the number of worker processes, of one thread each, or 0 to work in the present process. The default is 0
        for a small study. For others it is the number of cores. On a GPU, where the runs of a learner are trained
        together, it is the number of learners, at most one for each 16 GiB of the GPU's memory; fewer than two workers
        become 0. A number that is given divides the runs of a learner until every worker has some. A script that uses
        processes needs ``if __name__ == "__main__":``.
    devices: devices of this machine, such as "cuda:0,cuda:1", with a worker process for each of them; those on the same
        device share its memory.
    cluster: the file with the settings of a cluster, in whose jobs the study trains and measures; docs/cluster.md has
        one. It needs the extra "cluster".
    dask: the address of the scheduler of a Dask cluster whose workers train and measure. It needs the extra "dask".
        At most one of ``workers``, ``devices``, ``cluster`` and ``dask`` can be given.
    device: "cpu" or "cuda".
    trust: whether the modules and files that the study names, of a network, of quantities or of claims, may be
        imported, which runs their code.
    yes: whether a study is run that would take more time or memory than the limits in ``analysis.cost``.
    fsync: whether to wait until each file is on the disk, so that a power cut loses no finished work.
    progress: None for silence, True for bars or lines on standard output, or a function that is called with
        (done, total) of the part that is at work.

    Raises UserError for a mistake in the arguments, before anything is written. An error on another machine is raised
    as ``analysis.engines.remote.UnitFailed``.
    """
    place = Place(workers, parse_devices(devices), Path(cluster) if cluster is not None else None, dask)
    device = place.device(device)
    study, plan = prepare(
        source, out=out, seeds=seeds, claims=claims, data=data, kept=kept, device=device, trust=trust, yes=yes
    )
    with session(study, place=place, progress=progress, fsync=fsync) as (engine, report_progress):
        study, ds, verdicts = run(study, engine, report_progress, plan=plan)
    return StudyResult(study.path, ds, tuple(verdicts))


def prepare(
    source: Source,
    *,
    out: str | Path | None = None,
    seeds: tuple[int, ...] | None = None,
    claims: str | Path | None = None,
    data: str | None = None,
    kept: str | Path | None = None,
    device: str = "cpu",
    trust: bool = False,
    yes: bool = False,
) -> tuple[Study, str | None]:
    """Check everything that was asked for, and return the study and the text of its plan (None: the bundled plan).

    Nothing is written. The arguments are those of :func:`run_study`.
    """
    if isinstance(source, str | Path) and (Path(source) / folder.STUDY).is_file():
        out, source = out or source, Path(source) / folder.STUDY  # a study that is named by its folder goes on there
    if isinstance(source, str | Path):
        config = load_study(source)
    else:
        config = source if isinstance(source, StudyConfig) else study_of(source)
        config = with_own_files(config, Path.absolute)
    config = overridden(with_data(config, data), {"seeds": seeds})
    study = folder.study_in_folder(config, Path(out or Path("runs") / config.name), device=device, trust=trust)
    if kept is not None:
        study = folder.going_on_from(study, Path(kept))
    if not yes:
        refuse_above_limits(study)
    check(study)
    try_own_quantities(study)
    if kept is not None:
        # The study may go on only from results on the same data, so this checks all runs and not only those to make.
        refuse_changed_data(study, study.runs)
        refuse_other_training(study)
    if claims is not None and not Path(claims).is_file():
        raise UserError(f"there is no plan of the claims {claims}; start from a copy of analysis/claims/claims.yaml")
    load_plan(claims).check_steps(config.inner.steps)
    folder.refuse_occupied(study)
    return study, Path(claims).read_text(encoding="utf-8") if claims else None


@contextmanager
def session(
    study: Study, *, place: Place = THIS_PROCESS, progress: ProgressOption, fsync: bool = True
) -> Iterator[tuple[Engine, Reporter]]:
    """Lock the study's folder and provide the engine of the place and the reporter for the parts of the study."""
    engine = open_engine(study, place)  # first, so that a mistake in the place is told before anything is written
    with nullcontext() if fsync else without_fsync(), folder.locked(study.path), engine as opened:
        end_earlier_jobs(study.path)
        store.remove_half_written(study.path)  # what a killed command has left
        yield opened, reporter_for(progress)


def run(
    study: Study, engine: Engine, reporter: Reporter, *, plan: str | None = None
) -> tuple[Study, xr.Dataset, list[Verdict]]:
    """Do all parts of a study in their order; what is complete is not trained or measured again."""
    # ``mend`` sets damaged files aside, so that they are made again. It needs the files that ``begin`` writes, and must
    # not run if the data were changed, so both come first. ``start`` calls both once more, to no effect here, because
    # the command ``train`` calls it alone.
    folder.begin(study, claims=plan)
    refuse_changed_data(study, study.runs)
    mend(study, reporter)
    study = start(study, engine, reporter, plan=plan)
    measure(study, engine, reporter)
    ds = measurements(study)
    verdicts = test(study, ds)
    figures(study, ds, reporter)
    report(study, ds)
    return study, ds, verdicts


def start(study: Study, engine: Engine, reporter: Reporter, *, plan: str | None = None) -> Study:
    """Write the first files of the study's folder, and train. Returns the study with its inner step size.

    The given study has no step size if that is still to be searched for, which is a part of training.
    """
    folder.begin(study, claims=plan)
    refuse_changed_data(study, study.runs)
    if study.config.data.path or study.config.data.test_path:
        reporter.say(f"data: {summary(study.problem.tasks)}")
    refuse_damaged_training(study)
    return train(study, engine, reporter)


def test(study: Study, ds: xr.Dataset) -> list[Verdict]:
    """Judge the claims from the measurements by the plan that was fixed before, and write the verdicts to a file."""
    plan = plan_of(study)
    refuse_changed_plan(study)
    refuse_incomplete(study)
    verdicts = judge(ds, plan, study.own_claims)
    made_from = {"measurements": folder.content_digest(ds), "plan": plan.digest}
    write_text(study.path / folder.VERDICTS, verdicts_to_json(verdicts, **made_from))
    return verdicts


def figures(study: Study, ds: xr.Dataset, reporter: Reporter) -> list[Path]:
    """Draw every figure for which the study has measurements, as PDF and PNG; returns the files.

    Beside each is a CSV file with its numbers.
    """
    refuse_incomplete(study)
    (study.figures / folder.DRAWN).unlink(missing_ok=True)  # until all are drawn, the figures count as stale
    saved: list[Path] = []
    drawable = figures_of(ds)
    with reporter.stage("draw", len(drawable), "figures") as advance:
        for name, figure in drawable.items():
            saved += save(figure(ds), study.figures / name)
            saved.append(figure.save_data(ds, study.figures / name))
            advance(1, name)
    drawn = {path.name: file_digest(path) for path in saved}
    write_json(study.figures / folder.DRAWN, {"measurements": folder.content_digest(ds), "files": drawn})
    return saved


def report(study: Study, ds: xr.Dataset) -> Path:
    """Write the study as one self-contained page, and the explorer's page beside it; returns the file of the first.

    The figure of all verdicts is drawn here too, because it shows the verdicts and not the measurements.
    """
    refuse_incomplete(study)
    # A study whose results are all kept can be reported without its data, so the data are not opened for kept runs.
    refuse_changed_data(study, study.runs_to_measure)
    images = {name: study.figures / f"{name}.png" for name in figures_of(ds)}
    for image in images.values():
        if not image.exists():
            raise UserError(f"{image} is not drawn yet; run 'hessian-tools figures {study.path}' first")
    stale = [part for part in folder.stale_parts(study, ds) if part != "report"]
    if stale:
        raise UserError(
            f"the {stale[0]} of {study.path} rest on other measurements than the present ones;"
            f" run 'hessian-tools {folder.command_of(stale[0])} {study.path}' first"
        )
    refuse_changed_figures(study)
    plan, verdicts = plan_of(study), open_verdicts(study.path)
    kept = (study.path / folder.README).exists()  # the pages of kept results must stay small
    effects = None
    if forest.needs(verdicts) is None:
        *_, effects = save(forest(verdicts), study.figures / FOREST, formats=("pdf", "svg"))
        forest.save_data(verdicts, study.figures / FOREST)
    page = render(
        ds=ds,
        verdicts=verdicts,
        figures=images,
        effects=effects,
        setup=facts(study),
        command=command(study),
        notes=notes(study),
        step_size_table=step_size_table(study),
        confidence=plan.confidence,
        config=study.config,
        embed=not kept,
        explorer=None if kept else _write_explorer(study, ds),
        unjudged=unjudged(ds, plan, verdicts, extra=study.config.claims),
    )
    rests_on = {"measurements": folder.content_digest(ds), **folder.report_basis(study)}
    write_text(study.path / folder.REPORT, with_record(page, **rests_on))
    return study.path / folder.REPORT


def _write_explorer(study: Study, ds: xr.Dataset) -> str | None:
    """Write the explorer's page beside the report; its name, or None where no quantity has a value to explore."""
    try:
        write_text(study.path / folder.EXPLORER, study_page(ds, study.path))
    except ValueError:
        return None
    return folder.EXPLORER
