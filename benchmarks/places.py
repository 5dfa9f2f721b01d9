"""Where a work load lives: W1 ... are points to measure curvature at, M1 ... are outer steps of meta-training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import workloads
from benchmarks.training import loads


@dataclass(frozen=True)
class Place:
    """save(name, folder) draws a load and puts it on disk, load(name, path) reads it again.

    title: what the load is. size: its points or tasks. contestants: the package their modules are in.
    reference: the module that makes reference values in a process of its own.
    """

    title: str
    size: int
    save: Callable[[str, Path], Path]
    load: Callable[[str, Path], Any]
    contestants: str
    reference: str


def place(name: str) -> Place:
    """Of a work load by name."""
    if name in loads.LOADS:
        training = loads.LOADS[name]
        package = "benchmarks.training"
        return Place(training.title, training.num_tasks, loads.save, loads.load, package, f"{package}.reference")
    points = workloads.WORKLOADS[name]
    load, save = workloads.load, workloads.save
    return Place(points.title, points.num_points, save, load, "benchmarks.peers", "benchmarks.reference")
