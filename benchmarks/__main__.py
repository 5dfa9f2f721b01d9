"""``python -m benchmarks``: prints the table, keeps the raw samples as JSON. Heavy imports wait for the run."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

app = App(
    name="python -m benchmarks",
    help="Ours against its peers on the same points: each in its own process, in turns; medians and ratios.",
    version_flags=[],
)


@app.default
def main(
    *,
    only: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=True,
            help="Work loads (W1 W2 W3 M1 ... M6) or quantities (top5 products trace meta-gradient ...).",
        ),
    ] = (),
    rounds: Annotated[int, Parameter(help="Turns of each contestant after its first call.")] = 5,
    quick: Annotated[
        bool, Parameter(negative="", help="A smoke run of a minute or two: few points, one round.")
    ] = False,
    points: Annotated[int | None, Parameter(help="Points in every row; left out, each row's own number.")] = None,
    threads: Annotated[int, Parameter(help="Threads of every process.")] = 1,
    allocator: Annotated[
        Literal["both", "default", "keep"],
        Parameter(help="malloc as it comes, or told to keep its pages; the same for all."),
    ] = "both",
    device: Literal["cpu", "cuda"] = "cpu",
    clock: Annotated[
        Literal["wall", "cpu"],
        Parameter(help="What ratios are taken of; processor time is the fairer on a machine that others use."),
    ] = "wall",
    out: Annotated[Path, Parameter(help="Folder for the JSON, the points and their reference values.")] = Path(
        "runs/benchmarks"
    ),
) -> None:
    """Measure, print, keep."""
    from benchmarks.rows import chosen
    from benchmarks.run import Settings, run

    if min(rounds, threads, points or 1) < 1:
        sys.exit("--rounds, --threads and --points are 1 or more")
    try:
        rows = chosen(only, quick=quick)
    except ValueError as error:
        sys.exit(str(error))
    allocators = ["default", "keep"] if allocator == "both" else [allocator]
    if device == "cuda":  # whose memory is not malloc's
        allocators = allocators[:1]
    if device == "cuda" and not _has_cuda():
        sys.exit("--device cuda: this torch sees no CUDA device; use --device cpu, or install a CUDA build")
    if quick:
        rounds, allocators = 1, allocators[:1]
    run(Settings(rows, rounds, threads, tuple(allocators), device, out, clock, quick=quick, points=points))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    app()
