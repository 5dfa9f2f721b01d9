"""Measures Hessian-vector products by every route, and products at many points in bounded memory.

The points are the parameter vectors at which the Hessian is taken.

    python -m benchmarks.points speed             # ms of one product at one point, by route
    python -m benchmarks.points scale             # time for each point, and memory, of 1 to 10 000 points
    python -m benchmarks.points scale --largest 1000 --out points.json

There are three work loads. W1 is a 4-conv network of width 64 with batch statistics on 3x84x84 images, 5-way 5-shot,
at one point. W2 is the same network on 1x28x28 images, 5-way 1-shot, at 32 points. W3 is an MLP 1-40-40-1 with the
squared error on 10 support examples, at 1 and at 100 points. Everything runs on one thread, and all times are processor
times.

The floor is the time of the convolutions in one product on W1 and W2: 6 times the operations of a forward pass, less 4
times those of the first convolution (``benchmarks/peers/floor.py`` says why), at the rate that the convolutions of the
other layers reached in the same run, forward and backward. The routes and the floor take turns; the figures are medians
over the turns, and a ratio is the median of the ratios within each turn.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from cyclopts import App
from torch import Tensor, nn
from torch.nn import functional as F

import hessian_tools as ht

ROUTES = ("direct", "kept", "traced")
CONVOLUTION = torch.ops.aten.convolution_backward
# For each network of `scale`: the numbers of points, and the memory in bytes that the products may take.
SIZES = {"mlp": (1, 10, 100, 1000, 10_000), "conv": (16, 128, 1000, 10_000)}
MAX_MEMORY = {"mlp": 2.0**29, "conv": 4e9}

app = App(name="python -m benchmarks.points", help="Measures products by route and at many points.", version_flags=[])


def conv4_points(points: int, shape: tuple[int, int, int], shots: int) -> tuple[ht.Loss, Tensor, Any]:
    """The loss, thetas and batch of a 4-conv network of width 64 for 5 ways, on random images."""
    model = ht.seeded(partial(ht.Conv4, 5, width=64, input_shape=shape), seed=0)
    x = torch.rand(points, 5 * shots, *shape, generator=ht.stream(0, "x"))
    y = torch.arange(5).repeat(shots).expand(points, -1).contiguous()
    return at_points(model, F.cross_entropy, points, (x, y))


def mlp_points(points: int) -> tuple[ht.Loss, Tensor, Any]:
    """The loss, thetas and batch of an MLP 1-40-40-1 with the squared error on ten examples."""
    model = ht.seeded(partial(ht.MLP, [1, 40, 40, 1]), seed=0)
    x = 10 * torch.rand(points, 10, 1, generator=ht.stream(0, "x")) - 5
    return at_points(model, lambda out, y: ((out - y) ** 2).mean(), points, (x, torch.sin(x)))


def at_points(model: nn.Module, criterion: Callable[..., Tensor], points: int, batch: Any) -> tuple[Any, Tensor, Any]:
    """The loss, the parameters with a little noise for each point, and the batch as given."""
    theta, layout = ht.flatten(model)
    thetas = theta + 0.01 * torch.randn(points, len(theta), generator=ht.stream(0, "thetas"))
    return ht.make_loss(model, criterion, layout), thetas, batch


WORKLOADS = {
    "W1": partial(conv4_points, 1, (3, 84, 84), 5),
    "W2": partial(conv4_points, 32, (1, 28, 28), 1),
    "W3, 1 point": partial(mlp_points, 1),
    "W3, 100 points": partial(mlp_points, 100),
}


@app.command
def speed(*names: str, turns: int = 7, out: Path | None = None) -> None:
    """Milliseconds of one product at one point for each route, and their ratio to the floor."""
    torch.set_num_threads(1)
    show([row for name in names or WORKLOADS for row in speed_of(name, turns)], out)


def speed_of(name: str, turns: int) -> list[dict[str, Any]]:
    """One row for each route. W3 has no convolutions, so there the route "kept" takes the place of the floor."""
    loss, thetas, batch = WORKLOADS[name]()
    V = torch.randn(len(thetas), thetas.shape[1], 1, generator=ht.stream(0, "V"))
    operators = {route: ht.hessian(loss, thetas, batch, route=route) for route in ROUTES}
    first = {route: cpu_seconds(partial(H.products, V), 1) for route, H in operators.items()}
    convolutional = name < "W3"
    times: dict[str, list[float]] = {route: [] for route in (*ROUTES, "floor")}
    for _ in range(turns):
        for route, H in operators.items():
            times[route].append(cpu_seconds(partial(H.products, V)) / len(thetas))
        times["floor"].append(floor_seconds(batch[0][0]) if convolutional else times["kept"][-1])
    return [
        {
            "work load": name,
            "route": route,
            "taken": operators[route].route,
            "ms": 1e3 * median(times[route]),
            "ratio": median(a / b for a, b in zip(times[route], times["floor"], strict=True)),
            "to": "floor" if convolutional else "kept graph",
            "first product, s": first[route],
        }
        for route in ROUTES
    ]


def floor_seconds(x: Tensor) -> float:
    """The floor in seconds (see the top of this file) for a batch of images [example, channel, height, width]."""
    channels, sides = [x.shape[1], 64, 64, 64], [x.shape[-1] // 2**i for i in range(4)]
    flops = [2 * len(x) * c * 64 * 9 * side * side for c, side in zip(channels, sides, strict=True)]
    rate = 3 * sum(flops[1:]) / sum(convolution_seconds(len(x), side) for side in sides[1:])
    return (6 * sum(flops) - 4 * flops[0]) / rate


def convolution_seconds(examples: int, side: int) -> float:
    """Seconds of a convolution of 64 channels: forward, plus the gradients by its input and by its weight."""
    x, g = (torch.randn(examples, 64, side, side) for _ in range(2))
    w = torch.randn(64, 64, 3, 3)
    geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    passes = [partial(F.conv2d, x, w, padding=1)]
    passes += [partial(CONVOLUTION, g, x, w, [0], *geometry, [to_x, not to_x, False]) for to_x in (True, False)]
    return sum(cpu_seconds(convolution) for convolution in passes)


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
        loss, thetas, batch = mapped(network, points, Path(folder))
        H = ht.hessian(loss, thetas, batch, route="traced", max_memory=max_memory)
        probes = torch.randn(H.num_params, 2, generator=ht.stream(0, "probes"))
        before, start = memory(), time.process_time()
        # The first call in a process traces the loss; the parts below reuse the result, so it is timed separately.
        ht.trace(H.select(torch.arange(H.parts()[0].num_points)), probes=probes)
        tracing = time.process_time() - start
        start, done, peak = time.process_time(), 0, 0.0
        for part in H.parts():
            assert ht.trace(part, probes=probes).converged.all()
            done += part.num_points or 1
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
        "route": part.route,
    }
    print(json.dumps(row))


def mapped(network: str, points: int, folder: Path) -> tuple[Any, Tensor, Any]:
    """A problem whose thetas are mapped from a file: those of 10 000 points of a Conv4-64 take 4.5 GB."""
    loss, thetas, (x, y) = conv4_points(1, (1, 28, 28), 1) if network == "conv" else mlp_points(1)
    file = np.memmap(folder / "thetas", np.float32, "w+", shape=(points, thetas.shape[1]))
    for i in range(points):
        noise = torch.randn(thetas.shape[1], generator=ht.stream(0, "thetas", i))
        file[i] = (thetas[0] + 0.01 * noise).numpy()
        if i % 256 == 255:  # otherwise the pages written so far would count as memory of this process
            file.flush()
    x = x.expand(points, *x.shape[1:]) + 0.1 * torch.randn(points, *[1] * (x.ndim - 1))
    return loss, torch.from_numpy(file), (x, y.expand(points, *y.shape[1:]))


def memory() -> dict[str, float]:
    """MB of this process: its anonymous memory now, and the peak of its resident memory with pages of files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) / 1e3 for words in lines if words[0] in ("RssAnon:", "VmHWM:")}


def show(rows: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Print the rows as a table, and write them to ``out`` as JSON if it is given."""
    texts = [list(rows[0])] + [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for line in texts:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
    if out:
        out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    app()
