"""The command line. Modules that import torch are imported inside the commands, so that help appears at once."""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from inspect import Parameter as InspectParameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, Token, UnusedCliTokensError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from analysis.claims import Verdict
    from analysis.engines.engine import Engine
    from analysis.engines.place import Place
    from analysis.progress import Reporter
    from analysis.study import Study


Trust = Annotated[
    bool,
    Parameter(
        negative="",  # there is no option --no-trust
        help="Import the modules and files that the study names (network, quantities, claims), which runs their code.",
    ),
]


def _whole_number(_: object, tokens: Sequence[Token]) -> int:
    """The number of a token, as a converter of cyclopts, which itself would round 1.5 to 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number; give one, such as 1") from None


WholeNumber = Annotated[int, Parameter(converter=_whole_number)]


@Parameter(name="*")  # each field is an option of the command, without the name of this class before it
@dataclass(frozen=True)
class ComputeOptions:
    """The options of every command that trains or measures."""

    workers: Annotated[
        WholeNumber | None,
        Parameter(
            help="Number of worker processes, with one thread each; 0 works in this process"
            " [default: one per core; 0 for a small study; on a card, one per learner that fits in its memory]."
        ),
    ] = None
    devices: Annotated[
        str | None,
        Parameter(
            help="Devices of this machine, e.g. cuda:0,cuda:1, with one worker process for each of them; a card that is"
            " listed twice has two, which share its memory."
        ),
    ] = None
    cluster: Annotated[
        Path | None,
        Parameter(help="File with the settings of a SLURM cluster, in whose jobs the work runs (docs/cluster.md)."),
    ] = None
    dask: Annotated[
        str | None, Parameter(help="Address of the scheduler of a Dask cluster on whose workers the work runs.")
    ] = None
    device: Annotated[
        Literal["cpu", "cuda"],
        Parameter(
            help="Where the tensors live; with cuda, all seeds of a learner are trained together on the first card, and"
            " several learners at once. --workers above the number of learners divides their seeds."
        ),
    ] = "cpu"
    trust: Trust = False
    yes: Annotated[
        bool,
        Parameter(negative="", help="Go on where the study would take over 10000 hours, or more memory than there is."),
    ] = False
    no_fsync: Annotated[
        bool,
        Parameter(
            negative="", help="Do not wait until each file is on the disk; a power cut may then cost finished work."
        ),
    ] = False

    @property
    def place(self) -> "Place":
        """Where the work runs."""
        from analysis.engines.place import Place, parse_devices

        return Place(self.workers, parse_devices(self.devices), self.cluster, self.dask)

    @property
    def kind_of_device(self) -> str:
        """The device of the study, "cpu" or "cuda"."""
        return self.place.device(self.device)

    def session(self, study: "Study") -> "AbstractContextManager[tuple[Engine, Reporter]]":
        """Lock the study's folder, and provide the engine that does the work, and the reporter."""
        from analysis.pipeline import session

        return session(study, place=self.place, progress=True, fsync=not self.no_fsync)


@Parameter(name="*")
@dataclass(frozen=True)
class BeginOptions:
    """The options of every command that can begin a study."""

    out: Annotated[Path | None, Parameter(help="Folder of the study [default: runs/NAME].")] = None
    seeds: Annotated[
        tuple[WholeNumber, ...] | None,
        Parameter(
            name=["--seeds", "--seed"],
            consume_multiple=True,
            help="Seeds, e.g. --seeds 0 1 2; more can be added later.",
        ),
    ] = None
    claims: Annotated[Path | None, Parameter(help="Plan of the claims of a new study [default: the bundled one].")] = (
        None
    )
    data: Annotated[
        Path | None,
        Parameter(help="Folder or file of images, or features (.npz), in place of the study's own data."),
    ] = None

    kept: Annotated[
        Path | None,
        Parameter(
            name="--from",
            help="Folder of kept results of this study, whose runs are not made again; or of a study whose trained "
            "networks are taken over, to be measured in another way.",
        ),
    ] = None

    dry_run: Annotated[
        bool,
        Parameter(
            negative="", help="Only check everything, and say what would be run, in what time and on how much disk."
        ),
    ] = False

    def prepare(self, source: Path, compute: ComputeOptions) -> "tuple[Study, str | None]":
        """Check the study; returns it and the text of its plan of the claims (None: the bundled plan)."""
        from analysis.pipeline import prepare

        given = vars(self) | {"data": None if self.data is None else str(self.data)}
        del given["dry_run"]  # the commands read this option themselves
        return prepare(source, **given, device=compute.kind_of_device, trust=compute.trust, yes=compute.yes)


# Paths rather than texts, so that a shell completes the names of files.
File = Annotated[
    Path,
    Parameter(help="A study's YAML file, a bundled study (demo, quickdraw, ...), or the folder of a study."),
]
Folder = Annotated[Path, Parameter(help="Folder of a study.")]
BEGIN, COMPUTE = BeginOptions(), ComputeOptions()

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
        *_, verdicts = pipeline.run(prepared, engine, reporter, plan=plan)
        _say_verdicts(verdicts, reporter)
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
    from analysis import pipeline
    from analysis.folder import measurements, open_folder

    opened = open_folder(folder, trust=trust)
    with pipeline.session(opened, progress=True) as (_, reporter):
        _say_verdicts(pipeline.test(opened, measurements(opened)), reporter)


@command
def figures(
    folder: Folder,
    *,
    only: Annotated[
        tuple[str, ...] | None,
        Parameter(consume_multiple=True, help="Names of figures, such as alpha_rho, or of variables."),
    ] = None,
    learners: Annotated[
        tuple[str, ...] | None, Parameter(consume_multiple=True, help="Learners that are shown [default: a selection].")
    ] = None,
    steps: Annotated[
        tuple[WholeNumber, ...] | None,
        Parameter(consume_multiple=True, help="Points of the inner loop [default: all]."),
    ] = None,
    width: Annotated[
        str | None,
        Parameter(help="Inches, single, double, icml, icml-full, neurips, iclr or jmlr [default: by panels]."),
    ] = None,
    labels: Annotated[
        tuple[str, ...] | None,
        Parameter(consume_multiple=True, help='Other names for learners, such as fomaml="first-order MAML".'),
    ] = None,
    format: Annotated[
        tuple[str, ...] | None, Parameter(consume_multiple=True, help="pdf, png, svg, or csv for the numbers.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="Folder of figures drawn with options [default: FOLDER/paper].")] = None,
) -> None:
    """Only draw the figures: those of the report, or, with any option, figures of your own beside them."""
    from analysis import pipeline
    from analysis.folder import measurements, open_folder
    from analysis.own_figures import own_figures

    opened = open_folder(folder)
    with pipeline.session(opened, progress=True) as (_, reporter):
        if (only, learners, steps, width, labels, format, out) == (None,) * 7:  # without any option
            paths = pipeline.figures(opened, measurements(opened), reporter)
        else:
            paths = own_figures(
                opened,
                reporter,
                only=only,
                formats=format or ("pdf", "png"),
                out=out or opened.path / "paper",
                learners=learners,
                steps=steps,
                width=width,
                labels=_labels_by_name(labels),
            )
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
    from analysis.errors import UserError
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
    from analysis import pipeline
    from analysis.folder import measurements, open_folder

    opened = open_folder(folder)
    with pipeline.session(opened, progress=True) as (_, reporter):
        reporter.say(str(pipeline.report(opened, measurements(opened))))


@command
def keep(folder: Folder, *, out: Annotated[Path, Parameter(help="Folder of kept results.")]) -> None:
    """Write what claims, figures and report need of each finished seed into a small folder for a repository."""
    from analysis import pipeline
    from analysis.folder import open_folder
    from analysis.keep import keep as keep_results

    opened = open_folder(folder)
    with pipeline.session(opened, progress=True) as (_, reporter):
        seeds = keep_results(opened, out, reporter)
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
        return _fail(_mistake(e), 2)
    except UserError as e:
        return _fail(with_notes(e), 2)
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on from here", 1)
    except BrokenPipeError:  # the process that read our output has ended, as ``head`` does
        # Python writes the rest of the output at its exit. This sends it to nowhere, where it causes no second error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        return _fail(with_notes(e, _describe(e)), 2)
    except Exception as e:
        status = _status(e)
        if status is None:
            raise
        return _fail(with_notes(e), status)
    return status if isinstance(status, int) else 0


def _mistake(error: CycloptsError) -> str:
    """The message on a command line that does not fit the command, with the command that shows the help."""
    command = " ".join(("hessian-tools", *(error.command_chain or ())))
    message = " ".join(str(error).split())
    if isinstance(error, UnusedCliTokensError):
        message = f"'{command}' takes no further argument, but got {' '.join(error.unused_tokens or ())}"
    elif isinstance(error, MissingArgumentError) and error.argument is not None:
        # The first clause of the option's or argument's help says what is missing.
        name, meaning = error.argument.name, (error.argument.parameter.help or "").partition(";")[0].removesuffix(".")
        is_option = error.argument.field_info.kind is InspectParameter.KEYWORD_ONLY
        lacking = f"{name} needs a value" if error.keyword else f"'{command}' needs {name if is_option else 'this'}"
        message = f"{lacking}: {meaning[:1].lower()}{meaning[1:]}"
    # A full stop is dropped before the semicolon, but not the three dots of a list that goes on.
    return f"{message if message.endswith('...') else message.removesuffix('.')}; see {command} --help"


def _describe(error: OSError) -> str:
    """The message on an error of the operating system."""
    if error.filename is None and error.errno != errno.ENOSPC:
        return f"{error.strerror or error}; run the same command again, which goes on from here"
    place = error.filename or "the study folder"
    if error.errno == errno.ENOSPC:
        return f"no space left on the device ({place}); free some and run the same command"
    return f"{place}: {error.strerror or error}; correct that, or choose another --out"


def _status(error: Exception) -> int | None:
    """The exit status of an error that is not a fault of this program; None for a fault of this program."""
    from analysis.claims import NotMeasuredError, PlanError
    from analysis.engines.remote import UnitFailed
    from analysis.errors import UserError
    from hessian_tools.loss import HiddenStateError
    from hessian_tools.runs.files import DamagedFileError, FolderInUseError
    from hessian_tools.runs.manifest import ForeignRunError
    from hessian_tools.runs.worker_pool import WorkerLost

    if isinstance(error, WorkerLost):
        return 1
    if isinstance(error, UnitFailed):
        return _status(error.error) or 1
    mistakes = (UserError, NotMeasuredError, HiddenStateError, PlanError)
    unusable_files = (DamagedFileError, ForeignRunError, FolderInUseError)
    return 2 if isinstance(error, (*mistakes, *unusable_files)) else None


def _labels_by_name(labels: "Sequence[str] | None") -> dict[str, str] | None:
    """The labels of learners by the learners' names, from words such as ``fomaml=first-order MAML``."""
    from analysis.errors import UserError

    for word in labels or ():
        if "=" not in word:
            raise UserError(f'--labels {word}: give a name and its label, such as {word}="first-order MAML"')
    return None if labels is None else dict(word.split("=", 1) for word in labels)


def _say_dry_run(study: "Study", plan: str | None, compute: ComputeOptions, *, only_train: bool = False) -> None:
    from analysis.dry_run import dry_run
    from analysis.engines.engine import open_engine

    lines = list(dry_run(study, open_engine(study, compute.place), plan=plan, only_train=only_train))
    print("\n".join(lines))


def _say_verdicts(verdicts: "Sequence[Verdict]", reporter: "Reporter") -> None:
    from analysis.claims import summary, verdict_lines

    for line in [*verdict_lines(verdicts), *summary(verdicts)]:
        reporter.say(line)


def _fail(text: str, status: int) -> int:
    from analysis.errors import shortened

    print(shortened(f"hessian-tools: {text}"), file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
