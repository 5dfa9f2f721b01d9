"""``python -m benchmarks``: prints the tables and keeps every sample as JSON.

Heavy imports wait for the run, so that --help is instant.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

app = App(
    name="python -m benchmarks",
    help="Ours against its peers on the same points: each in its own process, in turns; medians and ratios.",
    version_flags=[],
)


Only = Annotated[tuple[str, ...], Parameter(consume_multiple=True, help="Work loads (W1 W2 M1) or quantities (top5).")]
Rounds = Annotated[int, Parameter(help="Turns of each contestant after its first call.")]
Quick = Annotated[bool, Parameter(negative="", help="A smoke run of a minute or two: few points, one round.")]
Points = Annotated[int | None, Parameter(help="Points in every row [default: each row's own number].")]
Threads = Annotated[int, Parameter(help="Threads of every process.")]
Malloc = Literal["both", "default", "keep"]
Allocator = Annotated[Malloc, Parameter(help="malloc as it comes, or told to keep its pages; the same for all.")]
Clock = Annotated[Literal["wall", "cpu"], Parameter(help="The clock of ratios; cpu is fairer on a busy machine.")]
Out = Annotated[Path, Parameter(help="Folder for the JSON, the points and their reference values.")]


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
    if quick or device == "cuda":  # malloc has no part in the memory of a GPU
        allocators = allocators[:1]
    run(Settings(rows, 1 if quick else rounds, threads, allocators, device, out, clock, quick=quick, points=points))


if __name__ == "__main__":
    app()
