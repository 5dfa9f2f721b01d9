"""Measurements on disk: one zarr store per run, allocated in advance; ``xr.open_zarr`` opens it in one line.

One unit of work, (checkpoint, block of tasks) with all inner steps, is one chunk of every variable. It is written whole
by one writer, its flag (``done`` or ``evaluation_done``) last, so that a process killed at any moment leaves a store in
which every flagged unit is complete.
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

from analysis.schema import BY_NAME, VARIABLES, Sizes, blank_run
from hessian_tools.runs.files import DamagedFileError

NAME = "measurements.zarr"


def create(folder: Path, sizes: Sizes, *, block: int, attrs: Mapping[str, Any]) -> Path:
    """Allocate a run's store with nothing measured; a store that exists is left as it is.

    block: the number of tasks in a chunk.
    """
    path = folder / NAME
    if path.exists():
        return path
    part = folder / f".{NAME}.partial"
    shutil.rmtree(part, ignore_errors=True)
    blank = blank_run(sizes).assign_attrs(attrs)
    cut = {"checkpoint": 1, "task": min(block, blank.sizes["task"])}
    encoding = {
        v.name: {
            "chunks": tuple(cut.get(dim, blank.sizes[dim]) for dim in v.dims),
            "fill_value": float("nan") if v.dtype == "float64" else 0,
        }
        for v in VARIABLES
        if v.dims
    }
    try:
        blank.to_zarr(part, zarr_format=3, consolidated=False, encoding=encoding)
        os.rename(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def open_run(path: Path) -> xr.Dataset:
    """A run's measurements in memory. The line for a script is ``xr.open_zarr(path, consolidated=False)``."""
    with _readable(path), xr.open_zarr(path, consolidated=False, chunks=None) as ds:
        return ds.load()


def is_done(path: Path, checkpoint: int, block: slice | None) -> bool:
    """Whether a unit is complete.

    checkpoint: its position. block: the positions of its tasks; None for the evaluation of accuracy.
    """
    flag, place = _flag(checkpoint, block)
    with _readable(path):
        return bool(np.all(zarr.open_array(path, path=flag, mode="r")[place] == 1))


def write_unit(path: Path, checkpoint: int, block: slice | None, values: Mapping[str, np.ndarray]) -> None:
    """Write the variables of one unit, [task, ...] of the block or [evaluation_task], and then its flag."""
    flag, place = _flag(checkpoint, block)
    group = zarr.open_group(path, mode="r+")
    for name, value in values.items():
        _writable(group, name)[place] = value.astype(BY_NAME[name].dtype)
    _writable(group, flag)[place] = 1


def write_scalars(path: Path, values: Mapping[str, float]) -> None:
    """Write numbers that hold for the whole run."""
    group = zarr.open_group(path, mode="r+")
    for name, value in values.items():
        _writable(group, name)[...] = value


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written: files and stores that were never moved into place."""
    for orphan in folder.rglob("*.partial"):
        if orphan.is_dir():
            shutil.rmtree(orphan, ignore_errors=True)
        else:
            orphan.unlink(missing_ok=True)


def _flag(checkpoint: int, block: slice | None) -> tuple[str, Any]:
    """The variable that flags a unit as complete, and the unit's place in every variable that it fills."""
    return ("evaluation_done", checkpoint) if block is None else ("done", (checkpoint, block))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged store raises, for which zarr has many exceptions, into one error."""
    try:
        yield
    except Exception as e:
        reason = str(e).splitlines()[0][:100] if str(e) else type(e).__name__
        raise DamagedFileError(f"{path} is damaged ({reason}); remove it and measure again") from e


def _writable(group: zarr.Group, name: str) -> Any:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{group.store_path} holds no variable {name!r}; remove it and measure again")
    return array
