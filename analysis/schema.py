"""Names, dimensions, units and meanings of everything that is measured: the second waist of the house.

Code that measures fills these variables; code that tests, draws or reports reads only these. A run (one learner with
one seed) is a Dataset without these two dimensions; a study stacks its runs over ``learner``, whose coordinate holds
names, and ``seed``. The other coordinates are the numbers themselves. On disk, where zarr has no portable strings, a
run keeps its learner's name as an attribute, and ``layer`` is an integer code with the CF attributes ``flag_values``
and ``flag_meanings``.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

POINT = ("checkpoint", "task", "inner_step")
TASK = ("checkpoint", "task")


@dataclass(frozen=True)
class Variable:
    """One measured quantity: its dimensions in a run, its unit, its meaning, and the variable that holds its error."""

    name: str
    dims: tuple[str, ...]
    units: str
    long_name: str
    error: str | None = None
    dtype: str = "float64"


@dataclass(frozen=True)
class Sizes:
    """The coordinates of one run, from which the length of every dimension follows."""

    checkpoints: tuple[int, ...]
    tasks: tuple[int, ...]
    steps: int
    layers: tuple[str, ...]
    eigenvalues: int
    probes: int
    evaluation_tasks: int

    @property
    def coords(self) -> dict[str, np.ndarray]:
        """An integer coordinate for each dimension."""
        ranges = {
            "inner_step": self.steps + 1,  # the points before, between and after the steps
            "step_i": self.steps,
            "step_j": self.steps,
            "layer": len(self.layers),
            "eigen_index": self.eigenvalues,
            "probe": self.probes,
            "evaluation_task": self.evaluation_tasks,
        }
        named = {"checkpoint": np.asarray(self.checkpoints), "task": np.asarray(self.tasks)}
        return named | {name: np.arange(length) for name, length in ranges.items()}


def _point(name: str, units: str, long_name: str, *extra: str, error: str | None = None) -> Variable:
    return Variable(name, POINT + extra, units, long_name, error)


STATUS_MEANINGS = ("not_measured", "measured", "diverged")
# The square of a shorter gradient underflows in float32, so whatever is divided by that square is 0 / 0, not a number.
ZERO_GRADIENT = 1e-18
LEVEL_MEANINGS = ("none", "light", "full")

VARIABLES: tuple[Variable, ...] = (
    # the trajectory itself
    _point("support_loss", "1", "loss on the support set (cross-entropy in nat, or squared error)"),
    _point("query_loss", "1", "loss on the query set (cross-entropy in nat, or squared error)"),
    _point("support_accuracy", "1", "accuracy on the support set"),
    _point("query_accuracy", "1", "accuracy on the query set"),
    _point("theta_norm", "1", "Euclidean norm of the parameters |theta_k|"),
    _point("grad_norm", "1", "norm of the inner gradient |g_k|"),
    _point("displacement", "1", "distance from the start of the inner loop |theta_k - theta_0|"),
    _point("cos_displacement", "1", "cos(-g_k, theta_K - theta_0); not defined at the adapted point"),
    Variable("gram", (*TASK, "step_i", "step_j"), "1", "inner products of the inner gradients g_i'g_j"),
    Variable("alignment", TASK, "1", "alignment A = (|sum g|^2 / sum |g|^2 - 1) / (K - 1): 0 orthogonal, 1 equal"),
    _point("layer_norm", "1", "Euclidean norm of each parameter tensor", "layer"),
    # curvature of the support loss
    _point("hg_ratio", "1", "|Hg| / |g|", error="hg_ratio_error"),
    _point("hg_ratio_error", "1", "float32 error of |Hg| / |g|: asymmetry of the product + 8 eps |Hg| / |g|"),
    _point("rho", "1", "curvature along the gradient rho = g'Hg / g'g", error="rho_error"),
    _point("rho_error", "1", "float32 error of rho: asymmetry of the product + 8 eps |Hg| / |g|"),
    _point(
        "alpha_rho",
        "1",
        "alpha g'Hg / g'g; a gradient step lowers the quadratic model iff below 2",
        error="alpha_rho_error",
    ),
    _point("alpha_rho_error", "1", "float32 error of alpha rho"),
    _point("rho_normalised", "1", "rho in coordinates where each normalised filter has unit norm"),
    _point("rho_random", "1", "curvature along a random direction, mean over probes", error="rho_random_stderr"),
    _point("rho_random_stderr", "1", "standard error of the mean of rho along random directions"),
    _point("eigenvalue", "1", "largest eigenvalues by magnitude", "eigen_index", error="eigenvalue_residual"),
    _point("eigenvalue_residual", "1", "|Hv - lambda v|: some eigenvalue lies that near", "eigen_index"),
    _point("eigenvalue_max", "1", "largest algebraic eigenvalue", error="eigenvalue_max_residual"),
    _point("eigenvalue_max_residual", "1", "|Hv - lambda v| of the largest algebraic eigenvalue"),
    _point("eigenvalue_min", "1", "smallest algebraic eigenvalue", error="eigenvalue_min_residual"),
    _point("eigenvalue_min_residual", "1", "|Hv - lambda v| of the smallest algebraic eigenvalue"),
    _point("trace", "1", "trace of the Hessian, mean over Rademacher probes", error="trace_stderr"),
    _point("trace_stderr", "1", "standard error of the trace"),
    _point("trace_sample", "1", "z'Hz of each Rademacher probe, shared along a task", "probe"),
    # many more held-out tasks, for accuracy only
    Variable("evaluation_loss", ("checkpoint", "evaluation_task"), "1", "query loss after adaptation"),
    Variable("evaluation_accuracy", ("checkpoint", "evaluation_task"), "1", "query accuracy after adaptation"),
    # the state of the measurement
    Variable("level", TASK, "1", "how much was measured: " + ", ".join(LEVEL_MEANINGS), dtype="int8"),
    Variable("status", TASK, "1", "state of the unit: " + ", ".join(STATUS_MEANINGS), dtype="int8"),
    Variable("done", TASK, "1", "1 when the unit is written in full; written last", dtype="int8"),
    Variable("evaluation_done", ("checkpoint",), "1", "1 when the evaluation is written", dtype="int8"),
    Variable("step_size", (), "1", "inner learning rate alpha; NaN where inner steps are not alpha times the gradient"),
    Variable("num_params", (), "1", "number of parameters the inner loop moves", dtype="int64"),
)

BY_NAME: Mapping[str, Variable] = {variable.name: variable for variable in VARIABLES}


def blank_run(sizes: Sizes) -> xr.Dataset:
    """The Dataset of a run before anything is measured: NaN for numbers, 0 for flags."""
    coords = sizes.coords
    data = {}
    for variable in VARIABLES:
        shape = tuple(len(coords[dim]) for dim in variable.dims)
        fill = np.nan if variable.dtype == "float64" else 0
        attrs = {"long_name": variable.long_name, "units": variable.units}
        if variable.error:
            attrs["error_variable"] = variable.error
        data[variable.name] = (variable.dims, np.full(shape, fill, dtype=variable.dtype), attrs)
    ds = xr.Dataset(data, coords=coords)
    ds["layer"].attrs.update(flag_values=list(range(len(sizes.layers))), flag_meanings=" ".join(sizes.layers))
    return ds


def stack_runs(runs: Mapping[tuple[str, int], xr.Dataset], learners: Sequence[str]) -> xr.Dataset:
    """All runs of a study in one Dataset with the leading dimensions ``learner`` (names) and ``seed``.

    runs: by (learner, seed). learners: the names in the order that the Dataset is to have. A (learner, seed) or a
    checkpoint that has no run is NaN in numbers and 0 in flags.
    """
    seeds = sorted({seed for _, seed in runs})
    rows = []
    for learner in learners:
        cells = [runs[learner, seed].expand_dims(seed=[seed]) for seed in seeds if (learner, seed) in runs]
        if cells:
            rows.append(_concat(cells, "seed").expand_dims(learner=[learner]))
    ds = _concat(rows, "learner")
    for variable in VARIABLES:
        if variable.dtype != "float64":
            ds[variable.name] = ds[variable.name].fillna(0).astype(variable.dtype)
    return ds


def describe_learners(
    ds: xr.Dataset,
    *,
    trained: Mapping[str, bool],
    without_shot: Mapping[str, str],
    untrained_start: Mapping[str, str] | None = None,
    no_alpha: Mapping[str, str | None] | None = None,
) -> xr.Dataset:
    """Add what the learners are as coordinates, because claims and figures must not guess it from names.

    trained: 0 for an untrained control.
    without_shot: for a learner with SHOT the name of the learner that is the same but for SHOT; "" where there is none.
    untrained_start: the name of the learner whose checkpoint 0 is the untrained network under the same inner loop, by
        default the learner's own; "" where the study has none.
    no_alpha: in words, why inner steps are not one alpha times the gradient; "" where they are, which is the default.
    """
    names = learner_names(ds)

    def labels(of: Mapping[str, str | None], allowed: Sequence[str | None]) -> tuple[str, np.ndarray]:
        # Objects, because an array of fixed-width strings cuts off a longer name that is written into it.
        given = (of.get(name) for name in names)
        return "learner", np.array([label if label in allowed else "" for label in given], dtype=object)

    starts = {name: name for name in names} if untrained_start is None else untrained_start
    reasons = no_alpha or {}
    return ds.assign_coords(
        trained=("learner", np.array([trained[name] for name in names], dtype=np.int8)),
        without_shot=labels(without_shot, names),
        untrained_start=labels(starts, names),
        no_alpha=labels(reasons, [reason for reason in reasons.values() if reason]),
    )


def with_codes(ds: xr.Dataset) -> xr.Dataset:
    """The same study with each learner as an integer, its position, and -1 for none; for digests of the content."""
    codes = {name: code for code, name in enumerate(learner_names(ds))}
    numbered = {
        name: ("learner", np.array([codes.get(label, -1) for label in ds[name].values], dtype=np.int64))
        for name in ("learner", "without_shot", "untrained_start")
    }
    has_alpha = ("learner", (ds["no_alpha"].values == "").astype(np.int8))
    return ds.assign_coords(numbered | {"alpha_steps": has_alpha}).drop_vars("no_alpha")


def learner_names(ds: xr.Dataset) -> list[str]:
    """The names of the learners in a study, in the order of the learner coordinate."""
    return [str(name) for name in ds["learner"].values]


def untrained_start(ds: xr.Dataset, name: str) -> str | None:
    """The learner whose checkpoint 0 is the untrained network under this one's inner loop; None: the study has none."""
    start = ds["untrained_start"].sel(learner=name).item()
    return start if start in learner_names(ds) else None


def begun_elsewhere(ds: xr.Dataset) -> list[str]:
    """The learners whose checkpoint 0 is not the untrained network but the best checkpoint of another learner."""
    return [name for name in learner_names(ds) if untrained_start(ds, name) != name]


def alpha_steps(ds: xr.Dataset, name: str) -> bool:
    """Whether a learner's inner steps are alpha times the gradient; where not, whatever is scaled by alpha is NaN."""
    return name not in why_no_alpha(ds)


def with_alpha(ds: xr.Dataset) -> xr.Dataset:
    """The learners whose inner steps are alpha times the gradient, or all learners where there is no such learner."""
    having = np.flatnonzero(ds["no_alpha"].values == "")
    return ds.isel(learner=having) if having.size else ds


def why_no_alpha(ds: xr.Dataset) -> dict[str, str]:
    """For each learner without an alpha the reason in words."""
    return {name: str(reason) for name, reason in zip(learner_names(ds), ds["no_alpha"].values, strict=True) if reason}


def trained_learners(ds: xr.Dataset) -> list[str]:
    """All learners but the untrained controls."""
    return [name for name, trained in zip(learner_names(ds), ds["trained"].values, strict=True) if trained]


def shot_pairs(ds: xr.Dataset) -> list[tuple[str, str]]:
    """Every pair of a learner with SHOT and the same learner without that the study has."""
    names = learner_names(ds)
    return [(name, plain) for name, plain in zip(names, ds["without_shot"].values, strict=True) if plain in names]


def learner_code(ds: xr.Dataset, name: str) -> str:
    """Deprecated: learners are coordinates by name, so ``ds.sel(learner=name)`` needs no code; removed in 0.3."""
    warnings.warn(
        "learner_code is not needed any more and will be removed in 0.3; write ds.sel(learner=name)",
        DeprecationWarning,
        stacklevel=2,
    )
    return str(ds["learner"].sel(learner=name).item())


def _concat(parts: list[xr.Dataset], dim: str) -> xr.Dataset:
    return xr.concat(parts, dim=dim, join="outer", combine_attrs="override", data_vars="all", coords="minimal")
