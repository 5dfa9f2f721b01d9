"""Shows on which operations our products, or our search for the top 5 eigenvalues, spend their time.

For example: ``python -m benchmarks.profiling W2``.
"""

import resource
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated

import torch
from cyclopts import App, Parameter
from torch.profiler import ProfilerActivity, profile

from benchmarks.peers import ours
from benchmarks.peers.floor import floor_seconds
from benchmarks.workloads import drawn_problem

# An operation belongs to the first kind of which a word occurs in its name, or else to "other small operations".
KINDS = {
    "convolutions": ("convolution", "conv2d", "mkldnn"),
    "matrix products": ("mm", "matmul", "dot", "linear"),
    "batch normalisation": ("batch_norm",),
    "pooling": ("pool", "gather", "scatter"),
    "copies, new memory": ("copy", "clone", "empty", "zero", "contiguous", "cat", "_to_copy", "fill", "resize"),
    "sums": ("sum", "mean", "norm"),
    "element by element": ("mul", "add", "sub", "div", "where", "threshold", "rsqrt", "pow", "neg", "relu", "ge", "eq"),
    "views": ("view", "reshape", "expand", "permute", "transpose", "squeeze", "select", "slice", "as_strided", "alias"),
}

MAX_ROWS = 16  # the number of kinds or operations that are printed

app = App(
    name="python -m benchmarks.profiling",
    help="Shows on which operations our products spend their time.",
    version_flags=[],
)


@app.default
def main(
    workload: str = "W2",
    *,
    points: Annotated[int | None, Parameter(help="The number of points; by default all.")] = None,
    task: Annotated[str, Parameter(help="The quantity: products or top5.")] = "products",
    threads: int = 1,
    each: Annotated[bool, Parameter(negative="", help="List every operation separately, not by kind.")] = False,
) -> None:
    """Print the milliseconds of one product, or of the top 5 eigenvalues at one point, by kind of operation."""
    torch.set_num_threads(threads)
    problem = drawn_problem(workload).first(points or 10**9)  # more than any work load has, which means all of them
    run = ours.build(problem, task).run
    first = run()  # the tracing is not profiled
    # All figures below are divided by the number of products or, for eigenvalues, by the number of points.
    unit, unit_name = (first.num_matvecs, "product") if task == "products" else (len(problem.thetas), "point")
    faults, processor = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
    wall = _timed(run)
    processor = time.process_time() - processor
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    print(f"{workload}, {len(problem.thetas)} points, {task}; all figures are for one {unit_name}")
    print(f"{1e3 * wall / unit:.3f} ms without the profiler")
    print(f"{1e3 * processor / unit:.3f} ms of this is processor time; {faults / unit:.0f} page faults")
    if workload != "W3":  # the floor is the time of the convolutions alone, and W3 has none
        print(f"floor of one product: {1e3 * floor_seconds(problem)[1]:.3f} ms of processor time")
    for kind, seconds, calls in by_kind(run, name=str if each else kind_of)[:MAX_ROWS]:
        print(f"  {kind:32s} {1e3 * seconds / unit:9.4f} ms  {calls / unit:9.1f} calls")


def by_kind(run: Callable[[], object], name: Callable[[str], str]) -> list[tuple[str, float, int]]:
    """List (kind, seconds, calls), longest first; "outside torch" is the wall time less that of all operations.

    name: a function that turns the name of an operation into its kind.
    """
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        wall = _timed(run)
    for event in profiler.key_averages():
        kind = name(event.key)
        seconds[kind] += event.self_cpu_time_total / 1e6
        calls[kind] += event.count
    seconds["outside torch"] = max(0.0, wall - sum(seconds.values()))
    return sorted(((kind, s, calls[kind]) for kind, s in seconds.items()), key=lambda row: -row[1])


def kind_of(operation: str) -> str:
    """The kind that an operation's name belongs to."""
    name = operation.removeprefix("aten::")
    return next((kind for kind, words in KINDS.items() if any(w in name for w in words)), "other small operations")


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    app()
