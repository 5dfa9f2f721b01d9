"""Measurements on disk: one zarr store per run, which is allocated before anything is measured.

The results of one unit (a checkpoint and a block of tasks, with all inner steps; see ``analysis.measure``) are whole
chunks of every variable, so that no two units write to the same chunk. One process writes a unit, and writes its flag
(``done`` or ``evaluation_done``) last. A process that is killed at any moment therefore leaves a store in which every
flagged unit is complete.
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


def create(folder: Path, sizes: Sizes, *, block: int, scalars: Mapping[str, float], attrs: Mapping[str, Any]) -> None:
    """Make the store of a run, empty but for its scalars; a store that exists is left as it is.

    sizes: the dimensions. block: the number of tasks in a chunk. scalars: the variables without dimensions, which hold
    for the whole run. attrs: attributes of the Dataset.
    """
    path = folder / NAME
    if path.exists():
        return
    part = folder / f".{NAME}.partial"
    shutil.rmtree(part, ignore_errors=True)
    blank = blank_run(sizes).assign_attrs(attrs)
    for name, value in scalars.items():
        blank[name][...] = value
    chunk = {"checkpoint": 1, "task": min(block, blank.sizes["task"])}
    encoding = {
        v.name: {
            "chunks": tuple(chunk.get(dim, blank.sizes[dim]) for dim in v.dims),
            "fill_value": float("nan") if v.dtype == "float64" else 0,
        }
        for v in VARIABLES
        if v.dims
    }
    try:
        blank.to_zarr(part, zarr_format=3, consolidated=False, encoding=encoding)
        os.rename(part, path)  # a store under its final name is complete
    finally:
        shutil.rmtree(part, ignore_errors=True)


def open_run(path: Path) -> xr.Dataset:
    """A run's measurements, read into memory; a script may use ``xr.open_zarr(path, consolidated=False)`` instead."""
    with _readable(path), xr.open_zarr(path, consolidated=False, chunks=None) as ds:
        return ds.load()


def is_done(path: Path, checkpoint: int, block: slice | None) -> bool:
    """Whether a unit is complete.

    checkpoint: the position of its checkpoint. block: the positions of its tasks; None for the unit that evaluates
    accuracy.
    """
    flag, place = _flag(checkpoint, block)
    with _readable(path):
        return bool(np.all(zarr.open_array(path, path=flag, mode="r")[place] == 1))


def write_unit(path: Path, checkpoint: int, block: slice | None, values: Mapping[str, np.ndarray]) -> None:
    """Write the values of one unit, and then its flag.

    values: by variable, [task, ...] for the tasks of the block, or [evaluation_task]. The other arguments are those of
    :func:`is_done`.
    """
    flag, place = _flag(checkpoint, block)
    for name, value in [*values.items(), (flag, np.array(1))]:
        zarr.open_array(path, path=name, mode="r+")[place] = value.astype(BY_NAME[name].dtype)


def sweep(folder: Path) -> None:
    """Remove files and stores that a killed process left half-written, before they got their final names."""
    for orphan in folder.rglob("*.partial"):
        if orphan.is_dir():
            shutil.rmtree(orphan, ignore_errors=True)
        else:
            orphan.unlink(missing_ok=True)


def _flag(checkpoint: int, block: slice | None) -> tuple[str, Any]:
    """The name of a unit's flag, and the unit's index into the flag and into every variable that it fills."""
    return ("evaluation_done", checkpoint) if block is None else ("done", (checkpoint, block))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise DamagedFileError in place of the many exceptions that zarr raises on a damaged store."""
    try:
        yield
    except Exception as e:
        reason = str(e).splitlines()[0][:100] if str(e) else type(e).__name__
        raise DamagedFileError(f"{path} is damaged ({reason}); remove it and measure again") from e
