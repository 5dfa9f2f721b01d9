"""The command line. Heavy imports wait until a command runs, so that help is instant."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

if TYPE_CHECKING:
    from analysis.claims import Verdict
    from analysis.folder import StudyFolder
    from analysis.progress import Reporter
    from analysis.study import Resources

Out = Annotated[Path | None, Parameter(name="--out", help="Folder of the study [default: runs/NAME].")]
Seeds = Annotated[
    tuple[int, ...] | None,
    Parameter(
        name=["--seeds", "--seed"], consume_multiple=True, help="Seeds, e.g. --seeds 0 1 2; more can be added later."
    ),
]
Claims = Annotated[
    Path | None, Parameter(name="--claims", help="Plan of the claims of a new study [default: the bundled one].")
]
Data = Annotated[
    str | None,
    Parameter(name="--data", help="Folder or file of images, or features (.npz), in place of the study's own data."),
]
Workers = Annotated[
    int | None,
    Parameter(
        name="--workers",
        help="Processes, one thread each; 0: in this one [default: one per core; 0 for a small study].",
    ),
]
Device = Annotated[Literal["cpu", "cuda"], Parameter(name="--device", help="Where the tensors live.")]
Folder = Annotated[Path, Parameter(help="Folder of a study.")]

app = App(
    name="hessian-tools",
    help="Does meta-learning suppress the Hessian along its inner loop, and does SHOT? Train, measure, test, draw.",
    version_flags=["--version"],
    help_on_error=False,
    suppress_keyboard_interrupt=False,  # answered below, in our words
)


@app.command
def demo(
    *, out: Out = None, seeds: Seeds = None, data: Data = None, workers: Workers = None, device: Device = "cpu"
) -> None:
    """The bundled study, minutes on two cores; the same command resumes it."""
    study("demo", out=out, seeds=seeds, data=data, workers=workers, device=device)


@app.command
def study(
    file: Annotated[str, Parameter(help="A study's YAML file, a bundled study (demo, quickdraw, ...), or its folder.")],
    *,
    out: Out = None,
    seeds: Seeds = None,
    claims: Claims = None,
    data: Data = None,
    workers: Workers = None,
    device: Device = "cpu",
) -> None:
    """Train, record, measure, test, draw and report; resumes where it stopped."""
    from analysis import study as parts
    from analysis.folder import begin

    place, plan = _checked(file, out, seeds, claims, data)

    def work(folder: "StudyFolder", say: "Reporter", resources: "Resources") -> None:
        begin(folder, claims=plan)
        _tell_data(folder, say)
        verdicts = parts.run(folder, say, resources)
        _tell(verdicts, say)
        say.say(f"report: {folder.path / 'report.html'}")

    _in_folder(place, work, workers, device)


@app.command
def train(
    file: Annotated[str, Parameter(help="A study's YAML file, a bundled study, or the folder of one.")],
    *,
    out: Out = None,
    seeds: Seeds = None,
    claims: Claims = None,
    data: Data = None,
    workers: Workers = None,
    device: Device = "cpu",
) -> None:
    """Only train; checkpoints are kept and an interrupted run goes on."""
    from analysis import study as parts
    from analysis.folder import begin

    place, plan = _checked(file, out, seeds, claims, data)

    def work(folder: "StudyFolder", say: "Reporter", resources: "Resources") -> None:
        begin(folder, claims=plan)
        _tell_data(folder, say)
        parts.train(folder, say, resources)

    _in_folder(place, work, workers, device)


@app.command
def measure(folder: Folder, *, workers: Workers = None, device: Device = "cpu") -> None:
    """Only record the inner loops and measure the curvature along them."""
    from analysis import study as parts
    from analysis.folder import open_folder

    _in_folder(open_folder(folder), parts.measure, workers, device)


@app.command
def test(folder: Folder) -> None:
    """Only the verdicts, from measurements that exist."""
    from analysis import study as parts
    from analysis.folder import open_folder, open_study

    def work(found: "StudyFolder", say: "Reporter", _: object) -> None:
        _tell(parts.test(found, open_study(found.path)), say)

    _in_folder(open_folder(folder), work, 0, "cpu")


@app.command
def figures(folder: Folder) -> None:
    """Only the figures, as PDF and PNG."""
    from analysis import study as parts
    from analysis.folder import open_folder, open_study

    def work(found: "StudyFolder", say: "Reporter", _: object) -> None:
        _list(parts.figures(found, open_study(found.path), say), say)

    _in_folder(open_folder(folder), work, 0, "cpu")


@app.command
def report(folder: Folder) -> None:
    """Only report.html, from verdicts and figures that exist."""
    from analysis import study as parts
    from analysis.folder import open_folder, open_study

    def work(found: "StudyFolder", say: "Reporter", _: object) -> None:
        _list([parts.report(found, open_study(found.path))], say)

    _in_folder(open_folder(folder), work, 0, "cpu")


@app.command
def info(path: Folder) -> None:
    """What a study's folder holds and how far it is."""
    from analysis.folder import open_folder
    from analysis.inventory import describe

    for line in list(describe(open_folder(path))):  # all of it, or an error alone
        print(line)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit status 0 done, 1 interrupted or failed, 2 a mistake in what was asked."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """The exit status of one command line; mistakes are told in at most two lines on standard error."""
    from analysis.errors import UserError

    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        return _fail(" ".join(str(e).split()) + "; see hessian-tools --help", 2)
    except UserError as e:
        return _fail(str(e), 2)
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on from here", 1)
    except BrokenPipeError:  # the reader of a pipe has left; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        return _fail(_told(e), 2)
    except _lost() as e:
        return _fail(str(e), 1)
    except _mistakes() as e:
        return _fail(str(e), 2)
    return 0


def _told(error: OSError) -> str:
    place = error.filename or "the study folder"
    if error.errno == errno.ENOSPC:
        return f"no space left on the device ({place}); free some and run the same command"
    return f"{place}: {error.strerror or error}; mend that, or choose another --out"


def _lost() -> type[Exception]:
    from hessian_tools.runs.worker_pool import WorkerLost

    return WorkerLost


def _mistakes() -> tuple[type[Exception], ...]:
    """Errors that are about what the user gave, not about this program. Called only when one was raised."""
    from analysis.claims import NotMeasuredError, PlanError
    from hessian_tools.loss import HiddenStateError
    from hessian_tools.runs.files import DamagedFileError
    from hessian_tools.runs.manifest import ForeignRunError

    return NotMeasuredError, HiddenStateError, PlanError, DamagedFileError, ForeignRunError


def _checked(
    source: str, out: Path | None, seeds: tuple[int, ...] | None, claims: Path | None, data: str | None
) -> tuple["StudyFolder", str | None]:
    """The study's folder and the plan of its claims: everything is checked, nothing written yet."""
    from analysis.claims import load_plan
    from analysis.folder import STUDY, plan_folder
    from analysis.setting import check
    from analysis.study_file import load_study, overridden, with_data

    place = Path(source)
    if (place / STUDY).is_file():  # a study's own folder: go on there
        out, source = out or place, str(place / STUDY)
    config = overridden(with_data(load_study(source), data), {"seeds": seeds})
    check(config)
    if claims is not None and not claims.is_file():
        raise _user_error(f"there is no plan of the claims {claims}; start from a copy of analysis/claims/claims.yaml")
    load_plan(claims).check_steps(config.inner.steps)
    plan = claims.read_text(encoding="utf-8") if claims else None
    return plan_folder(config, out or Path("runs") / config.name), plan


def _in_folder(
    folder: "StudyFolder",
    work: Callable[["StudyFolder", "Reporter", "Resources"], object],
    workers: int | None,
    device: str,
) -> None:
    from analysis.folder import locked
    from analysis.progress import reporter
    from analysis.study import Resources, small
    from hessian_tools.runs.worker_pool import WorkerPool, available_cores

    if workers is not None and workers < 0:
        raise _user_error(f"--workers {workers} must be 0 (this process) or a number of processes")
    _refuse_missing_device(device)
    if workers is None:
        workers = 0 if device == "cuda" or small(folder.config) else available_cores()
    with locked(folder.path), WorkerPool(workers) as crew:
        work(folder, reporter(), Resources(crew, device))


def _refuse_missing_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise _user_error("--device cuda: this torch sees no CUDA device; use --device cpu, or install a CUDA build")


def _user_error(text: str) -> Exception:
    from analysis.errors import UserError

    return UserError(text)


def _tell_data(folder: "StudyFolder", say: "Reporter") -> None:
    """What was found where the user pointed, and how it is divided."""
    from analysis.setting import tasks
    from hessian_tools.data import summary

    if folder.config.data.path or folder.config.data.test_path:
        say.say(f"data: {summary(tasks(folder.config))}")


def _tell(verdicts: "list[Verdict]", say: "Reporter") -> None:
    from analysis.claims import verdict_lines

    for line in verdict_lines(verdicts):
        say.say(line)


def _list(paths: list[Path], say: "Reporter") -> None:
    for path in paths:
        say.say(str(path))


def _fail(text: str, status: int) -> int:
    print(f"hessian-tools: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
