"""``python -m benchmarks``: measures all contestants, prints the tables and keeps every sample as JSON.

Slow imports are made only when a run begins, so that --help is instant.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

app = App(
    name="python -m benchmarks",
    help="Compares hessian-tools with its peers, which take turns in their own processes; prints medians and ratios.",
    version_flags=[],
)


Only = Annotated[
    tuple[str, ...], Parameter(consume_multiple=True, help="Only these work loads (W1 W2 M1) or quantities (top5).")
]
Rounds = Annotated[int, Parameter(help="Calls of each contestant after its first one.")]
Quick = Annotated[bool, Parameter(negative="", help="A smoke run of a minute or two: few points, one round.")]
Points = Annotated[
    int | None, Parameter(help="The number of parameter vectors (or tasks) in every row [default: each row's own].")
]
Threads = Annotated[int, Parameter(help="The number of threads of every process.")]
Malloc = Literal["both", "default", "keep"]
Allocator = Annotated[Malloc, Parameter(help="malloc by default, or set to keep freed pages; the same for all.")]
Clock = Annotated[Literal["wall", "cpu"], Parameter(help="The clock for ratios; cpu is fairer on a busy machine.")]
Out = Annotated[Path, Parameter(help="The folder for the JSON, the problems and their reference values.")]


@app.default
def main(
    *,
    only: Only = (),
    rounds: Rounds = 5,
    quick: Quick = False,
    points: Points = None,
    threads: Threads = 1,
    allocator: Allocator = "both",
    device: Literal["cpu", "cuda"] = "cpu",
    clock: Clock = "wall",
    out: Out = Path("runs/benchmarks"),
) -> None:
    """Measure every contestant, print the tables and keep the samples."""
    import torch

    from benchmarks.rows import chosen
    from benchmarks.run import Settings, run

    if min(rounds, threads, points or 1) < 1:
        sys.exit("--rounds, --threads and --points must be 1 or more")
    try:
        rows = chosen(only, quick=quick)
    except ValueError as error:
        sys.exit(str(error))
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: this torch sees no CUDA device; use --device cpu, or install a CUDA build")
    allocators: tuple[str, ...] = ("default", "keep") if allocator == "both" else (allocator,)
    if quick or device == "cuda":  # malloc does not manage the memory of a GPU
        allocators = allocators[:1]
    run(Settings(rows, 1 if quick else rounds, threads, allocators, device, out, clock, quick=quick, points=points))


if __name__ == "__main__":
    app()
