"""Measures on a GPU what only a GPU can show, and rehearses on a CPU.

    python -m benchmarks.gpu top5 runs demo                     # the first half, in at most nine minutes
    python -m benchmarks.gpu training products precision        # the second half, in at most nine minutes
    python -m benchmarks.gpu --minutes 60                       # everything
    python -m benchmarks.gpu --device cpu --minutes 60          # a rehearsal at small sizes, whose times mean nothing

The figures are those of the tables in ``docs/gpu.md`` and ``docs/performance_training.md``. Each section is a table and
a list in the JSON file ``--out``, which is written after every row:

top5: the top 5 eigenvalues at many points, in three calls of one process, and how often the host waits for the GPU. The
    second call must not take longer than the first. It once did, where it made a trace that cost more than it saved.
runs: meta-training. Outer steps of MAML for one run and for several that are trained together, with SHOT and as a CUDA
    graph ("recorded"), and their validation; what a study does for the learners of ``quickdraw-64``.
demo: a whole study, the bundled demo, with the default number of workers and with one, each part in turn.
training: the meta-gradient of MAML on many tasks, in turn and at once, with the three ways to compute convolutions, and
    by the rule for four runs that are trained together and as a CUDA graph ("recorded"). Errors are against tasks in
    turn in float64.
products: one product at each of many points of W1, W2, W3 and of two residual networks. "grouped" leaves the
    convolutions to ``vmap``, "matrices" makes matrix products of all of them, and "rule" is what the library does. The
    rule is right where it is about as fast as the faster of the two. "recorded" is the rule with products replayed as a
    CUDA graph, which the library does not do unless ``recorded.RECORD`` is set. "Inductor" is the rule with
    ``compile=True``, at some of the sizes, because compiling takes ten seconds or more for each; it is measured with
    and without a CUDA graph.
precision: how far products are from float64, in float32, in TF32 and under bfloat16 autocast.

A row that fails, or that takes longer than two minutes (a study: six), says so and does not stop the others. After
``--minutes`` no row begins, the present one is stopped, and those that were left out are named.

Errors are relative, in the norm, to products in float64 at the first points. The floor is that of
``benchmarks.peers.floor``. For comparisons with other libraries use ``python -m benchmarks --device cuda``.
"""

import gc
import json
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
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
from hessian_tools.data import open_tasks
from hessian_tools.failures import first_line
from hessian_tools.torch_fixes import convolutions
from hessian_tools.train import meta_train_runs
from hessian_tools.train.replay import CHECKS, Replay

Section = Literal["top5", "runs", "demo", "training", "products", "precision"]
Device = Literal["cuda", "cpu"]
# A row of a table: what it measures, and the function that measures it.
Figures = dict[str, Any]
Row = tuple[Figures, Callable[[], Figures]]
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
TOP5: dict[Device, Sizes] = {
    "cuda": {"W2": (8, 32, 256), "W3": (100, 2000), "ResNet-12 28x28": (1,)},
    "cpu": {"W3": (2,)},
}
TRAINING: dict[Device, Sizes] = {
    "cuda": {"M8": (4, 16, 64), "M9": (4, 16), "M10": (2, 8), "M5": (25,)},
    "cpu": {"M5": (3,)},
}
PRECISION: dict[Device, tuple[str, ...]] = {"cuda": ("W1", "W2"), "cpu": ("W3",)}
WAYS = ("grouped", "matrices", "rule", "recorded")
# Where products compiled by Inductor are measured, too.
INDUCTOR: dict[Device, Sizes] = {"cuda": {"W2": (32, 256), "W3": (100, 2000)}, "cpu": {"W3": (3,)}}
INDUCTOR_WAYS = ("Inductor", "Inductor, recorded")
# For meta-training: the numbers of runs, the width of the network, and the outer steps and validation tasks.
RUNS: dict[Device, tuple[int, ...]] = {"cuda": (1, 3, 10), "cpu": (1, 2)}
WIDTH: dict[Device, int] = {"cuda": 64, "cpu": 4}
STEPS: dict[Device, int] = {"cuda": 20, "cpu": 2}
VALIDATION_TASKS: dict[Device, int] = {"cuda": 100, "cpu": 2}
STUDY: dict[Device, str] = {"cuda": "demo", "cpu": "micro"}
# In less memory, the tensors that products keep for 256 points of W2 do not fit at once. The points would then be
# multiplied in parts, and these tensors would be computed anew for each product.
MAX_MEMORY = 2**35
CHECKED_POINTS = 2  # the number of points at which products are compared with products in float64
MIN_SECONDS, MIN_CALLS = 0.5, 5  # every timing goes on until it has taken both
# The most seconds of a row. A command on a lent machine often has a limit of ten minutes, so the default for all rows
# is a little less.
ROW_SECONDS, STUDY_SECONDS, MINUTES = 120.0, 360.0, 9.0

app = App(name="python -m benchmarks.gpu", help="Measures on a GPU what only a GPU can show.", version_flags=[])


@app.default
def main(*sections: Section, device: Device = "cuda", out: Path = Path("gpu.json"), minutes: float = MINUTES) -> None:
    """Measure the sections, all by default, print a table of each and keep the numbers as JSON.

    minutes: after so many minutes no row begins, and the present one is stopped.
    """
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: this torch sees no CUDA device; rehearse with --device cpu")
    end, machine = time.perf_counter() + 60 * minutes, facts(device)
    rows: dict[str, list[Figures]] = {}
    left_out: list[str] = []

    def write() -> None:
        out.write_text(json.dumps({"machine": machine, **rows, "left out": left_out}, indent=1) + "\n")

    for section in sections or tuple(SECTIONS):
        rows[section] = []
        for what, measure in SECTIONS[section](device):
            seconds = min(end - time.perf_counter(), STUDY_SECONDS if section == "demo" else ROW_SECONDS)
            if seconds <= 0:
                left_out.append(f"{section}: {in_words(what)}")
                continue
            rows[section].append(what | outcome(measure, seconds))
            write()  # after every row, so that an interruption loses only one
        # The last problem of this section is not held in memory during the next section.
        prepared.cache_clear()
        prepared_training.cache_clear()
        print(f"{section}, {device}")
        measured_rows = [row for row in rows[section] if "failed" not in row]
        if measured_rows:
            show(measured_rows, None)
        for row in (row for row in rows[section] if "failed" in row):
            print(f"failed: {in_words({name: row[name] for name in row if name != 'failed'})}: {row['failed']}")
    write()
    for words in left_out:
        print(f"left out for want of time: {words}")


def in_words(what: Figures) -> str:
    """What a row measures, on one line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in what.items()
    )


def outcome(measure: Callable[[], Figures], seconds: float) -> Figures:
    """The figures of a row and the seconds that it took; where it fails, the first line of its error in their place."""
    start = time.perf_counter()
    try:
        with at_most(seconds):
            figures = measure()
    except Exception as error:
        # Where Inductor fails, the library raises a ValueError, whose cause is Inductor's own error.
        cause = error.__cause__ or error
        figures = {"failed": f"{type(cause).__name__}: {first_line(cause)}"}
        # The traceback of the error holds the tensors of this row, for which the next row may need the memory.
        del error, cause
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return figures | {"seconds": time.perf_counter() - start}


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """A block in which TimeoutError is raised once it has taken so many seconds (not on Windows)."""

    def stop(*signal_and_frame: object) -> None:
        raise TimeoutError(f"it took more than {seconds:.0f} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    # The error is raised again every two seconds, because the library catches some errors: it takes them for a sign
    # that a step cannot be traced, and goes on without a trace.
    signal.setitimer(signal.ITIMER_REAL, seconds, 2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def products(device: Device) -> Iterator[Row]:
    """One row for each problem, number of points, and way to compute convolutions."""
    compiled: list[Row] = []
    for name, sizes in PRODUCTS[device].items():
        for points in sizes:
            for way in WAYS if name != "W3" else ("rule", "recorded"):
                yield product(name, points, way, device)
            if points in INDUCTOR[device].get(name, ()):
                compiled += [product(name, points, way, device) for way in INDUCTOR_WAYS]
    yield from compiled  # last, because compiling takes long, and may fail in new ways


def product(name: str, points: int, way: str, device: Device) -> Row:
    """The row of one way to compute products."""

    def figures() -> Figures:
        problem, exact, floor = prepared(name, points, device)
        return measured(problem, way, exact, floor)

    return {"problem": name, "points": points, "convolutions": way}, figures


@lru_cache(maxsize=1)
def prepared(name: str, points: int, device: Device) -> tuple[Problem, Tensor, float | None]:
    """A problem, its products in float64, and the floor of a product, which all ways to compute products share."""
    problem = at_points(name, points, device)
    exact = in_float64(problem)
    floor = floor_seconds(all_points_as_one(problem), points)[0] if name in ("W1", "W2") else None
    return problem, exact, floor


def measured(problem: Problem, way: str, exact: Tensor, floor: float | None) -> Figures:
    """The figures of one way to compute products."""
    v = vectors(problem)
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


def top5(device: Device) -> Iterator[Row]:
    """One row for each problem and number of points."""
    for name, sizes in TOP5[device].items():
        for points in sizes:
            yield {"problem": name, "points": points}, partial(searches, name, points, device)


def searches(name: str, points: int, device: Device) -> Figures:
    """Milliseconds a point of each of three searches for the top 5, for ``route="auto"``."""
    problem = at_points(name, points, device)
    calls = []
    for _ in range(3):
        start = time.perf_counter()
        pairs = solve(problem)
        waited(problem)
        calls.append(1e3 * (time.perf_counter() - start) / points)
    return {
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


def runs(device: Device) -> Iterator[Row]:
    """One row for each number of runs that are trained together, and way to take their outer steps."""
    for number in RUNS[device]:
        for way in ("MAML", "MAML, recorded", "MAML with SHOT"):
            yield {"runs": number, "way": way}, partial(steps_of_runs, number, way, device)


def steps_of_runs(number: int, way: str, device: Device) -> Figures:
    """Milliseconds of an outer step and of a validation for each of several runs that are trained together."""
    warm_up = max(STEPS[device], Replay.record_after + CHECKS + 1 if way.endswith("recorded") else 0)
    config = ht.TrainConfig(
        learner=ht.learners.maml(3, 0.5),
        tasks=open_tasks("quickdraw", ways=5, shots=1, queries=15),
        network=partial(ht.Conv4, 5, width=WIDTH[device], input_shape=(1, 28, 28)),
        shot=ht.Shot(weight=0.1) if way.endswith("SHOT") else None,
        checkpoints=(warm_up, warm_up + STEPS[device]),
        validation_tasks=VALIDATION_TASKS[device],
        device=device,
        # Otherwise a CPU computes the tasks of convolutional networks in turn.
        tasks_at_once=None if device == "cuda" else 100,
    )
    ends: list[float] = []  # the end of each outer step of the last run, whose numbers have been read then
    ignored: list[Any] = [None] * (number - 1)
    with computed(way):
        training = meta_train_runs(
            [replace(config, seed=seed) for seed in range(number)],
            progress=[*ignored, lambda step, loss: ends.append(time.perf_counter())],
        )
        next(training)
        begun, steps_before = time.perf_counter(), len(ends)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        checkpoints = next(training)  # its numbers have been read as well
        validated = time.perf_counter()
    return {
        "ms a step and run": 1e3 * (ends[-1] - begun) / (len(ends) - steps_before) / number,
        "validation, ms a run": 1e3 * (validated - ends[-1]) / number,
        "mean accuracy": sum(each.validation_accuracy for each in checkpoints) / number,
        "peak, MiB": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else float("nan"),
    }


def demo(device: Device) -> Iterator[Row]:
    """A whole study, with the number of workers that it takes by default and with one."""
    for workers in ("default", "1"):
        yield {"study": STUDY[device], "workers": workers}, partial(parts_of_study, STUDY[device], workers, device)


def parts_of_study(name: str, workers: str, device: Device) -> Figures:
    """The seconds of each part of a study, each in a process of its own with its start."""
    options = ["--device", device, *(["--workers", workers] if workers != "default" else [])]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "study")
        commands = {"train": ["train", name, "--out", out], "measure": ["measure", out], "report": ["study", out]}
        seconds = {}
        for part, arguments in commands.items():
            start = time.perf_counter()
            command = [sys.executable, "-m", "analysis.cli", *arguments, *options]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise RuntimeError(f"{part} failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
            seconds[f"{part}, s"] = time.perf_counter() - start
    return seconds | {"whole, s": sum(seconds.values())}


def training(device: Device) -> Iterator[Row]:
    """One row for each problem, number of tasks, and way to compute the meta-gradient."""
    for name, sizes in TRAINING[device].items():
        for count in sizes:
            for way in ("in turn", "grouped", "matrices", "rule", "rule, 4 runs", "rule, recorded"):
                yield {"problem": name, "tasks": count, "way": way}, partial(gradients, name, count, way, device)


def gradients(name: str, count: int, way: str, device: Device) -> Figures:
    """Milliseconds a task of a meta-gradient, whose tasks are computed one after another ("in turn") or at once."""
    problem, exact = prepared_training(name, count, device)
    num_runs = 4 if way.endswith("4 runs") else 1
    with computed(way):
        # On a CPU the library's own rule might compute the tasks in turn.
        at_once = 1 if way == "in turn" else None if device == "cuda" else num_runs * count
        replay = Replay() if way.endswith("recorded") else None
        job = outer_step(problem, tasks_at_once=at_once, runs=num_runs, replay=replay)
        found = meta_gradient(job)  # measures the memory of a task
        for _ in range(replay.record_after + CHECKS if replay else 0):  # then it is replayed
            found = meta_gradient(job)
        seconds = median_seconds(job.run, problem)
    error = float((found.double() - exact).norm() / exact.norm())
    return {"ms a task": 1e3 * seconds / (num_runs * count), "error": error, "peak, MiB": peak_mib(problem)}


@lru_cache(maxsize=1)
def prepared_training(name: str, count: int, device: Device) -> tuple[TrainingProblem, Tensor]:
    """A problem and its meta-gradient in float64, which all ways to compute it share."""
    tasks = drawn_problem(name).first(count)
    exact = meta_gradient(outer_step(tasks.to(device, torch.float64), tasks_at_once=1))
    return tasks.to(device, torch.float32), exact  # both problems share one model, so its dtype is set back


def meta_gradient(job: Job) -> Tensor:
    """Entries of the meta-gradient that a job computes."""
    values = job.run().values
    assert values is not None
    return values


def precision(device: Device) -> Iterator[Row]:
    """One row for each problem and precision."""
    for name in PRECISION[device]:
        for way in ("float32", "TF32", "bfloat16 autocast"):
            what = {"problem": name, "points": CHECKED_POINTS, "precision": way}
            yield what, partial(error_in_precision, name, way, device)


def error_in_precision(name: str, way: str, device: Device) -> Figures:
    """The error of products in less than full precision.

    They are computed outside of the library's operators, which would switch to full precision.
    """
    problem, exact, _ = prepared(name, CHECKED_POINTS, device)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = way == "TF32"
    try:
        with torch.autocast(device, torch.bfloat16, enabled=way.startswith("bfloat16")):
            multiply = partial(hessian_product, problem.loss)
            found = vmap(multiply)(problem.thetas, problem.batch, vectors(problem)[..., 0])
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    return {"error": float((found.double() - exact).norm() / exact.norm())}


SECTIONS: dict[Section, Callable[[Device], Iterator[Row]]] = {
    "top5": top5,
    "runs": runs,
    "demo": demo,
    "training": training,
    "products": products,
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
