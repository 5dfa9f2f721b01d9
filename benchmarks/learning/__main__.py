"""``python -m benchmarks.learning``: run an experiment, or make the page. Heavy imports wait for the run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

Out = Annotated[Path, Parameter(help="Folder for checkpoints and decoded images; the same folder resumes.")]
Results = Annotated[Path, Parameter(help="Folder for the numbers that are kept, the figures and the page.")]
Seeds = Annotated[tuple[int, ...], Parameter(consume_multiple=True, help="Seeds; more may be added later.")]
Quick = Annotated[bool, Parameter(negative="", help="Seconds, to see that all works; proves nothing.")]
OUT, RESULTS = Path("runs/learning"), Path("docs/results")

app = App(
    name="python -m benchmarks.learning",
    help="Meta-train on real data and judge on held-out classes. Every command resumes where it was stopped.",
    version_flags=[],
)


@app.command
def regression(*, seeds: Seeds = (0, 1), out: Out = OUT, results: Results = RESULTS, quick: Quick = False) -> None:
    """Sines and lines, first-order MAML, the authors' recipe, with and without SHOT."""
    _run("regression", None, seeds, out, results, quick)


@app.command
def omniglot(
    place: Path, *, seeds: Seeds = (0,), out: Out = OUT, results: Results = RESULTS, quick: Quick = False
) -> None:
    """5-way 1-shot MAML, judged on the 659 official evaluation characters. PLACE: the folder with Omniglot's zips."""
    _run("omniglot", place, seeds, out, results, quick)


@app.command
def quickdraw(*, seeds: Seeds = (0, 1), out: Out = OUT, results: Results = RESULTS, quick: Quick = False) -> None:
    """The bundled drawings: every learner under one budget, with and without SHOT."""
    _run("quickdraw", None, seeds, out, results, quick)


@app.command(name="cifar-fs")
def cifar_fs(
    place: Path, *, seeds: Seeds = (0,), out: Out = OUT, results: Results = RESULTS, quick: Quick = False
) -> None:
    """CIFAR-FS: four learners under one budget, with and without SHOT. PLACE: the folder with its zip."""
    _run("cifar-fs", place, seeds, out, results, quick)


@app.command
def transfer(
    *,
    omniglot: Annotated[Path | None, Parameter(help="Folder with Omniglot.")] = None,
    cifar_fs: Annotated[Path | None, Parameter(help="Folder with CIFAR-FS.")] = None,
    tasks: Annotated[int, Parameter(help="Test tasks of each pair.")] = 300,
    out: Out = OUT,
    results: Results = RESULTS,
) -> None:
    """What was trained on one set, judged on the test classes of the others; after the experiments have run."""
    from benchmarks.learning.transfer import judge_elsewhere

    _tell(lambda: judge_elsewhere({"omniglot": omniglot, "cifar-fs": cifar_fs}, tasks=tasks, out=out, results=results))


@app.command
def page(*, results: Results = RESULTS) -> None:
    """Draw the figures and write the page again, from the JSON files alone."""
    from benchmarks.learning.page import write_page

    _tell(lambda: write_page(results))


def _run(name: str, place: Path | None, seeds: tuple[int, ...], out: Path, results: Path, quick: bool) -> None:
    from benchmarks.learning.experiments import run_experiment

    _tell(lambda: run_experiment(name, place, seeds=seeds, out=out, results=results, quick=quick))


def _tell(work: Callable[[], Path]) -> None:
    """Run it; a mistake in what was given is told in its own lines, an interruption in one."""
    try:
        print(f"wrote {work()}")
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app()
