"""The command line. Modules that import torch are imported inside the commands, so that help appears at once."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter

from analysis.command_errors import describe_os_error, exit_status, wrong_command
from analysis.command_options import BeginOptions, ComputeOptions, FigureOptions, File, Folder, Trust
from analysis.errors import UserError, shortened

if TYPE_CHECKING:
    import xarray as xr

    from analysis.claims import Verdict
    from analysis.progress import Reporter
    from analysis.study import Study

BEGIN, COMPUTE, FIGURES = BeginOptions(), ComputeOptions(), FigureOptions()

NEXT = """What to do next:
  hessian-tools demo               run a small study, which takes minutes
  hessian-tools new NAME           write NAME.yaml, a study to start from
  hessian-tools study NAME.yaml    run it, or with --dry-run say what it takes
  hessian-tools info runs/NAME     how far it is, and which command comes next
  hessian-tools explore runs/NAME  a page with sliders over its measurements
In Python: notebooks/01_quick_start.ipynb. The documentation: docs/index.md."""

app = App(
    name="hessian-tools",
    help="Does meta-learning suppress the Hessian along its inner loop, and does SHOT? Train, measure, test, draw.",
    help_epilogue=NEXT,
    help_format="plaintext",  # the lines of NEXT stay lines
    default_parameter=Parameter(negative_iterable=()),  # no --empty-seeds
    version=lambda: version("hessian-tools"),
    version_flags=["--version"],
    help_on_error=False,
    suppress_keyboard_interrupt=False,  # run() below answers it with a message
)
# Only the help of the whole program ends in NEXT.
command = partial(app.command, help_epilogue="")

app.register_install_completion_command(
    help="Let bash, zsh or fish complete commands, options and files; adds a line to its startup file.",
    help_epilogue="",
)


@command
def new(name: Annotated[Path, Parameter(help="Name of the study, or its YAML file.")]) -> None:
    """Write a commented study to start from."""
    from analysis.study_file import new_study

    path = new_study(name)
    print(f"{path}: change it as you like, then run: hessian-tools study {path}")


@command
def demo(*, begin: BeginOptions = BEGIN, compute: ComputeOptions = COMPUTE) -> None:
    """Run the bundled study, which takes minutes on two cores; the same command resumes it."""
    study(Path("demo"), begin=begin, compute=compute)


@command
def study(file: File, *, begin: BeginOptions = BEGIN, compute: ComputeOptions = COMPUTE) -> None:
    """Train, record, measure, test, draw and report; resume where an earlier command stopped."""
    from analysis import pipeline
    from analysis.status import seeds_line

    prepared, plan = begin.prepare(file, compute)
    if begin.dry_run:
        return _say_dry_run(prepared, plan, compute)
    with compute.session(prepared) as (engine, reporter):
        _, ds, verdicts = pipeline.run(prepared, engine, reporter, plan=plan)
        _say_verdicts(verdicts, ds, reporter)
        if (seeds := seeds_line(prepared, verdicts)) is not None:
            reporter.say(seeds)
        reporter.say(f"report: {prepared.path / 'report.html'}")


@command
def train(file: File, *, begin: BeginOptions = BEGIN, compute: ComputeOptions = COMPUTE) -> None:
    """Only train; checkpoints are kept, and an interrupted run goes on."""
    from analysis import pipeline

    prepared, plan = begin.prepare(file, compute)
    if begin.dry_run:
        return _say_dry_run(prepared, plan, compute, only_train=True)
    with compute.session(prepared) as (engine, reporter):
        pipeline.start(prepared, engine, reporter, plan=plan)


@command
def measure(folder: Folder, *, compute: ComputeOptions = COMPUTE) -> None:
    """Only record the inner loops and measure the curvature along them."""
    from analysis import pipeline
    from analysis.cost import refuse_above_limits
    from analysis.folder import open_folder

    opened = open_folder(folder, device=compute.kind_of_device, trust=compute.trust)
    if not compute.yes:
        refuse_above_limits(opened)
    with compute.session(opened) as (engine, reporter):
        pipeline.measure(opened, engine, reporter)


@command
def test(folder: Folder, *, trust: Trust = False) -> None:
    """Only judge the claims, from measurements that exist."""
    from analysis.folder import measurements
    from analysis.pipeline import test

    with _at_work(folder, trust=trust) as (study, reporter):
        ds = measurements(study)
        _say_verdicts(test(study, ds), ds, reporter)


@command
def figures(
    folder: Folder,
    *,
    options: FigureOptions = FIGURES,
) -> None:
    """Only draw the figures: those of the report, or, with any option, figures of your own beside them."""
    from analysis.folder import measurements
    from analysis.pipeline import figures

    with _at_work(folder) as (study, reporter):
        is_own = options != FIGURES
        paths = options.draw(study, reporter) if is_own else figures(study, measurements(study), reporter)
        for path in paths:
            reporter.say(str(path))


@command
def explore(
    folder: Folder,
    *,
    out: Annotated[Path | None, Parameter(help="The page [default: FOLDER/explorer.html].")] = None,
    only: Annotated[
        tuple[str, ...] | None,
        Parameter(consume_multiple=True, help="Quantities that can be chosen, such as alpha_rho [default: all]."),
    ] = None,
) -> None:
    """Write an interactive page of the measurements so far: one file, which needs neither a server nor a network."""
    from analysis.explorer.explorer import explore as explore_study
    from analysis.folder import EXPLORER

    try:
        shown = explore_study(folder, variables=only)
    except ValueError as e:
        raise UserError(str(e)) from None
    print(f"page: {shown.save(out or folder / EXPLORER)}")
    if shown.left_out:
        print(f"left out, as all would be too large: {', '.join(shown.left_out)}; --only chooses")


@command
def report(folder: Folder) -> None:
    """Only write report.html, from verdicts and figures that exist."""
    from analysis.folder import measurements
    from analysis.pipeline import report

    with _at_work(folder) as (study, reporter):
        reporter.say(str(report(study, measurements(study))))


@command
def keep(folder: Folder, *, out: Annotated[Path, Parameter(help="Folder of kept results.")]) -> None:
    """Write what claims, figures and report need of each finished seed into a small folder for a repository."""
    from analysis.keep import keep

    with _at_work(folder) as (study, reporter):
        seeds = keep(study, out, reporter)
        reporter.say(f"kept: seed {', '.join(map(str, seeds))} in {out}; next: hessian-tools test {out}")


@command
def compare(
    *folders: Folder,
    out: Annotated[Path | None, Parameter(help="Folder of comparison.html and .json, primary.md, figures.")] = None,
) -> None:
    """Put the verdicts of several studies side by side, and with --out write them and their figures as one page."""
    from analysis.compare import compare as compare_studies
    from analysis.compare import lines, write

    comparison = compare_studies(folders)
    for line in lines(comparison):
        print(line)
    if out is not None:
        print(f"page: {write(comparison, out)}")


@command
def info(path: Annotated[Path, Parameter(help="Folder of a study or of a run.")]) -> None:
    """Explain a study or a run: what it is, how far it is, its times and sizes, and which command comes next."""
    from analysis.folder import STUDY, open_folder
    from analysis.status import describe, describe_run, study_above
    from hessian_tools.runs.manifest import NAME as MANIFEST

    if (path / MANIFEST).is_file() and not (path / STUDY).is_file():
        above = study_above(path)
        lines = describe_run(path, None if above is None else open_folder(above))
    else:
        lines = describe(open_folder(path))
    for line in list(lines):  # a list, so that an error comes before any line is printed
        print(line)


@command
def verify(folder: Folder) -> int:
    """Check every file of a study; a line for each fault says what to do. Exit status 0: no fault, 1: a fault."""
    from analysis.folder import open_folder
    from analysis.verify import faults

    lines = list(faults(open_folder(folder)))
    print("\n".join(lines) or f"{folder}: nothing is missing, damaged, changed or out of date")
    return 1 if lines else 0


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Its exit status is 0: done, 1: interrupted or failed, 2: a mistake in what was asked."""
    # SIGTERM, by which a job scheduler ends a command, has the effect of Ctrl-C, so that the workers are ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit status; a mistake is told in at most two lines on standard error."""
    from analysis.errors import UserError, with_notes

    try:
        status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        return _fail(wrong_command(e), 2)
    except UserError as e:
        return _fail(with_notes(e), 2)
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on from here", 1)
    except BrokenPipeError:  # the process that read our output has ended, as ``head`` does
        # Python writes the rest of the output at its exit. This sends it to nowhere, where it causes no second error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        return _fail(with_notes(e, describe_os_error(e)), 2)
    except Exception as e:
        status = exit_status(e)
        if status is None:
            raise
        return _fail(with_notes(e), status)
    return status if isinstance(status, int) else 0


@contextmanager
def _at_work(folder: Path, *, trust: bool = False) -> "Iterator[tuple[Study, Reporter]]":
    """Open a study's folder, and lock it for a command that neither trains nor measures."""
    from analysis.folder import open_folder
    from analysis.pipeline import session

    study = open_folder(folder, trust=trust)
    with session(study, progress=True) as (_, reporter):
        yield study, reporter


def _say_dry_run(study: "Study", plan: str | None, compute: ComputeOptions, *, only_train: bool = False) -> None:
    from analysis.dry_run import dry_run
    from analysis.engines.engine import open_engine

    lines = list(dry_run(study, open_engine(study, compute.place), plan=plan, only_train=only_train))
    print("\n".join(lines))


def _say_verdicts(verdicts: "Sequence[Verdict]", ds: "xr.Dataset", reporter: "Reporter") -> None:
    from analysis.claims import summary, verdict_lines
    from analysis.schema import plain_learners

    for line in [*verdict_lines(verdicts), *summary(verdicts, plain_learners(ds))]:
        reporter.say(line)


def _fail(text: str, status: int) -> int:
    print(shortened(f"hessian-tools: {text}"), file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
