"""Hessian-vector products by every route, and many points in bounded memory: what the engine's goals say.

    python -m benchmarks.points speed             # ms a product and point by route, and the ratio to the floor
    python -m benchmarks.points scale             # time a point and memory, 1 to 10 000 points, a process each
    python -m benchmarks.points scale --most 1000 --out points.json

Work loads: W1, 4-conv of width 64 with batch statistics, 3x84x84, 5-way 5-shot, one point. W2, the same on 1x28x28,
5-way 1-shot, 32 points. W3, MLP 1-40-40-1, squared error, 10 support points, 1 and 100 points. One thread; seconds
are those of the processor.

The floor of W1 and W2: 6 forward passes less four times the first convolution, in FLOPs, at the rate at which this
machine did the convolutions of the network's other layers in the same run (forward, both backward). Routes and
floor take turns; the figures are medians of the turns, ratios medians of each turn's ratio.
"""

import argparse
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
from torch import Tensor, nn
from torch.nn import functional as F

import hessian_tools as ht

ROUTES = ("direct", "kept", "traced")
CONVOLUTION = torch.ops.aten.convolution_backward
SIZES = {"mlp": (1, 10, 100, 1000, 10_000), "conv": (16, 128, 1000, 10_000)}
MAX_MEMORY = {"mlp": 2**29, "conv": 4e9}


def images(points: int, shape: tuple[int, int, int], shots: int) -> tuple[ht.Loss, Tensor, Any]:
    """A 4-conv of width 64 at some points, 5 ways."""
    model = ht.seeded(partial(ht.Conv4, 5, width=64, input_shape=shape), seed=0)
    x = torch.rand(points, 5 * shots, *shape, generator=ht.stream(0, "x"))
    y = torch.arange(5).repeat(shots).expand(points, -1).contiguous()
    return at_points(model, F.cross_entropy, points, (x, y))


def regression(points: int) -> tuple[ht.Loss, Tensor, Any]:
    """An MLP 1-40-40-1 at some points, squared error on ten examples."""
    model = ht.seeded(partial(ht.MLP, [1, 40, 40, 1]), seed=0)
    x = 10 * torch.rand(points, 10, 1, generator=ht.stream(0, "x")) - 5
    return at_points(model, lambda out, y: ((out - y) ** 2).mean(), points, (x, torch.sin(x)))


def at_points(model: nn.Module, criterion: Callable[..., Tensor], points: int, batch: Any) -> tuple[Any, Tensor, Any]:
    """The network's parameters moved a little, differently at each point."""
    theta, layout = ht.flatten(model)
    thetas = theta + 0.01 * torch.randn(points, len(theta), generator=ht.stream(0, "thetas"))
    return ht.make_loss(model, criterion, layout), thetas, batch


WORK_LOADS = {
    "W1": partial(images, 1, (3, 84, 84), 5),
    "W2": partial(images, 32, (1, 28, 28), 1),
    "W3, 1 point": partial(regression, 1),
    "W3, 100 points": partial(regression, 100),
}


def floor_seconds(x: Tensor) -> float:
    """Seconds of the floor for a batch of images [example, channel, height, width]; see the top of the file."""
    channels, size = [x.shape[1], 64, 64, 64], [x.shape[-1] // 2**i for i in range(4)]
    flops = [2 * len(x) * c * 64 * 9 * s * s for c, s in zip(channels, size, strict=True)]
    seconds = sum(convolution_seconds(len(x), s) for s in size[1:])
    rate = 3 * sum(flops[1:]) / seconds
    return (6 * sum(flops) - 4 * flops[0]) / rate


def convolution_seconds(examples: int, size: int) -> float:
    """A convolution of 64 channels, forward and both ways back."""
    x, g = (torch.randn(examples, 64, size, size) for _ in range(2))
    w = torch.randn(64, 64, 3, 3)
    how = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    forward = seconds_of(lambda: F.conv2d(x, w, padding=1))
    back = [
        seconds_of(lambda m=mask: CONVOLUTION(g, x, w, [0], *how, m))
        for mask in ([True, False, False], [False, True, False])
    ]
    return forward + sum(back)


def seconds_of(function: Callable[[], Any], repeats: int = 3) -> float:
    """Processor time of this process, which on a shared machine is not the clock's; the quickest of a few."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def speed(names: list[str], turns: int) -> list[dict[str, Any]]:
    """One row for each work load and route."""
    return [row for name in names for row in speed_of(name, turns)]


def speed_of(name: str, turns: int) -> list[dict[str, Any]]:
    """ms a product and point, by route."""
    loss, thetas, batch = WORK_LOADS[name]()
    V = torch.randn(len(thetas), thetas.shape[1], 1, generator=ht.stream(0, "V"))
    operators = {route: ht.hessian(loss, thetas, batch, route=route) for route in ROUTES}
    first = {route: seconds_of(partial(H.products, V), 1) for route, H in operators.items()}
    times: dict[str, list[float]] = {route: [] for route in (*ROUTES, "floor")}
    for _ in range(turns):
        for route, H in operators.items():
            times[route].append(seconds_of(partial(H.products, V)) / len(thetas))
        times["floor"].append(floor_seconds(batch[0][0]) if name < "W3" else times["kept"][-1])
    return [
        {
            "work load": name,
            "route": route,
            "taken": operators[route].route,
            "ms": 1e3 * median(times[route]),
            "ratio": median(a / b for a, b in zip(times[route], times["floor"], strict=True)),
            "to": "floor" if name < "W3" else "kept graph",
            "first product, s": first[route],
        }
        for route in ROUTES
    ]


def scale(kind: str, points: int, max_memory: float) -> dict[str, Any]:
    """Two products a point at so many points, a part at a time; seconds and memory as it went."""
    with tempfile.TemporaryDirectory() as folder:
        loss, thetas, batch = mapped(kind, points, Path(folder))
        H = ht.hessian(loss, thetas, batch, route="traced", max_memory=max_memory)
        probes = torch.randn(H.num_params, 2, generator=ht.stream(0, "probes"))
        before = memory()
        start, done, peak, route = time.process_time(), 0, 0.0, ""
        ht.trace(H.select(torch.arange(H.parts()[0].num_points)), probes=probes)  # makes the trace, once a process
        traced = time.process_time() - start
        start = time.process_time()
        for part in H.parts():
            assert ht.trace(part, probes=probes).converged.all()
            done, route = done + (part.num_points or 1), part.route
            peak = max(peak, memory()["RssAnon"])
            print(f"{kind} {done}/{points} points, {time.process_time() - start:.0f} s, {memory()}", file=sys.stderr)
        seconds = time.process_time() - start
    return {
        "network": kind,
        "points": points,
        "parts": len(H.parts()),
        "ms a point": 1e3 * seconds / points,
        "traced in, s": traced,
        "MB before": before["RssAnon"],
        "MB anonymous, peak": peak,
        "MB resident, peak": memory()["VmHWM"],
        "route": route,
    }


def mapped(kind: str, points: int, folder: Path) -> tuple[Any, Tensor, Any]:
    """A work load whose thetas lie in a file, as those of 10 000 points of a Conv4-64, 4.5 GB, would."""
    one = partial(images, shape=(1, 28, 28), shots=1) if kind == "conv" else regression
    loss, thetas, batch = one(1)
    file = np.memmap(folder / "thetas", np.float32, "w+", shape=(points, thetas.shape[1]))
    for i in range(points):
        noise = torch.randn(thetas.shape[1], generator=ht.stream(0, "thetas", i))
        file[i] = (thetas[0] + 0.01 * noise).numpy()
        if i % 256 == 255:
            file.flush()
    x = batch[0].expand(points, *batch[0].shape[1:]) + 0.1 * torch.randn(points, *[1] * (batch[0].ndim - 1))
    return loss, torch.from_numpy(file), (x, batch[1].expand(points, *batch[1].shape[1:]))


def memory() -> dict[str, float]:
    """MB of this process: anonymous memory now, and the most that was resident, pages of files included."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {w[0][:-1]: int(w[1]) / 1e3 for w in lines if w[0] in ("RssAnon:", "VmHWM:")}


def in_own_process(kind: str, points: int, max_memory: float) -> dict[str, Any]:
    """One size, so that peaks are its own."""
    command = [sys.executable, "-m", "benchmarks.points", "one", kind, str(points), str(max_memory)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def table(rows: list[dict[str, Any]]) -> str:
    """Columns as wide as they need to be."""
    cells = [list(rows[0])] + [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells)


def main() -> None:
    """Prints a table, and writes the rows as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "scale", "one"))
    parser.add_argument("rest", nargs="*", help="work loads of speed; networks of scale: mlp, conv")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--most", type=int, default=10_000, help="the largest number of points")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "one":
        kind, points, max_memory = options.rest
        print(json.dumps(scale(kind, int(points), float(max_memory))))
        return
    if options.what == "speed":
        rows = speed(options.rest or list(WORK_LOADS), options.turns)
    else:
        kinds = options.rest or list(SIZES)
        rows = [in_own_process(k, n, MAX_MEMORY[k]) for k in kinds for n in SIZES[k] if n <= options.most]
    print(table(rows))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
