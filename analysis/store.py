"""Measurements on disk: one pre-allocated zarr store per run, opened in one line by ``xr.open_zarr``.

One unit of work, (checkpoint, block of tasks) with all inner steps, is one chunk of every
variable: it is written whole, by one writer, its ``done`` flag last, so that a process killed at
any moment leaves a store in which every flagged unit is complete.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from analysis.schema import BY_NAME, VARIABLES, Sizes, Variable, blank_run
from hessian_tools.runs.files import DamagedFileError

NAME = "measurements.zarr"


def create(folder: Path, sizes: Sizes, *, block: int, attrs: Mapping[str, Any]) -> Path:
    """Allocate a run's store with nothing measured; a store that is there is left as it is."""
    path = folder / NAME
    if path.exists():
        return path
    part = folder / f".{NAME}.partial"
    shutil.rmtree(part, ignore_errors=True)
    blank = blank_run(sizes).assign_attrs(attrs)
    encoding = {v.name: {"chunks": _chunks(v, blank, block), "fill_value": _fill(v)} for v in VARIABLES if v.dims}
    try:
        blank.to_zarr(part, zarr_format=3, consolidated=False, encoding=encoding)
        os.rename(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def open_run(path: Path) -> xr.Dataset:
    """A run's measurements in memory; in one line of your own: ``xr.open_zarr(path, consolidated=False)``."""
    with _readable(path), xr.open_zarr(path, consolidated=False, chunks=None) as ds:
        return ds.load()


def is_done(path: Path, checkpoint: int, block: slice) -> bool:
    """Whether a unit is complete."""
    done = _array(path, "done")
    with _readable(path):
        return bool(np.all(done[checkpoint, block] == 1))


def evaluation_is_done(path: Path, checkpoint: int) -> bool:
    """Whether the evaluation at a checkpoint is complete."""
    done = _array(path, "evaluation_done")
    with _readable(path):
        return bool(done[checkpoint] == 1)


def write_unit(path: Path, checkpoint: int, block: slice, values: Mapping[str, np.ndarray]) -> None:
    """One unit: every variable [task, ...] of the block, then its flag."""
    group = zarr.open_group(path, mode="r+")
    for name, value in values.items():
        _writable(group, name)[checkpoint, block] = value.astype(BY_NAME[name].dtype)
    _writable(group, "done")[checkpoint, block] = 1


def write_evaluation(path: Path, checkpoint: int, values: Mapping[str, np.ndarray]) -> None:
    """Accuracy and loss on the many held-out tasks at one checkpoint, then its flag."""
    group = zarr.open_group(path, mode="r+")
    for name, value in values.items():
        _writable(group, name)[checkpoint] = value
    _writable(group, "evaluation_done")[checkpoint] = 1


def write_scalars(path: Path, values: Mapping[str, float]) -> None:
    """Numbers of the whole run."""
    group = zarr.open_group(path, mode="r+")
    for name, value in values.items():
        _writable(group, name)[...] = value


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written: files that were never moved into place."""
    for orphan in folder.rglob("*.partial"):
        if orphan.is_dir():
            shutil.rmtree(orphan, ignore_errors=True)
        else:
            orphan.unlink(missing_ok=True)


def _chunks(variable: Variable, ds: xr.Dataset, block: int) -> tuple[int, ...]:
    whole = {"checkpoint": 1, "task": min(block, ds.sizes["task"])}
    return tuple(whole.get(dim, ds.sizes[dim]) for dim in variable.dims)


def _fill(variable: Variable) -> float | int:
    return float("nan") if variable.dtype == "float64" else 0


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever a damaged store raises, and zarr has many names for it, is told as one thing."""
    try:
        yield
    except Exception as e:
        reason = str(e).splitlines()[0][:100] if str(e) else type(e).__name__
        raise DamagedFileError(f"{path} is damaged ({reason}); remove it and measure again") from e


def _array(path: Path, name: str) -> Any:
    with _readable(path):
        return zarr.open_array(path, path=name, mode="r")


def _writable(group: zarr.Group, name: str) -> Any:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{group.store_path} holds no variable {name!r}; remove it and measure again")
    return array
