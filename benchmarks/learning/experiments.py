"""The experiments by name: their settings, their data, and the one way through all of them."""

from pathlib import Path

import torch

from analysis.progress import reporter
from benchmarks.learning import sources
from benchmarks.learning.results import keep
from benchmarks.learning.runs import Work, run
from benchmarks.learning.settings import CIFAR_FS, OMNIGLOT, QUICKDRAW, REGRESSION, Setting
from benchmarks.learning.sources import Source

SETTINGS: dict[str, Setting] = {
    "regression": REGRESSION,
    "omniglot": OMNIGLOT,
    "quickdraw": QUICKDRAW,
    "cifar-fs": CIFAR_FS,
}
SHAPES = {"omniglot": (1, 28), "quickdraw": (1, 28), "cifar-fs": (3, 32)}


def run_experiment(
    name: str, place: Path | None, *, seeds: tuple[int, ...], out: Path, results: Path, quick: bool
) -> Path:
    """Run or resume it on one thread, on which numbers repeat to the bit; keep what came of it."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds={list(seeds)} must be different numbers, at least one, e.g. --seeds 0 1")
    torch.set_num_threads(1)
    setting = SETTINGS[name].quick() if quick else SETTINGS[name]
    folder = out / (f"{name}-quick" if quick else name)
    work = Work(name, setting, open_source(name, place, setting.queries, cache=out / "cache"), folder, seeds)
    return keep(work, run(work, reporter(True)), results)


def open_source(
    name: str, place: Path | None, queries: int, *, cache: Path, shape: tuple[int, int] | None = None
) -> Source:
    """The data of an experiment; shape: channels and side of images, where not their own."""
    if place is not None and not place.exists():
        raise ValueError(f"{place} does not exist; give the folder that holds {name}")
    if name == "regression":
        return sources.regression()
    channels, side = shape or SHAPES[name]
    if name == "quickdraw":
        return sources.quickdraw(queries, channels=channels, side=side)
    if place is None:
        raise ValueError(f"{name} is not bundled; give the folder that holds it")
    opened = sources.omniglot if name == "omniglot" else sources.cifar_fs
    return opened(place, queries, cache=cache, channels=channels, side=side)
