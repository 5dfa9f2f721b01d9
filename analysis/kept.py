"""Seeds whose results are kept: one small netCDF file per seed, which needs no run beside it.

A study's folder is large: each of its runs has checkpoints, metrics and a zarr store. What claims, figures and report
read is small. ``write_seed`` puts all runs of one seed, reduced to that, into ``seeds/seed-<k>.nc`` (about 1 MB for 21
learners), and the facts of these runs into ``seeds/seed-<k>.json``. A folder with such files can be kept in a
repository. A study that goes on from it (``hessian-tools study --from``) copies the files and makes only other runs.

The reduction is this. The variables on which the primary claims rest (``EXACT``) become float32. The others are rounded
to four significant digits (12 bits of the mantissa, which compress well), and all errors to two (8 bits). Of variables
that are large and read only as means over tasks (``MEAN_DIMS``), this mean and its standard error are kept. The samples
of single probes and the inner products of gradients are left out, because other variables hold what follows from them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import xarray as xr
from xarray.backends import H5NetCDFStore

from analysis.quantities import QUANTITIES, REQUIRED
from analysis.schema import MEASURED, stack_runs
from analysis.statistics import mean_over
from hessian_tools.runs.files import DamagedFileError, read_json, write_atomic, write_json

FOLDER = "seeds"
MAX_BYTES = 1_400_000  # of a file that is kept in a repository
LEFT_OUT = ("trace_sample", "gram")  # trace_stderr and rho_random_stderr, gradient_cosine and grad_norm hold the same
MEAN_DIMS = ("layer", "grid")  # the dimensions of variables that are kept as means over tasks
MEAN_ERROR = "_stderr_over_tasks"  # the end of the name of the standard error of such a mean
VALUE_BITS, ERROR_BITS = 12, 8  # of the 23 bits of a mantissa in float32
EXACT = frozenset(
    [
        *(variable.name for quantity in REQUIRED for variable in QUANTITIES[quantity].variables),
        *("evaluation_loss", "evaluation_accuracy", "step_size"),
        *("rho_random", "rho_rotated", "eigenvalue", "eigenvalue_max"),  # with which the primary claims compare rho
    ]
)
# The attributes in which netCDF keeps dimensions and versions; all others belong to the Dataset.
NETCDF_ATTRIBUTES = frozenset(
    ["CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties"]
)
ENCODING = {"zlib": True, "complevel": 9, "shuffle": True}


def files(folder: Path, seed: int) -> tuple[Path, Path]:
    """The file of a seed's numbers, and the file of the facts of its runs, in a study's folder."""
    return folder / FOLDER / f"seed-{seed}.nc", folder / FOLDER / f"seed-{seed}.json"


def kept_learners(folder: Path) -> dict[int, tuple[str, ...]]:
    """The learners whose runs are kept in a folder, by seed; a folder without kept seeds has none."""
    seeds = sorted(int(file.stem.removeprefix("seed-")) for file in (folder / FOLDER).glob("seed-*.json"))
    return {seed: tuple(seed_facts(folder, seed)["learners"]) for seed in seeds}


def seed_facts(folder: Path, seed: int) -> dict[str, Any]:
    """What is known of the runs of a kept seed besides their numbers: versions, digests, times; see ``write_seed``."""
    _, facts_file = files(folder, seed)
    return read_json(facts_file)


def open_seed(folder: Path, seed: int) -> dict[str, xr.Dataset]:
    """The measurements of a kept seed, as the Dataset of a run for each of its learners.

    Raises DamagedFileError where the file is missing or was changed after it was written.
    """
    facts = seed_facts(folder, seed)
    refuse_damaged(folder, seed)
    path, _ = files(folder, seed)
    ds = _read(path)
    return {name: ds.sel(learner=name, drop=True) for name in facts["learners"]}


def _read(path: Path) -> xr.Dataset:
    """The Dataset in a netCDF file, with real numbers as float64.

    It equals the result of ``xr.open_dataset(path, engine="h5netcdf")``, which takes five times as long.
    """
    variables = {}
    with h5py.File(path, "r", track_order=True) as file:
        for name, values in file.items():
            # A coordinate is a scale of HDF5. Each axis of another variable has one scale, which is named after its
            # dimension.
            dims = [name] if values.is_scale else [dim[0].name.rpartition("/")[2] for dim in values.dims]
            attrs = {key: _scalar(values.attrs[key]) for key in values.attrs if key not in NETCDF_ATTRIBUTES}
            array = values.asstr()[...].astype(str) if h5py.check_string_dtype(values.dtype) else values[...]
            variables[name] = xr.Variable(dims, array.astype(np.float64) if array.dtype.kind == "f" else array, attrs)
        attrs = {key: _scalar(value) for key, value in file.attrs.items() if key not in NETCDF_ATTRIBUTES}
    return xr.decode_cf(xr.Dataset(variables, attrs=attrs))


def _scalar(value: Any) -> Any:
    """The value of an attribute, where HDF5 holds a single number as an array of one entry."""
    return value.ravel()[0] if isinstance(value, np.ndarray) and value.size == 1 else value


def refuse_damaged(folder: Path, seed: int) -> None:
    """Raise DamagedFileError where the numbers of a kept seed are missing or were changed after they were written."""
    path, _ = files(folder, seed)
    problem = "is missing" if not path.exists() else "was changed after it was written"
    if not path.exists() or _digest(path) != seed_facts(folder, seed)["measurements"]:
        raise DamagedFileError(f"{path} {problem}; put it back, or keep that seed again with 'hessian-tools keep'")


def write_seed(folder: Path, seed: int, runs: Mapping[str, xr.Dataset], facts: Mapping[str, Any]) -> str:
    """Write the runs of a seed, reduced, and their facts; returns "written", "replaced" or "unchanged".

    runs: the measurements of each learner of the seed. facts: a JSON-like mapping.
    A file that holds the same numbers and the same facts is left as it is.
    """
    path, facts_file = files(folder, seed)
    one_seed = stack_runs({(name, seed): reduced(run) for name, run in runs.items()}, list(runs))
    ds = one_seed.isel(seed=0, drop=True).drop_attrs(deep=False).assign_attrs(study=str(facts["study"]), seed=seed)
    ds = ds.assign(
        {name: values.astype(np.float32) for name, values in ds.data_vars.items() if values.dtype.kind == "f"}
    )
    # In one piece each, variables take less room than in several, and they are small.
    encoding: dict[Any, dict[str, Any]] = {
        name: ENCODING | {"chunksizes": values.shape} for name, values in ds.data_vars.items() if values.size > 1
    }
    before = seed_facts(folder, seed) if facts_file.exists() else None
    outcome = "written" if before is None else "replaced"

    def write(part: Path) -> None:
        # The layout of HDF5 1.10 and later takes 1.4 KB a variable besides its numbers; the older one takes 5 KB.
        with h5netcdf.File(part, "w", libver=("v110", "v110")) as file:
            ds.dump_to_store(H5NetCDFStore(file), encoding=encoding)

    content = {**facts, "learners": list(runs), "content": _content(ds)}
    # Compared without the digest of the file, because other versions of HDF5 may write the same numbers in other bytes.
    is_same = before is not None and before == {**content, "measurements": before["measurements"]}
    if before is not None and is_same and path.exists() and _digest(path) == before["measurements"]:
        return "unchanged"
    write_atomic(path, write)
    write_json(facts_file, {**content, "measurements": _digest(path)})
    return outcome


def reduced(run: xr.Dataset) -> xr.Dataset:
    """A run with only what is kept of it; reducing twice changes nothing more. The run is not changed.

    The numbers stay float64, but have values of float32.
    """
    errors = {values.attrs.get("error_variable") for values in run.data_vars.values()}
    is_measured = run["status"] == MEASURED
    kept: dict[str, xr.DataArray] = {}
    errors_of_errors = [f"{error}{MEAN_ERROR}" for error in errors]  # which earlier versions kept
    for name, values in run.drop_vars([*LEFT_OUT, *errors_of_errors], errors="ignore").data_vars.items():
        name = str(name)
        if values.dtype.kind != "f":
            kept[name] = values.copy(deep=False)  # whose attributes may be changed
            continue
        if "task" in values.dims and set(values.dims) & set(MEAN_DIMS):
            values, stderr = _over_tasks(values.where(is_measured))
            if name not in errors:
                kept[name + MEAN_ERROR] = _float32(stderr, bits=ERROR_BITS)
        is_error = name in errors or name.endswith(MEAN_ERROR)
        bits = None if name in EXACT else VALUE_BITS
        kept[name] = _float32(values, bits=ERROR_BITS if is_error else bits)
    for values in kept.values():
        if values.attrs.get("error_variable") not in kept:
            values.attrs.pop("error_variable", None)
    ds = xr.Dataset(kept, attrs=run.attrs)
    if "variables" in ds.attrs:
        ds.attrs["variables"] = list(kept)
    for name, coordinate in ds.coords.items():  # arithmetic may have dropped the attributes of coordinates
        coordinate.attrs = dict(run[name].attrs)
    return ds


def _over_tasks(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """The mean over tasks and its standard error, without the tasks that have no value."""
    count = values.notnull().sum("task")
    mean = mean_over(values, "task")
    variance = ((values - mean) ** 2).sum("task") / (count - 1).where(count > 1)
    attrs = dict(values.attrs)
    attrs.pop("error_variable", None)
    what = attrs.get("long_name", str(values.name))
    mean = mean.assign_attrs(attrs, long_name=f"{what} (mean over tasks)", error_variable=f"{values.name}{MEAN_ERROR}")
    stderr = (variance / count) ** 0.5
    return mean, stderr.assign_attrs(attrs, long_name=f"{what} (standard error of the mean over tasks)")


def _float32(values: xr.DataArray, *, bits: int | None = None) -> xr.DataArray:
    """The values rounded to float32 and, if ``bits`` is given, to that many bits of the mantissa.

    A number in the middle between two goes to the one of larger magnitude.
    """
    with np.errstate(over="ignore"):
        array = values.values.astype(np.float32)
    if bits is not None:
        # The bits of a float32 are read as an integer. Rounding adds half of the last bit that stays to it, and clears
        # the unused bits below that one. (numpy reads the bits of a single number only through an axis of length 1.)
        unused = 23 - bits
        code = array.view(np.uint32) if array.ndim else array[None].view(np.uint32)[0]
        rounded = ((code + np.uint32(1 << (unused - 1))) & np.uint32(0xFFFFFFFF - ((1 << unused) - 1))).astype(
            np.uint32
        )
        array = np.where(np.isfinite(array), np.asarray(rounded).view(np.float32), array)
    return values.copy(data=array.astype(np.float64))


def _content(ds: xr.Dataset) -> str:
    """The SHA-256 of all names and numbers, which does not depend on how a version of HDF5 lays out a file."""
    content = hashlib.sha256()
    for name in sorted(map(str, ds.variables)):
        values = ds[name].values
        is_text = values.dtype.kind in "OUT"  # objects, and the two kinds of strings of numpy
        data = "\0".join(map(str, values)).encode() if is_text else values.tobytes()
        content.update(f"{name} {values.dtype} {values.shape} ".encode() + data)
    return content.hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def runs_of(folder: Path, wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], xr.Dataset]:
    """The measurements of those runs (learner, seed) among ``wanted`` that are kept in a folder."""
    wanted = list(wanted)
    return {
        (name, seed): run
        for seed in dict.fromkeys(seed for _, seed in wanted)
        for name, run in open_seed(folder, seed).items()
        if (name, seed) in wanted
    }
