"""Tests that a store of measurements notices a file that is damaged, lost, or that of another run of equal shape."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damages import flip_a_bit

from analysis import store
from analysis.schema import Sizes, point_variable
from hessian_tools.runs.files import read_json, write_json

RHO = point_variable("rho", "curvature")
# The units of the one checkpoint, and the variable that each fills: two blocks of tasks, and the evaluation (None). A
# chunk of the store holds one task, so the first unit has two chunks.
UNITS = [(slice(0, 2), "rho"), (slice(2, 3), "rho"), (None, "evaluation_loss")]


def write_units(path: Path, value: float) -> None:
    for block, name in UNITS:
        if not store.is_done(path, 0, block):
            store.write_unit(path, 0, block, {name: np.array(value)})


def measured(folder: Path, value: float) -> Path:
    """A store in which every unit is measured, and every number is ``value``."""
    sizes = Sizes((0,), (0, 1, 2), steps=1, layers=("w",), eigenvalues=1, probes=1, evaluation_tasks=2)
    attrs, scalars = {"learner": "maml", "seed": 0}, {"step_size": value, "num_params": 3}
    path = store.create(folder, sizes, variables=[RHO], block=1, attrs=attrs, scalars=scalars)
    write_units(path, value)
    return path


# The unit of a fault is (checkpoint, chunk), with None in place of the chunk for the evaluation; or None for the store.
@pytest.mark.parametrize(
    ("name", "unit"),
    [("rho/c/0/1/0", (0, 1)), ("rho/c/0/2/0", (0, 2)), ("evaluation_loss/c/0/0", (0, None)), ("step_size/c", None)],
)
def test_a_chunk_of_another_run_is_noticed_and_measured_anew(tmp_path, name, unit):
    ours, other = measured(tmp_path / "ours", 1.0), measured(tmp_path / "other", 2.0)
    assert not [*store.faults(ours), *store.faults(other)]
    shutil.copy(other / name, ours / name)
    (fault,) = store.faults(ours)
    assert (fault.file, fault.unit) == (ours / name, unit)
    store.discard(ours, fault)
    if unit is None:  # the store is renamed as a whole
        assert {path.suffix for path in (tmp_path / "ours").iterdir()} == {".damaged-1"}
        return
    assert ours.joinpath(f"{name}.damaged-1").read_bytes() == other.joinpath(name).read_bytes()
    assert not store.is_complete(ours)
    write_units(ours, 1.0)
    assert store.is_complete(ours)
    assert not list(store.faults(ours))


def of_another_run(record: Path) -> None:
    write_json(record, read_json(record) | {"store": "0" * 64})


@pytest.mark.parametrize(
    ("damage", "problem"), [(Path.unlink, "is missing"), (flip_a_bit, "was changed"), (of_another_run, "is that of")]
)
def test_a_record_of_a_unit_that_is_lost_damaged_or_of_another_run_is_noticed(
    tmp_path: Path, damage: Callable[[Path], object], problem: str
) -> None:
    path = measured(tmp_path, 1.0)
    damage(tmp_path / store.RECORDS / "0-2.json")
    (fault,) = store.faults(path)
    assert fault.problem.startswith(problem)
    store.discard(path, fault)
    write_units(path, 1.0)
    assert not list(store.faults(path))


def test_a_store_that_was_made_without_records_is_read_and_goes_on_with_them(tmp_path):
    """Older stores have digests of the files that describe their arrays only. A unit measured later gets a record."""
    path = measured(tmp_path, 1.0)
    shutil.rmtree(tmp_path / store.RECORDS)
    described = read_json(tmp_path / store.DIGESTS)
    write_json(
        tmp_path / store.DIGESTS, {name: value for name, value in described.items() if name.endswith("zarr.json")}
    )
    assert not list(store.faults(path))
    (path / "done" / "c" / "0" / "2").unlink()
    write_units(path, 3.0)
    assert not list(store.faults(path))
    shutil.copy(path / "rho/c/0/1/0", path / "rho/c/0/2/0")
    assert [fault.unit for fault in store.faults(path)] == [(0, 2)]
