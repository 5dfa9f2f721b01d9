"""Measures Hessian-vector products by every route, and products at many points in bounded memory.

The points are the parameter vectors at which the Hessian is taken.

    python -m benchmarks.points speed             # ms of one product at one point, by route
    python -m benchmarks.points scale             # time for each point, and memory, of 1 to 10 000 points
    python -m benchmarks.points scale --largest 1000 --out points.json

A route is one of the library's ways to compute a product, which the argument ``route`` names. The work loads are W1 to
W3 of ``benchmarks.workloads``, with W3 at 1 and at 100 points. Everything runs on one thread, and all times are
processor times. The floor of a product (``benchmarks.peers.floor``) is the time that its convolutions alone would take.
The routes and the floor are measured in turns; the figures are medians over the turns, and a ratio is the median of the
ratios within each turn.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from cyclopts import App
from rich.console import Console
from rich.table import Table
from torch import Tensor

import hessian_tools as ht
from benchmarks.peers.floor import floor_seconds
from benchmarks.workloads import drawn_problem
from hessian_tools.curvature.engines.choice import Route
from hessian_tools.curvature.operators.loss_operator import LossOperator

# The argument ``route`` names the engines, two of them by older words: "kept" is double_backward, "traced" is compiled.
ROUTES: tuple[Route, ...] = ("direct", "kept", "traced")
# For each work load of `speed`: the work load of ``benchmarks.workloads``, and the number of its points.
SPEED = {"W1": ("W1", 1), "W2": ("W2", 32), "W3, 1 point": ("W3", 1), "W3, 100 points": ("W3", 100)}
# For each network of `scale`: its work load, the numbers of points, and the bytes that the products may take.
WORKLOADS = {"mlp": "W3", "conv": "W2"}
SIZES = {"mlp": (1, 10, 100, 1000, 10_000), "conv": (16, 128, 1000, 10_000)}
MAX_MEMORY = {"mlp": 2.0**29, "conv": 4e9}

app = App(name="python -m benchmarks.points", help="Measures products by route and at many points.", version_flags=[])


@app.command
def speed(*names: str, turns: int = 7, out: Path | None = None) -> None:
    """Milliseconds of one product at one point for each route, and their ratio to the floor."""
    torch.set_num_threads(1)
    show([row for name in names or SPEED for row in speed_rows(name, turns)], out)


def speed_rows(name: str, turns: int) -> list[dict[str, Any]]:
    """One row for each route. W3 has no convolutions, so there the route "kept" takes the place of the floor."""
    workload, num_points = SPEED[name]
    problem = drawn_problem(workload).first(num_points)
    V = torch.randn(*problem.thetas.shape, 1, generator=ht.stream(0, "V"))
    operators = {r: ht.hessian(problem.loss, problem.thetas, problem.batch, route=r) for r in ROUTES}
    first = {route: cpu_seconds(partial(H.products, V), 1) for route, H in operators.items()}
    convolutional = workload != "W3"
    times: dict[str, list[float]] = {route: [] for route in (*ROUTES, "floor")}
    for _ in range(turns):
        for route, H in operators.items():
            times[route].append(cpu_seconds(partial(H.products, V)) / num_points)
        times["floor"].append(floor_seconds(problem)[1] if convolutional else times["kept"][-1])
    return [
        {
            "work load": name,
            "route": route,
            "taken": operators[route].route,  # the route that was used, which may be another than the requested one
            "ms": 1e3 * median(times[route]),
            "ratio": median(a / b for a, b in zip(times[route], times["floor"], strict=True)),
            "to": "floor" if convolutional else "kept graph",
            "first product, s": first[route],
        }
        for route in ROUTES
    ]


def cpu_seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """The shortest processor time of a few calls. Wall-clock time would depend on other users of the machine."""
    shortest = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        function()
        shortest = min(shortest, time.process_time() - start)
    return shortest


@app.command
def scale(*networks: str, largest: int = 10_000, out: Path | None = None) -> None:
    """Time for each point, and memory, for growing numbers of points.

    Each number of points is measured in a new process, because the peak of memory is known only for a whole process.
    """
    rows = []
    for network, points in [(n, size) for n in networks or SIZES for size in SIZES[n] if size <= largest]:
        arguments = ["one-size", network, str(points), str(MAX_MEMORY[network])]
        command = [sys.executable, "-m", "benchmarks.points", *arguments]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(output.splitlines()[-1]))
    show(rows, out)


@app.command(show=False)
def one_size(network: str, points: int, max_memory: float) -> None:
    """Compute two products at each point, part by part, and print seconds and memory as one line of JSON."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loss, thetas, batch = mapped_problem(network, points, Path(folder))
        H = ht.hessian(loss, thetas, batch, route="traced", max_memory=max_memory)
        probes = torch.randn(H.num_params, 2, generator=ht.stream(0, "probes"))
        before, start = memory(), time.process_time()
        # The first call in a process traces the loss; the parts below reuse the result, so it is timed separately.
        # ``num_points`` is None where an operator has no point axis, which means one point.
        ht.trace(H.select(torch.arange(H.parts()[0].num_points or 1)), probes=probes)
        tracing = time.process_time() - start
        start, done, peak = time.process_time(), 0, 0.0
        for part in H.parts():
            assert isinstance(part, LossOperator)
            assert ht.trace(part, probes=probes).converged.all()
            done += part.num_points or 1
            route = part.route
            peak = max(peak, memory()["RssAnon"])
            seconds = time.process_time() - start
            print(f"{network} {done}/{points} points, {seconds:.0f} s, {memory()}", file=sys.stderr)
    row = {
        "network": network,
        "points": points,
        "parts": len(H.parts()),
        "ms a point": 1e3 * seconds / points,
        "traced in, s": tracing,
        "MB before": before["RssAnon"],
        "MB anonymous, peak": peak,
        "MB resident, peak": memory()["VmHWM"],
        "route": route,
    }
    print(json.dumps(row))


def mapped_problem(network: str, points: int, folder: Path) -> tuple[ht.Loss, Tensor, tuple[Tensor, Tensor]]:
    """A problem whose parameter vectors are mapped from a file: 10 000 of a 4-conv network of width 64 take 4.5 GB."""
    problem = drawn_problem(WORKLOADS[network]).first(1)
    (theta,), x = problem.thetas, problem.x
    file = np.memmap(folder / "thetas", np.float32, "w+", shape=(points, len(theta)))
    for i in range(points):
        noise = torch.randn(len(theta), generator=ht.stream(0, "thetas", i))
        file[i] = (theta + 0.01 * noise).numpy()
        if i % 256 == 255:  # otherwise the pages written so far would count as memory of this process
            file.flush()
    x = x.expand(points, *x.shape[1:]) + 0.1 * torch.randn(points, *[1] * (x.ndim - 1))
    return problem.loss, torch.from_numpy(file), (x, problem.y.expand(points, *problem.y.shape[1:]))


def memory() -> dict[str, float]:
    """MB of this process: its anonymous memory now (RssAnon), and the peak of all its resident memory (VmHWM)."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) / 1e3 for words in lines if words[0] in ("RssAnon:", "VmHWM:")}


def show(rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print the rows as a table, and write them to ``out`` as JSON if it is given."""
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=200).print(table)
    if out:
        out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    app()
