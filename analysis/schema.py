"""The form of a study's measurements: what a variable is, the dimensions, and the variables that every study has.

The quantities that a study measures declare their own variables (``analysis.quantities``); the variables here describe
the run and the state of its measurement. The code that measures fills these variables, and the code that tests, draws
or reports reads only them. A run (one learner with one seed) is a Dataset with the dimensions below. A study stacks its
runs along two more dimensions: ``learner``, whose coordinate holds the learners' names, and ``seed``. The coordinates
``seed`` and ``checkpoint`` hold seeds and meta-iterations; the others count from 0, unless a quantity says otherwise.
On disk, where zarr has no portable strings, a run keeps its learner's name as an attribute, and ``layer`` is an integer
code whose meaning is in the CF attributes ``flag_values`` and ``flag_meanings``.

Symbols in the descriptions: theta_k is the parameter vector after k of the K inner steps, g_k the gradient of the
support loss there, and H its Hessian. rho = g'Hg / g'g is the curvature along the gradient. alpha is the inner step
size, and alpha rho is the product of the two.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import xarray as xr

POINT_DIMS = ("checkpoint", "task", "inner_step")  # of a quantity that is measured at every theta_k
TASK_DIMS = ("checkpoint", "task")  # of a quantity that is measured once per inner loop


@dataclass(frozen=True)
class Variable:
    """One measured variable.

    dims: its dimensions in a run. long_name: its meaning. error: the name of the variable that holds its error.
    units: "1" for every variable, because losses and parameters are counted as dimensionless.
    """

    name: str
    dims: tuple[str, ...]
    long_name: str
    error: str | None = None
    dtype: str = "float64"
    units: ClassVar[str] = "1"


@dataclass(frozen=True)
class Sizes:
    """The coordinates or lengths of the dimensions of one run.

    steps: the number K of inner steps. layers: the names of the parameter tensors.
    eigenvalues, probes: the number of each in a full measurement. A light measurement has fewer and leaves the last
        entries NaN; see ``LEVEL_MEANINGS``.
    evaluation_tasks: the number of further tasks, on which only loss and accuracy are measured.
    further: the coordinates of the dimensions that single quantities declare.
    """

    checkpoints: tuple[int, ...]
    tasks: tuple[int, ...]
    steps: int
    layers: tuple[str, ...]
    eigenvalues: int
    probes: int
    evaluation_tasks: int
    further: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def coords(self) -> dict[str, np.ndarray]:
        """A coordinate for each dimension: integers, but for the dimensions in ``further``."""
        ranges = {
            "inner_step": self.steps + 1,  # theta_0, ..., theta_K
            "step_i": self.steps,
            "step_j": self.steps,
            "layer": len(self.layers),
            "eigen_index": self.eigenvalues,
            "probe": self.probes,
            "evaluation_task": self.evaluation_tasks,
        }
        named = {"checkpoint": np.asarray(self.checkpoints), "task": np.asarray(self.tasks)}
        return named | {name: np.arange(length) for name, length in ranges.items()} | dict(self.further)


def point_variable(name: str, long_name: str, *extra_dims: str, error: str | None = None) -> Variable:
    """A variable that has a value, or values along ``extra_dims``, at every theta_k."""
    return Variable(name, POINT_DIMS + extra_dims, long_name, error)


def task_variable(name: str, long_name: str, *extra_dims: str, error: str | None = None) -> Variable:
    """A variable that has a value, or values along ``extra_dims``, for every inner loop."""
    return Variable(name, TASK_DIMS + extra_dims, long_name, error)


# The codes of ``status`` and of ``level`` are positions in these tuples. A task is diverged if training, its inner loop
# or its curvature has left the finite numbers, or if a loss of its inner loop has exploded (see ``exploded`` in
# ``hessian_tools.trajectory.trajectory``). "no_such_seed" marks the seeds that a learner does not have by the study's
# settings. The first tasks are measured in full at the first and the last checkpoint, with more eigenvalues and probes.
# All other measurements are light, with few of them. A study sets both numbers in measure.light and measure.full, and
# the number of the first tasks in measure.full_tasks.
STATUS_MEANINGS = ("not_measured", "measured", "diverged", "no_such_seed")
NOT_MEASURED, MEASURED, DIVERGED, NO_SUCH_SEED = range(4)
LEVEL_MEANINGS = ("none", "light", "full")
# A gradient whose norm is below this counts as zero: the squares of its entries underflow in float32, so that rho,
# which divides by g'g, is 0 / 0 and hence NaN.
ZERO_GRADIENT = 1e-18

# The variables of every run, whichever quantities a study measures.
RUN_VARIABLES: tuple[Variable, ...] = (
    # loss and accuracy on further held-out tasks, without curvature
    Variable("evaluation_loss", ("checkpoint", "evaluation_task"), "query loss after adaptation"),
    Variable("evaluation_accuracy", ("checkpoint", "evaluation_task"), "query accuracy after adaptation"),
    # the state of the measurement
    Variable("level", TASK_DIMS, "how much was measured: " + ", ".join(LEVEL_MEANINGS), dtype="int8"),
    Variable("status", TASK_DIMS, "state of the measurement: " + ", ".join(STATUS_MEANINGS), dtype="int8"),
    Variable("done", TASK_DIMS, "1 once all values of the task are written; written last", dtype="int8"),
    Variable("evaluation_done", ("checkpoint",), "1 once evaluation loss and accuracy are written", dtype="int8"),
    Variable("step_size", (), "inner step size alpha; NaN where inner steps are not alpha times the gradient"),
    Variable("num_params", (), "number of parameters that the inner loop moves", dtype="int64"),
)

# The coordinates along ``learner`` that ``describe_learners`` adds; version 0.1 did not have the later ones.
LATER_COORDINATES = ("dose", "penalty", "without_intervention", "control", "family", "algorithm", "first_order")
LEARNER_COORDINATES = ("trained", "without_shot", "untrained_start", "no_alpha", *LATER_COORDINATES)
# Those that hold numbers, with their types, and those that hold names of learners of the study; the others hold texts.
NUMBERS = {"trained": np.int8, "dose": np.float64, "penalty": np.float64, "first_order": np.int8}
NAMES = ("without_shot", "untrained_start", "without_intervention")


def blank_run(sizes: Sizes, variables: Sequence[Variable]) -> xr.Dataset:
    """The Dataset of a run before anything is measured: NaN for numbers, 0 for flags.

    variables: the variables of the measured quantities, after which those of every run come.
    """
    coords = sizes.coords
    data = {}
    for variable in (*variables, *RUN_VARIABLES):
        shape = tuple(len(coords[dim]) for dim in variable.dims)
        fill = np.nan if variable.dtype == "float64" else 0
        attrs = {"long_name": variable.long_name, "units": variable.units}
        if variable.error:
            attrs["error_variable"] = variable.error
        data[variable.name] = (variable.dims, np.full(shape, fill, dtype=variable.dtype), attrs)
    used = {dim for dims, _, _ in data.values() for dim in dims}
    ds = xr.Dataset(data, coords={name: values for name, values in coords.items() if name in used})
    ds.attrs["variables"] = list(data)  # their order, which zarr does not keep
    if "layer" in ds:  # a study may measure nothing by layer
        ds["layer"].attrs.update(flag_values=list(range(len(sizes.layers))), flag_meanings=" ".join(sizes.layers))
    return ds


def stack_runs(
    runs: Mapping[tuple[str, int], xr.Dataset],
    learners: Sequence[str],
    *,
    planned: Collection[tuple[str, int]] | None = None,
) -> xr.Dataset:
    """Stack all runs of a study in one Dataset with the leading dimensions ``learner`` (names) and ``seed``.

    runs: the runs by (learner, seed).
    learners: the names, in the order that the Dataset is to have.
    planned: every (learner, seed) that the study has by its settings; by default all combinations.

    Where a (learner, seed) has no run, or a run lacks a checkpoint that other runs have, numbers are NaN and flags 0.
    The status of a (learner, seed) that is not planned is "no_such_seed".
    """
    seeds = sorted({seed for _, seed in runs})
    by_learner = []
    for learner in learners:
        seed_runs = [runs[learner, seed].expand_dims(seed=[seed]) for seed in seeds if (learner, seed) in runs]
        if seed_runs:
            by_learner.append(_concat(seed_runs, "seed").expand_dims(learner=[learner]))
    ds = _concat(by_learner, "learner")
    for variable in RUN_VARIABLES:
        if variable.dtype != "float64":  # stacking has turned flags with gaps into float64 with NaN
            ds[variable.name] = ds[variable.name].fillna(0).astype(variable.dtype)
    if planned is not None:
        is_planned = [[(name, seed) in planned for seed in seeds] for name in ds["learner"].values]
        mask = xr.DataArray(is_planned, dims=("learner", "seed"))
        ds["status"] = ds["status"].where(mask, np.int8(NO_SUCH_SEED)).assign_attrs(ds["status"].attrs)
    return ds


def describe_learners(
    ds: xr.Dataset,
    *,
    trained: Mapping[str, bool],
    without_shot: Mapping[str, str],
    **others: Mapping[str, Any],
) -> xr.Dataset:
    """Add coordinates along ``learner``, so that claims and figures need not infer them from learners' names.

    Each argument has a value for each learner, by its name:
    trained: True for a trained learner, False for an untrained control.
    without_shot: for a learner with SHOT (the penalty on the distance between the ends of few large and of many small
        inner steps; Lee, Yoo, Kwak 2023), the name of the learner that has the same settings except for SHOT; "" for
        all other learners, and where the study has no such learner.
    untrained_start: the name of a learner with the same inner loop whose checkpoint 0 is the untrained network; ""
        where the study has none. By default it is the learner's own name.
    no_alpha: the reason, in words, why the learner's inner steps are not one number alpha times the gradient; "" where
        they are, which is the default.
    dose: the weight of SHOT in the outer loss, which may be negative; 0 without SHOT.
    penalty: the weight of the explicit penalty on the curvature; 0 without it.
    without_intervention: the name of the learner that has the same settings but neither SHOT nor the penalty; "" for a
        learner that has neither, and where the study has no such learner. By default it is ``without_shot``.
    control: "untrained", "supervised" or "shuffled" (trained on permuted labels) for a control; "" for the others. By
        default, only the learners that are not trained are controls.
    family: a label that learners share which differ only in SHOT, the penalty and ``first_order``. By default, each
        learner is a family of its own.
    algorithm: the name of the algorithm, such as maml or anil; "" where it is not known.
    first_order: True for a learner whose outer gradient treats the inner gradients as constants.

    Raises TypeError for an argument of another name.
    """
    if unknown := sorted(set(others) - set(LEARNER_COORDINATES)):
        raise TypeError(f"{', '.join(unknown)}: no such argument; the names are {', '.join(LEARNER_COORDINATES)}")
    names = learner_names(ds)
    by_coordinate: dict[str, Mapping[str, Any]] = {
        "trained": trained,
        "without_shot": without_shot,
        "untrained_start": {name: name for name in names},
        "no_alpha": {},
        "dose": {},
        "penalty": {},
        "without_intervention": without_shot,
        "control": {name: "" if trained[name] else "untrained" for name in names},
        "family": {name: name for name in names},
        "algorithm": {},
        "first_order": {},
    }
    coords = {}
    for coordinate, by_learner in (by_coordinate | others).items():
        values = [by_learner.get(name) for name in names]
        if coordinate in NUMBERS:
            array = np.array([value or 0 for value in values], dtype=NUMBERS[coordinate])
        else:
            is_name = coordinate in NAMES
            texts = [value if value and (value in names or not is_name) else "" for value in values]
            # Objects, because an array of fixed-width strings cuts off a longer name that is written into it.
            array = np.array(texts, dtype=object)
        coords[coordinate] = ("learner", array)
    return ds.assign_coords(coords)


def with_codes(ds: xr.Dataset) -> xr.Dataset:
    """The same study with integers in place of strings; the digest of a study's measurements is computed from it.

    A learner's name becomes its position along ``learner``, and "" becomes -1. The reasons ``no_alpha`` are replaced by
    ``alpha_steps``, which is 1 where inner steps are alpha times the gradient and 0 elsewhere. The coordinates that
    version 0.1 did not have are left out: they follow from the study's settings, and without them the digests that
    version 0.1 wrote stay valid.
    """
    codes = {name: code for code, name in enumerate(learner_names(ds))}
    numbered = {
        name: ("learner", np.array([codes.get(label, -1) for label in ds[name].values], dtype=np.int64))
        for name in ("learner", "without_shot", "untrained_start")
    }
    has_alpha = ("learner", (ds["no_alpha"].values == "").astype(np.int8))
    coded = ds.assign_coords(numbered | {"alpha_steps": has_alpha})
    return coded.drop_vars(["no_alpha", *LATER_COORDINATES], errors="ignore")


def learner_names(ds: xr.Dataset) -> list[str]:
    """The names of the learners in a study, in the order of the learner coordinate."""
    return [str(name) for name in ds["learner"].values]


def has_seed(ds: xr.Dataset, *names: str) -> np.ndarray:
    """True for each seed [seed] of the study that all of the learners have by the study's settings."""
    status = ds["status"].sel(learner=list(names)).transpose("seed", ...).values
    return np.asarray((status != NO_SUCH_SEED).reshape(len(status), -1).all(axis=1))


def with_seeds_of(ds: xr.Dataset, *names: str) -> xr.Dataset:
    """The study with only those seeds that all of the learners have, on which they can be compared pair by pair."""
    keep = has_seed(ds, *names)
    return ds if keep.all() else ds.isel(seed=np.flatnonzero(keep))


def untrained_start(ds: xr.Dataset, name: str) -> str | None:
    """A learner with the same inner loop as ``name`` whose checkpoint 0 is the untrained network.

    None: the study has no such learner.
    """
    start = str(setting(ds, "untrained_start", name))
    return start if start in learner_names(ds) else None


def begun_elsewhere(ds: xr.Dataset) -> list[str]:
    """The learners whose checkpoint 0 is the best checkpoint of another learner, not the untrained network."""
    return [name for name in learner_names(ds) if untrained_start(ds, name) != name]


def alpha_steps(ds: xr.Dataset, name: str) -> bool:
    """True if a learner's inner steps are alpha times the gradient; otherwise its values scaled by alpha are NaN."""
    return name not in why_no_alpha(ds)


def only_with_alpha(ds: xr.Dataset) -> xr.Dataset:
    """The study with only those learners whose inner steps are alpha times the gradient; all, if none is like that."""
    positions = np.flatnonzero(ds["no_alpha"].values == "")
    return ds.isel(learner=positions) if positions.size else ds


def why_no_alpha(ds: xr.Dataset) -> dict[str, str]:
    """For each learner whose inner steps are not alpha times the gradient, the reason in words."""
    return {name: str(reason) for name, reason in zip(learner_names(ds), ds["no_alpha"].values, strict=True) if reason}


def trained_learners(ds: xr.Dataset) -> list[str]:
    """The learners that are trained, which are all but the untrained controls."""
    return [name for name, trained in zip(learner_names(ds), ds["trained"].values, strict=True) if trained]


def shows_training(ds: xr.Dataset) -> bool:
    """True if a trained learner can be compared with its start: at checkpoint 0 and at a later one."""
    return bool(trained_learners(ds)) and ds.sizes["checkpoint"] > 1 and int(ds["checkpoint"][0]) == 0


def shot_pairs(ds: xr.Dataset) -> list[tuple[str, str]]:
    """Every pair (learner with SHOT, learner with the same settings except for SHOT) in the study."""
    names = learner_names(ds)
    return [(name, plain) for name, plain in zip(names, ds["without_shot"].values, strict=True) if plain in names]


def setting(ds: xr.Dataset, coordinate: str, name: str) -> Any:
    """The value of one of ``LEARNER_COORDINATES`` for a learner; its default in a Dataset of an earlier version."""
    if coordinate == "without_intervention" and coordinate not in ds.coords:
        coordinate = "without_shot"
    if coordinate in ds.coords:
        return ds.variables[coordinate].values[learner_names(ds).index(name)]
    return {"dose": 0.0, "penalty": 0.0, "first_order": 0, "family": name}.get(coordinate, "")


def plain_learners(ds: xr.Dataset) -> list[str]:
    """The trained learners that are not controls and use neither SHOT nor the penalty on the curvature."""
    return [name for name in trained_learners(ds) if setting(ds, "control", name) == "" and not intervened(ds, name)]


def intervened(ds: xr.Dataset, name: str) -> bool:
    """True for a learner that is trained with SHOT or with the penalty on the curvature."""
    coordinates = ("dose", "penalty", "without_shot", "without_intervention")
    return any(bool(setting(ds, coordinate, name)) for coordinate in coordinates)


def learners_by_weight(ds: xr.Dataset, base: str, instrument: str) -> dict[float, str]:
    """The learners of a series by their weight, from the smallest weight on; ``base`` has the weight 0.

    instrument: the coordinate that holds the weight, "dose" or "penalty".
    """
    other = "penalty" if instrument == "dose" else "dose"
    series = {0.0: base}
    for name in trained_learners(ds):
        # This coordinate is the name of the learner with the same settings but without either instrument.
        without = setting(ds, "without_intervention", name)
        if without == base and setting(ds, other, name) == 0:
            series.setdefault(float(setting(ds, instrument, name)), name)
    return dict(sorted(series.items()))


def learner_code(ds: xr.Dataset, name: str) -> str:
    """Deprecated and to be removed in 0.3: use ``ds.sel(learner=name)``, as learners are now selected by name."""
    warnings.warn(
        "learner_code is not needed any more and will be removed in 0.3; write ds.sel(learner=name)",
        DeprecationWarning,
        stacklevel=2,
    )
    return str(ds["learner"].sel(learner=name).item())


def _concat(parts: list[xr.Dataset], dim: str) -> xr.Dataset:
    """The Datasets side by side along a new dimension; where a part lacks a coordinate's value, its numbers are NaN."""
    return xr.concat(parts, dim=dim, join="outer", combine_attrs="override", data_vars="all", coords="minimal")
