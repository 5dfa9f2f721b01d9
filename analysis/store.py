"""Measurements on disk: one zarr store per run, which is allocated before anything is measured.

A unit is a checkpoint and a block of tasks, with all inner steps (see ``analysis.measure``). Its results are whole
chunks of every variable, so that no two units write to the same chunk. One process writes a unit, and writes its flag
(``done`` or ``evaluation_done``) last. A process that is killed at any moment therefore leaves a store in which every
flagged unit is complete.

Every chunk ends with its checksum (CRC-32C), and a flagged unit has a file for every chunk of every variable, even
where all values are NaN. The digests of the files that describe the arrays stand in a file beside the store. So
``faults`` notices a file that was changed or removed, which would otherwise be read as wrong numbers or as NaN.
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from analysis.schema import Sizes, Variable, blank_run
from hessian_tools.runs.files import ASIDE, DamagedFileError, fsync, read_json, refuse_unreadable, set_aside, write_json

NAME = "measurements.zarr"
DIGESTS = "measurements.json"  # beside the store: SHA-256 (hex) of each zarr.json in it
# The last step of writing a chunk adds four bytes, its checksum.
COMPRESSORS = (ZstdCodec(level=0), Crc32cCodec())
FLAGS = ("done", "evaluation_done")


@dataclass(frozen=True)
class Fault:
    """A file of a store that is missing or was changed.

    unit: the unit to which the file belongs, as (position of the checkpoint, position of the chunk of tasks). The
        second position is None for the unit that evaluates accuracy at a checkpoint. ``unit`` itself is None for a file
        that belongs to the whole store.
    """

    file: Path
    problem: str
    unit: tuple[int, int | None] | None


def create(
    folder: Path,
    sizes: Sizes,
    *,
    variables: Sequence[Variable],
    block: int,
    scalars: Mapping[str, float],
    attrs: Mapping[str, Any],
) -> Path:
    """Make the store of a run, empty but for its scalars, and return its path; a store that exists is left as it is.

    sizes: the coordinates or lengths of the dimensions. variables: those of the measured quantities.
    block: the number of tasks in a chunk.
    scalars: the values of the variables without dimensions, such as the step size. attrs: attributes of the Dataset.
    """
    path = folder / NAME
    if path.exists():
        return path
    part = folder / f".{NAME}.{os.getpid()}.partial"
    blank = blank_run(sizes, variables).assign_attrs(attrs)
    for name, value in scalars.items():
        blank[name][...] = value
    chunk = {"checkpoint": 1, "task": min(block, blank.sizes["task"])}
    encoding: dict[Any, dict[str, Any]] = {name: {"compressors": COMPRESSORS} for name in blank.coords}
    for variable, values in blank.data_vars.items():
        encoding[variable] = {"compressors": COMPRESSORS, "fill_value": np.nan if values.dtype.kind == "f" else 0}
        if values.dims:
            encoding[variable]["chunks"] = tuple(chunk.get(str(dim), blank.sizes[dim]) for dim in values.dims)
    try:
        blank.to_zarr(_DurableStore(part), zarr_format=3, consolidated=False, encoding=encoding)
        _write(part, {str(name): (..., blank[name].to_numpy()) for name in [*blank.coords, *scalars]})
        write_json(folder / DIGESTS, _description_digests(part))
        os.rename(part, path)  # a store under its final name is complete
        fsync(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def open_run(path: Path) -> xr.Dataset:
    """A run's measurements, read into memory; a script may use ``xr.open_zarr(path, consolidated=False)`` instead.

    Raises DamagedFileError with the name of a file that is missing or was changed.
    """
    refuse_damaged(path)
    with _readable(path), xr.open_zarr(path, consolidated=False, chunks=None) as ds:
        return ds.load()


def refuse_damaged(path: Path) -> None:
    """Raise DamagedFileError with the name of the first file that is missing or was changed."""
    for fault in faults(path):
        raise DamagedFileError(
            f"{fault.file} {fault.problem}; put it back, or run 'hessian-tools study {path.parents[2]}', which measures"
            " anew what is damaged"
        )


def is_complete(path: Path) -> bool:
    """True if every unit of a run is measured."""
    with _readable(path):
        return all(bool(np.all(zarr.open_array(path, path=flag, mode="r")[...] == 1)) for flag in FLAGS)


def is_done(path: Path, checkpoint: int, block: slice | None) -> bool:
    """True if a unit is complete.

    checkpoint: the position of the unit's checkpoint.
    block: the positions of the unit's tasks; None for the unit that evaluates accuracy.
    """
    flag, place = _flag(checkpoint, block)
    with _readable(path):
        return bool(np.all(zarr.open_array(path, path=flag, mode="r")[place] == 1))


def write_unit(path: Path, checkpoint: int, block: slice | None, values: Mapping[str, np.ndarray]) -> None:
    """Write the values of one unit, and then its flag.

    values: the values of each variable, [task, ...] for the tasks of the block, or [evaluation_task]. A variable that
        is absent is written as NaN or 0. The other arguments are those of :func:`is_done`.
    """
    flag, place = _flag(checkpoint, block)
    blank = {}
    for name in _array_names(path):
        description = json.loads((path / name / "zarr.json").read_bytes())
        if name not in FLAGS and _in_unit(tuple(description.get("dimension_names") or ()), evaluation=block is None):
            blank[name] = np.array(np.nan if description["data_type"].startswith("float") else 0)
    _write(path, {name: (place, value) for name, value in (blank | dict(values)).items()})
    _write(path, {flag: (place, np.array(1))})


def faults(path: Path) -> Iterator[Fault]:
    """Every file of a store that is missing or was changed after it was written.

    Version 0.1 wrote no checksums, so a store of that version yields no fault, whatever has happened to it.
    """
    digests = path.parent / DIGESTS
    descriptions = _description_digests(path)
    if not digests.exists():
        if any(b"crc32c" in _content(path / name) for name in descriptions):
            yield Fault(digests, "is missing", None)
        return
    recorded = read_json(digests)
    changed = [name for name in sorted(recorded | descriptions) if recorded.get(name) != descriptions.get(name)]
    for name in changed:
        yield Fault(path / name, "was changed after it was written" if name in descriptions else "is missing", None)
    if changed:
        return
    arrays = {name: json.loads((path / name / "zarr.json").read_bytes()) for name in _array_names(path)}
    flagged: set[tuple[int, int | None]] = set()
    for name in sorted(arrays, key=lambda name: name not in FLAGS):  # the flags say which chunks of others must exist
        dims = tuple(arrays[name].get("dimension_names") or ())
        for index, file in _chunk_files(path / name, arrays[name]):
            unit = (index[0], index[1] if "task" in dims else None) if dims[:1] == ("checkpoint",) else None
            unit = None if dims == (name,) else unit  # a coordinate belongs to the whole store
            if file.exists():
                if not _undamaged(_content(file)):
                    yield Fault(file, "was changed after it was written", unit)
                elif name in FLAGS and unit is not None:
                    flagged.add(unit)
            elif name not in FLAGS and (unit is None or unit in flagged):
                yield Fault(file, "is missing", unit)


def discard(path: Path, fault: Fault) -> None:
    """Make the unit that a fault spoils count as not measured, or every unit if the file belongs to the whole store.

    A unit is measured anew in place; a store that is spoilt as a whole is renamed, so that nothing in it is lost.
    """
    if fault.unit is None:
        for spoilt in (path, path.parent / DIGESTS):
            if spoilt.exists():
                set_aside(spoilt)
        return
    if fault.file.exists() and not fault.file.is_file():
        set_aside(fault.file)  # nothing can be written in its place
    checkpoint, tasks = fault.unit
    flag = path / FLAGS[1] / "c" / str(checkpoint) if tasks is None else path / FLAGS[0] / "c" / f"{checkpoint}/{tasks}"
    flag.unlink(missing_ok=True)  # a flag without a file is 0


def remove_half_written(folder: Path) -> None:
    """Remove files and stores that a killed process left half-written, before they got their final names."""
    for orphan in folder.rglob("*.partial"):
        if orphan.is_dir():
            shutil.rmtree(orphan, ignore_errors=True)
        else:
            orphan.unlink(missing_ok=True)


def _flag(checkpoint: int, block: slice | None) -> tuple[str, Any]:
    """The name of a unit's flag, and the unit's index into the flag and into every variable that it fills."""
    return ("evaluation_done", checkpoint) if block is None else ("done", (checkpoint, block))


def _in_unit(dims: tuple[str, ...], *, evaluation: bool) -> bool:
    """True if a variable with these dimensions is filled by units of the given kind.

    evaluation: True for the units that evaluate accuracy, False for those that measure a block of tasks.
    """
    return len(dims) > 1 and dims[0] == "checkpoint" and ("task" not in dims) == evaluation


def _write(path: Path, values: Mapping[str, tuple[Any, np.ndarray]]) -> None:
    """Write a value at an index of each variable; each chunk gets a file, even if it holds only the fill value.

    values: the (index, value) of each variable by its name.
    """
    with zarr.config.set({"array.write_empty_chunks": True}):
        for name, (place, value) in values.items():
            array = zarr.open_array(_DurableStore(path), path=name, mode="r+")
            array[place] = value.astype(array.dtype)


class _DurableStore(LocalStore):
    """A store on disk whose files are there after a power cut, once they are written."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file, and wait until its content and the names of its folders are on the disk."""
        await super().set(key, value)
        file = Path(key)
        for path in (file, *file.parents):
            await asyncio.to_thread(fsync, self.root / path)


def _array_names(path: Path) -> list[str]:
    return sorted(file.parent.name for file in path.glob("*/zarr.json"))


def _description_digests(path: Path) -> dict[str, str]:
    """The SHA-256 (hex) of the files that describe a store and its arrays, by their paths in the store."""
    files = [path / "zarr.json", *(path / name / "zarr.json" for name in _array_names(path))]
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(_content(file)).hexdigest() for file in files if file.exists()
    }


def _chunk_files(folder: Path, description: Mapping[str, Any]) -> Iterator[tuple[tuple[int, ...], Path]]:
    """The position and the file of every chunk that an array can have; an array without dimensions has one chunk."""
    chunk_shape = description["chunk_grid"]["configuration"]["chunk_shape"]
    counts = [-(-length // chunk) for length, chunk in zip(description["shape"], chunk_shape, strict=True)]
    for index in product(*map(range, counts)):
        yield index, folder.joinpath("c", *map(str, index))


def _content(file: Path) -> bytes:
    """The bytes of a file of a store; empty where it is none, or far too large, so that it counts as changed."""
    try:
        refuse_unreadable(file)
    except DamagedFileError:
        return b""
    return file.read_bytes()


def _undamaged(chunk: bytes) -> bool:
    # A power cut can leave a file empty, and the checksum of nothing is 0.
    return len(chunk) > 4 and google_crc32c.value(chunk[:-4]) == int.from_bytes(chunk[-4:], "little")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise DamagedFileError in place of the many exceptions that zarr raises on a damaged store."""
    try:
        yield
    except Exception as e:
        reason = str(e).splitlines()[0][:100] if str(e) else type(e).__name__
        raise DamagedFileError(f"{path} is damaged ({reason}); {ASIDE}") from e
