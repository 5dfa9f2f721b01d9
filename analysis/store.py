"""Measurements on disk: one zarr store per run, which is allocated before anything is measured.

A unit is a checkpoint and a block of tasks, with all inner steps (see ``analysis.measure``). Its results are whole
chunks of every variable, so that no two units write to the same chunk. One process writes a unit, and writes its flag
(``done`` or ``evaluation_done``) last. A process that is killed at any moment therefore leaves a store in which every
flagged unit is complete.

Every chunk ends with its checksum (CRC-32C), and a flagged unit has a file for every chunk of every variable, even
where all values are NaN. The digests of the files with which the store was made stand in a file beside the store. For
each unit a record beside the store names its run and holds the checksums of its chunks. So ``faults`` notices a file
that was changed or removed, which would otherwise be read as wrong numbers or as NaN, and a file that comes from the
store of another run.
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import ceil
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
from hessian_tools.failures import first_line
from hessian_tools.runs.files import (
    ASIDE,
    DamagedFileError,
    fsync,
    read_json,
    refuse_unreadable,
    set_aside,
    write_json,
)
from hessian_tools.runs.manifest import training_digest

NAME = "measurements.zarr"
# A file beside the store with the SHA-256 (hex) of each file with which the store was made: of each zarr.json and each
# chunk of a coordinate or a scalar. Versions that kept no records of units listed only the zarr.json files.
DIGESTS = "measurements.json"
RECORDS = "measurements.units"  # beside the store: the folder of the records of units, see ``_write_record``
# The last step of writing a chunk adds four bytes, its checksum.
COMPRESSORS = (ZstdCodec(level=0), Crc32cCodec())
FLAGS = ("done", "evaluation_done")
CHANGED = "was changed after it was written"
# The positions of a unit's checkpoint and of its chunk of tasks; the unit that evaluates accuracy has None for a chunk.
_UnitIndex = tuple[int, int | None]


@dataclass(frozen=True)
class Fault:
    """A file of a store that is missing or was changed.

    unit: the unit to which the file belongs; None for a file that belongs to the whole store.
    """

    file: Path
    problem: str
    unit: _UnitIndex | None


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

    sizes: the coordinates or lengths of the dimensions. variables: the variables of the measured quantities.
    block: the number of tasks in a chunk.
    scalars: the values of the variables without dimensions, such as the step size. attrs: attributes of the Dataset.
    """
    path = folder / NAME
    if path.exists():
        return path
    unfinished = folder / f".{NAME}.{os.getpid()}.partial"
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
        blank.to_zarr(_DurableStore(unfinished), zarr_format=3, consolidated=False, encoding=encoding)
        in_no_unit = [str(name) for name in [*blank.coords, *scalars]]  # these belong to the store as a whole
        _write(unfinished, {name: (..., blank[name].to_numpy()) for name in in_no_unit})
        files = [file for name in in_no_unit for file in (unfinished / name).rglob("*") if file.is_file()]
        write_json(folder / DIGESTS, _file_digests(unfinished, files))
        os.rename(unfinished, path)  # a store under its final name is complete
        fsync(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
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
    return all(_flags(path, flag).all() for flag in FLAGS)


def any_done(path: Path) -> bool:
    """Whether any task of a run has been measured; False where there is no store."""
    return path.exists() and bool(_flags(path, "done").any())


def is_done(path: Path, checkpoint: int, block: slice | None) -> bool:
    """True if a unit is complete.

    checkpoint: the position of the unit's checkpoint.
    block: the positions of the unit's tasks; None for the unit that evaluates accuracy.
    """
    flag, place = _flag(checkpoint, block)
    return bool(_flags(path, flag, place).all())


def _flags(path: Path, flag: str, place: Any = ...) -> np.ndarray:
    """True at each place of a flag that is set."""
    with _readable(path):
        return np.asarray(zarr.open_array(path, path=flag, mode="r")[place]) == 1


def write_unit(path: Path, checkpoint: int, block: slice | None, values: Mapping[str, np.ndarray]) -> None:
    """Write the values of one unit, then its record, and then its flag.

    values: the values of each variable, [task, ...] for the tasks of the block, or [evaluation_task]. A variable that
        is absent is written as NaN or 0. The other arguments are those of :func:`is_done`.
    """
    flag, place = _flag(checkpoint, block)
    blank = {}
    for name, description in _arrays(path).items():
        if name not in FLAGS and _in_unit(tuple(description.get("dimension_names") or ()), evaluation=block is None):
            blank[name] = np.array(np.nan if description["data_type"].startswith("float") else 0)
    _write(path, {name: (place, value) for name, value in (blank | dict(values)).items()})
    _write_record(path, checkpoint, block)
    _write(path, {flag: (place, np.array(1))})


def faults(path: Path) -> Iterator[Fault]:
    """Every file of a store that is missing, was changed after it was written, or belongs to another run.

    Version 0.1 wrote no checksums, so a store of that version yields no fault, whatever has happened to it. A store
    that was made before units had records is checked without them.
    """
    digests = path.parent / DIGESTS
    if not digests.exists():
        # An array that has checksums was written by a later version than 0.1, and so the digests must exist.
        if any(b"crc32c" in _content(file) for file in _descriptions(path)):
            yield Fault(digests, "is missing", None)
        return
    recorded = _readable_json(digests)
    if recorded is None:
        yield Fault(digests, CHANGED, None)
        return
    present = _file_digests(path, [path / name for name in recorded])
    changed = [name for name in sorted(recorded | present) if recorded.get(name) != present.get(name)]
    for name in changed:
        yield Fault(path / name, CHANGED if name in present else "is missing", None)
    if changed:
        return
    # A version that lists more than the zarr.json files also wrote the records of units; see DIGESTS.
    has_records = any(not name.endswith("zarr.json") for name in recorded)
    arrays = _arrays(path)
    # For each flagged unit, the checksums of its chunks by variable, as its record has them; empty without a record.
    measured: dict[_UnitIndex | None, dict[str, str]] = {}
    # The flags come first, because they say which chunks of the other variables must exist.
    for name in sorted(arrays, key=lambda name: name not in FLAGS):
        dims = tuple(arrays[name].get("dimension_names") or ())
        for index, file in _chunk_files(path / name, arrays[name]):
            unit: _UnitIndex | None = None
            is_coordinate = dims == (name,)  # it belongs to the whole store
            if dims[:1] == ("checkpoint",) and not is_coordinate:
                unit = (index[0], index[1] if "task" in dims else None)
            if not file.exists():
                if name not in FLAGS and (unit is None or unit in measured):
                    yield Fault(file, "is missing", unit)
                continue
            chunk = _content(file)
            if not _undamaged(chunk):
                yield Fault(file, CHANGED, unit)
            elif name in FLAGS and unit is not None:
                record = _record_file(path, unit)
                problem, measured[unit] = _read_record(path, record) if record.exists() or has_records else ("", {})
                if problem:
                    yield Fault(record, problem, unit)
            elif _checksum(chunk) != measured.get(unit, {}).get(name, _checksum(chunk)):  # equal without a record
                yield Fault(file, "is not the one that was measured, but perhaps that of another run", unit)


def discard(path: Path, fault: Fault) -> None:
    """Make the unit that a fault spoils count as not measured, or every unit if the file belongs to the whole store.

    What is spoilt, a file of the unit or the store as a whole, is renamed, so that nothing is lost.
    """
    if fault.unit is None:
        for spoilt in (path, path.parent / DIGESTS, path.parent / RECORDS):
            if spoilt.exists():
                set_aside(spoilt)
        return
    if fault.file.exists():
        set_aside(fault.file)
    # The chunk of an array at the position (i, j) is the file c/i/j in the array's folder.
    checkpoint, chunk = fault.unit
    flag = path / f"evaluation_done/c/{checkpoint}" if chunk is None else path / f"done/c/{checkpoint}/{chunk}"
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


def _arrays(path: Path) -> dict[str, dict[str, Any]]:
    """The description of each array of a store, as its zarr.json has it, by the array's name."""
    return {name: json.loads((path / name / "zarr.json").read_bytes()) for name in _array_names(path)}


def _descriptions(path: Path) -> list[Path]:
    """The files that describe a store and its arrays."""
    files = [path / "zarr.json", *(path / name / "zarr.json" for name in _array_names(path))]
    return [file for file in files if file.exists()]


def _file_digests(path: Path, files: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 (hex) of the files that describe a store, and of those of ``files`` that exist, by their paths."""
    all_files = {*_descriptions(path), *(file for file in files if file.exists())}
    return {file.relative_to(path).as_posix(): hashlib.sha256(_content(file)).hexdigest() for file in sorted(all_files)}


def _write_record(path: Path, checkpoint: int, block: slice | None) -> None:
    """Write the run of a unit and the checksums of its chunks into a file beside the store.

    A block of tasks that takes several chunks gets a record for each of them, as its flag has a chunk for each.
    """
    arrays = _arrays(path)
    chunks_of_tasks: Iterable[int | None] = [None]
    if block is not None:
        _, length = arrays["done"]["chunk_grid"]["configuration"]["chunk_shape"]  # checkpoints and tasks of a chunk
        chunks_of_tasks = range(block.start // length, ceil(block.stop / length))
    for chunk in chunks_of_tasks:
        place = [str(position) for position in (checkpoint, chunk) if position is not None]
        checksums = {}
        for name, description in arrays.items():
            dims = tuple(description.get("dimension_names") or ())
            if name not in FLAGS and _in_unit(dims, evaluation=chunk is None):
                rest = ["0"] * (len(dims) - len(place))  # along the other dimensions there is one chunk
                checksums[name] = _checksum(_content(path.joinpath(name, "c", *place, *rest)))
        write_json(_record_file(path, (checkpoint, chunk)), {**_run_digests(path), "chunks": checksums})


def _read_record(path: Path, record: Path) -> tuple[str, dict[str, str]]:
    """What is wrong with the record of a unit ("" if nothing is), and the checksums of its chunks by variable."""
    if not record.exists():
        return "is missing", {}
    content = _readable_json(record, "chunks")
    if content is None:
        return CHANGED, {}
    if any(content.get(name) != digest for name, digest in _run_digests(path).items()):
        return "is that of another run", {}
    return "", content["chunks"]


def _record_file(path: Path, unit: _UnitIndex) -> Path:
    """The file of a unit's record."""
    checkpoint, chunk = unit
    return path.parent / RECORDS / f"{checkpoint}-{'evaluation' if chunk is None else chunk}.json"


def _run_digests(path: Path) -> dict[str, str]:
    """The digests of what tells the run of a store from any other: the attributes of its store, and its training.

    Where the manifest is lost or has no training, the digest of the training is left out; the command ``verify``
    reports the lost manifest.
    """
    digests = {
        "store": hashlib.sha256(_content(path / "zarr.json")).hexdigest(),
        "training": training_digest(path.parent),
    }
    return {name: digest for name, digest in digests.items() if digest}


def _readable_json(file: Path, *needed: str) -> dict[str, Any] | None:
    """The content of a JSON file; None where it is damaged."""
    try:
        return read_json(file, *needed)
    except DamagedFileError:
        return None


def _chunk_files(folder: Path, description: Mapping[str, Any]) -> Iterator[tuple[tuple[int, ...], Path]]:
    """The position and the file of every chunk that an array can have; an array without dimensions has one chunk."""
    chunk_shape = description["chunk_grid"]["configuration"]["chunk_shape"]
    counts = [ceil(length / chunk) for length, chunk in zip(description["shape"], chunk_shape, strict=True)]
    for index in product(*map(range, counts)):
        yield index, folder.joinpath("c", *map(str, index))


def _content(file: Path) -> bytes:
    """The bytes of a file of a store.

    For something that is no file, or that is far too large, the result is empty, so that it counts as changed.
    """
    try:
        refuse_unreadable(file)
    except DamagedFileError:
        return b""
    return file.read_bytes()


def _checksum(chunk: bytes) -> str:
    """The checksum with which a chunk ends."""
    return chunk[-4:].hex()


def _undamaged(chunk: bytes) -> bool:
    """True if the bytes of a chunk have the checksum with which it ends."""
    # A power cut can leave a file empty. Without the comparison of its length, an empty file would pass: the checksum
    # of no bytes is 0, and int.from_bytes makes 0 of no bytes.
    return len(chunk) > 4 and google_crc32c.value(chunk[:-4]) == int.from_bytes(chunk[-4:], "little")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise DamagedFileError in place of the many exceptions that zarr raises on a damaged store."""
    try:
        yield
    except Exception as e:
        reason = first_line(e)[:100]
        raise DamagedFileError(f"{path} is damaged ({reason}); {ASIDE}") from e
