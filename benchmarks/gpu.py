"""Measures on a GPU what only a GPU can show: products of many points in each way to compute their convolutions.

    python -m benchmarks.gpu                 # everything, in about twelve minutes on an H200
    python -m benchmarks.gpu products top5   # some of the sections
    python -m benchmarks.gpu --device cpu    # a rehearsal on few points, whose times mean nothing

The sections, each a table and a list in the JSON file ``--out``:

products: one product at each of many points of W1, W2, W3 and of two residual networks. "grouped" leaves the
    convolutions to ``vmap``, "matrices" makes matrix products of all of them, and "rule" is what the library does. The
    rule is right where it is about as fast as the faster of the two. "recorded" is the rule with products replayed as a
    CUDA graph, which the library does not do unless ``recorded.RECORD`` is set. "Inductor" is the rule with
    ``compile=True``, at some of the sizes, because compiling takes ten seconds or more for each; it is measured with
    and without a CUDA graph.
top5: the top 5 eigenvalues at many points, in three calls of one process, and how often the host waits for the GPU.
training: the meta-gradient of MAML on many tasks, in turn and at once, with the three ways to compute convolutions, and
    by the rule for four runs that are trained together and as a CUDA graph ("recorded"). Errors are against tasks in
    turn in float64.
precision: how far products are from float64, in float32, in TF32 and under bfloat16 autocast.

Errors are relative, in the norm, to products in float64 at the first points. The floor is that of
``benchmarks.peers.floor``. For comparisons with other libraries use ``python -m benchmarks --device cuda``.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal
from unittest.mock import patch

import torch
from cyclopts import App
from torch import Tensor, nn
from torch.func import vmap

import hessian_tools as ht
from benchmarks.machine import facts
from benchmarks.peers import RTOL, K
from benchmarks.peers.floor import all_points_as_one, floor_seconds
from benchmarks.points import show
from benchmarks.problem import Job, Problem, TrainingProblem
from benchmarks.training.ours import outer_step
from benchmarks.workloads import drawn_problem
from hessian_tools.curvature.engines.compiled import recorded
from hessian_tools.curvature.engines.engine import PreparedProducts
from hessian_tools.curvature.objective.matrix import hessian_product
from hessian_tools.failures import first_line
from hessian_tools.torch_fixes import convolutions
from hessian_tools.train.replay import CHECKS, Replay

Section = Literal["products", "top5", "training", "precision"]
Device = Literal["cuda", "cpu"]
# The numbers of points at which each problem is measured on each kind of device.
Sizes = dict[str, tuple[int, ...]]
PRODUCTS: dict[Device, Sizes] = {
    "cuda": {
        "W1": (1, 2, 16),
        "W2": (1, 2, 8, 32, 256),
        "W3": (100, 2000),
        "ResNet-12 28x28": (2, 32),
        "ResNet-12 84x84": (2, 8),
    },
    "cpu": {"W2": (2,), "W3": (3,)},
}
TOP5: dict[Device, Sizes] = {"cuda": {"W2": (32, 256), "W3": (100, 2000)}, "cpu": {"W3": (2,)}}
TRAINING: dict[Device, Sizes] = {"cuda": {"M8": (4, 16, 64), "M9": (4, 16), "M10": (2, 8)}, "cpu": {"M5": (3,)}}
PRECISION: dict[Device, tuple[str, ...]] = {"cuda": ("W1", "W2"), "cpu": ("W3",)}
WAYS = ("grouped", "matrices", "rule", "recorded")
# Where products compiled by Inductor are measured, too.
INDUCTOR: dict[Device, Sizes] = {"cuda": {"W2": (32, 256), "W3": (100, 2000)}, "cpu": {"W3": (3,)}}
INDUCTOR_WAYS = ("Inductor", "Inductor, recorded")
# In less memory, the tensors that products keep for 256 points of W2 do not fit at once. The points would then be
# multiplied in parts, and these tensors would be computed anew for each product.
MAX_MEMORY = 2**35
CHECKED_POINTS = 2  # the number of points at which products are compared with products in float64
MIN_SECONDS, MIN_CALLS = 0.5, 5  # every timing goes on until it has taken both

app = App(name="python -m benchmarks.gpu", help="Measures products of many points on a GPU.", version_flags=[])


@app.default
def main(*sections: Section, device: Device = "cuda", out: Path = Path("gpu.json")) -> None:
    """Measure the sections, all by default, print a table of each and keep the numbers as JSON."""
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: this torch sees no CUDA device; rehearse with --device cpu")
    rows: dict[str, list[dict[str, Any]]] = {}
    for section in sections or tuple(SECTIONS):
        rows[section] = list(SECTIONS[section](device))
        print(f"{section}, {device}")
        show(rows[section], None)
        out.write_text(json.dumps({"machine": facts(device), **rows}, indent=1) + "\n")  # an interruption loses little


def products(device: Device) -> Iterator[dict[str, Any]]:
    """One row for each problem, number of points, and way to compute convolutions."""
    for name, sizes in PRODUCTS[device].items():
        for points in sizes:
            problem = at_points(name, points, device)
            exact = in_float64(problem)
            floor = None
            if name in ("W1", "W2"):
                floor = floor_seconds(all_points_as_one(problem), points)[0]
            ways = WAYS if name != "W3" else ("rule", "recorded")
            for way in ways + INDUCTOR_WAYS if points in INDUCTOR[device].get(name, ()) else ways:
                yield {"problem": name, "points": points, "convolutions": way, **measured(problem, way, exact, floor)}


def measured(problem: Problem, way: str, exact: Tensor, floor: float | None) -> dict[str, Any]:
    """The figures of one way to compute products.

    If they cannot be computed, all are NaN but the last, whose place takes the first line of the error.
    """
    v = vectors(problem)
    try:
        with computed(way):
            loss = ht.make_loss(problem.loss.model, problem.loss.criterion, problem.loss.layout)  # no trace is known
            compile = way in INDUCTOR_WAYS
            H = ht.hessian(loss, problem.thetas, problem.batch, route="traced", compile=compile, max_memory=MAX_MEMORY)
            start = time.perf_counter()
            found = H.products(v)
            waited(problem)
            first = time.perf_counter() - start
            seconds = median_seconds(lambda: H.products(v), problem) / len(problem.thetas)
        assert isinstance(H.prepared, PreparedProducts) and H.prepared.findings.traces
        (trace,) = H.prepared.findings.traces
        lowest = found[:CHECKED_POINTS, :, 0].double()
        return {
            "us a point": 1e6 * seconds,
            "over the floor": seconds / floor if floor else float("nan"),
            "error": float((lowest - exact).norm() / exact.norm()),
            "kept, MB a point": trace.kept_bytes / 1e6,
            "first product, s": first,
            "peak, MiB": peak_mib(problem),
        }
    except (RuntimeError, ValueError) as error:  # a ValueError where Inductor fails, whose own error is the cause
        figures = ("us a point", "over the floor", "error", "kept, MB a point", "first product, s")
        return dict.fromkeys(figures, float("nan")) | {"peak, MiB": first_line(error.__cause__ or error)[:60]}


def top5(device: Device) -> Iterator[dict[str, Any]]:
    """Milliseconds a point of each of three calls, for ``route="auto"``."""
    for name, sizes in TOP5[device].items():
        for points in sizes:
            problem = at_points(name, points, device)
            calls = []
            for _ in range(3):
                start = time.perf_counter()
                pairs = solve(problem)
                waited(problem)
                calls.append(1e3 * (time.perf_counter() - start) / points)
            yield {
                "problem": name,
                "points": points,
                "first call, ms a point": calls[0],
                "second, ms a point": calls[1],
                "third, ms a point": calls[2],
                "waits": waits(problem),
                "products a point": float(pairs.num_matvecs.double().mean()),
                "converged": float(pairs.converged.double().mean()),
            }


def solve(problem: Problem) -> ht.EigenPairs:
    """The top 5 eigenvalues at all points."""
    return ht.top_eigenpairs(ht.hessian(problem.loss, problem.thetas, problem.batch), k=K, rtol=RTOL)


def waits(problem: Problem) -> float:
    """How often the host waits for the card in one search, as torch itself counts it; NaN on a CPU."""
    if not on_gpu(problem):
        return float("nan")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solve(problem)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in caught)


def training(device: Device) -> Iterator[dict[str, Any]]:
    """Milliseconds a task of a meta-gradient, whose tasks are computed one after another ("in turn") or at once."""
    for name, sizes in TRAINING[device].items():
        for count in sizes:
            tasks = drawn_problem(name).first(count)
            exact = meta_gradient(outer_step(tasks.to(device, torch.float64), tasks_at_once=1))
            problem = tasks.to(device, torch.float32)  # both problems share one model, so its dtype is set back
            for way in ("in turn", "grouped", "matrices", "rule", "rule, 4 runs", "rule, recorded"):
                runs = 4 if way.endswith("4 runs") else 1
                row = {"problem": name, "tasks": count, "way": way}
                try:
                    with computed(way):
                        # On a CPU the library's own rule might compute the tasks in turn.
                        at_once = 1 if way == "in turn" else None if device == "cuda" else runs * count
                        replay = Replay() if way.endswith("recorded") else None
                        job = outer_step(problem, tasks_at_once=at_once, runs=runs, replay=replay)
                        found = meta_gradient(job)  # measures the memory of a task
                        for _ in range(replay.record_after + CHECKS if replay else 0):  # then it is replayed
                            found = meta_gradient(job)
                        seconds = median_seconds(job.run, problem)
                    error = float((found.double() - exact).norm() / exact.norm())
                    figures = {"ms a task": 1e3 * seconds / (runs * count), "error": error}
                    yield row | figures | {"peak, MiB": peak_mib(problem)}
                except RuntimeError as failure:
                    failed = {"ms a task": float("nan"), "error": float("nan")}
                    yield row | failed | {"peak, MiB": first_line(failure)[:60]}


def meta_gradient(job: Job) -> Tensor:
    """Entries of the meta-gradient that a job computes."""
    values = job.run().values
    assert values is not None
    return values


def precision(device: Device) -> Iterator[dict[str, Any]]:
    """The error of products in less than full precision.

    They are computed outside of the library's operators, which would switch to full precision.
    """
    for name in PRECISION[device]:
        problem = at_points(name, CHECKED_POINTS, device)
        exact = in_float64(problem)
        for way in ("float32", "TF32", "bfloat16 autocast"):
            before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = way == "TF32"
            try:
                with torch.autocast(device, torch.bfloat16, enabled=way.startswith("bfloat16")):
                    multiply = partial(hessian_product, problem.loss)
                    found = vmap(multiply)(problem.thetas, problem.batch, vectors(problem)[..., 0])
            finally:
                torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
            error = float((found.double() - exact).norm() / exact.norm())
            yield {"problem": name, "points": CHECKED_POINTS, "precision": way, "error": error}


SECTIONS: dict[Section, Callable[[Device], Iterator[dict[str, Any]]]] = {
    "products": products,
    "top5": top5,
    "training": training,
    "precision": precision,
}


def at_points(name: str, points: int, device: Device) -> Problem:
    """A problem at so many points: those of the work load, shifted at random where it has fewer."""
    problem = residual(name) if name.startswith("ResNet") else drawn_problem(name)
    wanted = torch.arange(points) % len(problem.thetas)
    noise = torch.randn(points, problem.thetas.shape[1], generator=ht.stream(0, "noise"))
    noise[: len(problem.thetas)] = 0
    thetas = problem.thetas[wanted] + 0.01 * noise
    return Problem(
        name, problem.model, problem.criterion, problem.loss, thetas, problem.x[wanted], problem.y[wanted]
    ).to(device, torch.float32)


def residual(name: str) -> Problem:
    """A residual network of the usual width at one point, on five random images."""
    side = int(name.rpartition("x")[2])
    model = ht.seeded(partial(ht.ResNet12, 5, input_shape=(3, side, side)), seed=0)
    theta, layout = ht.flatten(model)
    criterion = nn.CrossEntropyLoss()
    x = torch.rand(1, 5, 3, side, side, generator=ht.stream(0, name))
    return Problem(
        name, model, criterion, ht.make_loss(model, criterion, layout), theta[None], x, torch.arange(5)[None]
    )


def in_float64(problem: Problem) -> Tensor:
    """Products in float64 at the first points, [point, param], computed point by point with ordinary convolutions."""
    few = problem.first(CHECKED_POINTS).to(problem.thetas.device.type, torch.float64)
    H = ht.hessian(few.loss, few.thetas, few.batch, route="kept")
    result = H.products(vectors(problem)[:CHECKED_POINTS].double())[..., 0]
    problem.model.to(torch.float32)  # both problems share one model, so its dtype is set back
    return result


def vectors(problem: Problem) -> Tensor:
    """A random vector for each point, [point, param, 1]."""
    drawn = torch.randn(*problem.thetas.shape, 1, generator=ht.stream(0, "v"))
    return drawn.to(problem.thetas)


@contextmanager
def computed(way: str) -> Iterator[None]:
    """A context in which convolutions of several points are grouped, or matrix products, or what the rule says."""
    if way not in ("grouped", "matrices"):
        with patch.object(recorded, "RECORD", way.endswith("recorded")):
            yield
        return
    with patch.object(convolutions, "pays", lambda *, points, **sizes: points > 1 and way == "matrices"):
        yield


def median_seconds(work: Callable[[], Any], problem: Problem | TrainingProblem) -> float:
    """The median seconds of one call."""
    samples: list[float] = []
    if on_gpu(problem):
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    while len(samples) < MIN_CALLS or time.perf_counter() - start < MIN_SECONDS:
        before = time.perf_counter()
        work()
        waited(problem)
        samples.append(time.perf_counter() - before)
    return median(samples)


def waited(problem: Problem | TrainingProblem) -> None:
    """Wait for the work of the device."""
    if on_gpu(problem):
        torch.cuda.synchronize()


def peak_mib(problem: Problem | TrainingProblem) -> float:
    """The peak of the card's memory since the last measurement began; NaN on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if on_gpu(problem) else float("nan")


def on_gpu(problem: Problem | TrainingProblem) -> bool:
    """Whether the problem lies on a GPU."""
    return next(problem.model.parameters()).is_cuda


if __name__ == "__main__":
    app()
