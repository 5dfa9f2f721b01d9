"""Names, dimensions, units and meanings of everything measured: the waist of the analysis.

Whatever measures fills these variables; whatever tests, draws or reports reads only these.
A run (one learner, one seed) is a Dataset over ``RUN_DIMS``; a study stacks runs over
``learner`` and ``seed``. Coordinates are the numbers themselves; ``learner`` is an integer code
with CF ``flag_values`` / ``flag_meanings``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

POINT = ("checkpoint", "task", "inner_step")
TASK = ("checkpoint", "task")


@dataclass(frozen=True)
class Variable:
    """One measured quantity: its dimensions in a run, unit, meaning, and the variable that holds its error."""

    name: str
    dims: tuple[str, ...]
    units: str
    long_name: str
    error: str | None = None
    dtype: str = "float64"


@dataclass(frozen=True)
class Sizes:
    """Coordinates of one run: the lengths of every dimension follow from them."""

    checkpoints: tuple[int, ...]
    tasks: tuple[int, ...]
    steps: int
    layers: tuple[str, ...]
    eigenvalues: int
    probes: int
    evaluation_tasks: int

    @property
    def coords(self) -> dict[str, np.ndarray]:
        """One integer coordinate per dimension."""
        ranges = {
            "inner_step": self.steps + 1,
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
# A gradient shorter than this has no square in float32: what is divided by that square is 0 / 0, not a number.
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
    # many more held-out tasks, accuracy only
    Variable("evaluation_loss", ("checkpoint", "evaluation_task"), "1", "query loss after adaptation"),
    Variable("evaluation_accuracy", ("checkpoint", "evaluation_task"), "1", "query accuracy after adaptation"),
    # state of the measurement
    Variable("level", TASK, "1", "how much was measured: " + ", ".join(LEVEL_MEANINGS), dtype="int8"),
    Variable("status", TASK, "1", "state of the unit: " + ", ".join(STATUS_MEANINGS), dtype="int8"),
    Variable("done", TASK, "1", "1 when the unit is written in full; written last", dtype="int8"),
    Variable("evaluation_done", ("checkpoint",), "1", "1 when the evaluation is written", dtype="int8"),
    Variable("step_size", (), "1", "inner learning rate alpha; NaN where inner steps are not alpha times the gradient"),
    Variable("num_params", (), "1", "number of parameters the inner loop moves", dtype="int64"),
)

BY_NAME: Mapping[str, Variable] = {variable.name: variable for variable in VARIABLES}


def blank_run(sizes: Sizes) -> xr.Dataset:
    """A run's Dataset with nothing measured: NaN for numbers, 0 for flags."""
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
    """All runs of a study in one Dataset with leading dimensions learner and seed.

    A (learner, seed) or checkpoint that a run does not have is NaN in numbers and 0 in flags.
    """
    seeds = sorted({seed for _, seed in runs})
    present = [learner for learner in learners if any(name == learner for name, _ in runs)]
    rows = []
    for learner in present:
        cells = [runs[learner, seed].expand_dims(seed=[seed]) for seed in seeds if (learner, seed) in runs]
        code = learners.index(learner)
        rows.append(_concat(cells, "seed").expand_dims(learner=[code]))
    ds = _concat(rows, "learner")
    for variable in VARIABLES:
        if variable.dtype != "float64":
            ds[variable.name] = ds[variable.name].fillna(0).astype(variable.dtype)
    ds["learner"].attrs.update(flag_values=list(range(len(learners))), flag_meanings=" ".join(learners))
    return ds


def learner_names(ds: xr.Dataset) -> list[str]:
    """Names of the learners present, in the order of the learner coordinate."""
    meanings = ds["learner"].attrs["flag_meanings"].split()
    return [meanings[int(code)] for code in ds["learner"].values]


def describe_learners(
    ds: xr.Dataset,
    *,
    trained: Mapping[str, bool],
    without_shot: Mapping[str, str],
    untrained_start: Mapping[str, str] | None = None,
    no_alpha: Mapping[str, str | None] | None = None,
) -> xr.Dataset:
    """Add what the learners are, as coordinates: claims and figures must not guess it from names.

    ``trained``: 0 for an untrained control. ``without_shot``: for a learner with SHOT, the code of the learner that
    is the same but for SHOT; -1 where there is none. ``untrained_start``: the code of the learner whose checkpoint 0 is
    the untrained network under the same inner loop, by default the learner itself; -1 where the study has none.
    ``no_alpha``: why inner steps are not one alpha times the gradient, by default they are; the coordinate
    ``alpha_steps`` is 0 for such a learner, and the words are its attribute.
    """
    names = learner_names(ds)
    codes = {name: int(code) for name, code in zip(names, ds["learner"].values, strict=True)}
    starts = {name: name for name in names} if untrained_start is None else untrained_start
    why = {name: words for name, words in (no_alpha or {}).items() if words and name in codes}

    def partners(of: Mapping[str, str]) -> tuple[str, np.ndarray]:
        return "learner", np.array([codes.get(of.get(name, ""), -1) for name in names], dtype=np.int64)

    return ds.assign_coords(
        trained=("learner", np.array([trained[name] for name in names], dtype=np.int8)),
        without_shot=partners(without_shot),
        untrained_start=partners(starts),
        alpha_steps=("learner", np.array([name not in why for name in names], dtype=np.int8), why),
    )


def untrained_start(ds: xr.Dataset, name: str) -> str | None:
    """The learner whose checkpoint 0 is the untrained network under this one's inner loop; None: not in this study."""
    meanings = ds["learner"].attrs["flag_meanings"].split()
    code = int(ds["untrained_start"].values[learner_names(ds).index(name)])
    return meanings[code] if code >= 0 else None


def begun_elsewhere(ds: xr.Dataset) -> list[str]:
    """Learners whose checkpoint 0 is not the untrained network but another learner's best."""
    return [name for name in learner_names(ds) if untrained_start(ds, name) != name]


def alpha_steps(ds: xr.Dataset, name: str) -> bool:
    """Whether a learner's inner steps are alpha times the gradient; where not, what is scaled by alpha is NaN."""
    return bool(ds["alpha_steps"].values[learner_names(ds).index(name)])


def with_alpha(ds: xr.Dataset) -> xr.Dataset:
    """The learners whose inner steps are alpha times the gradient; all of them where none's are."""
    having = np.flatnonzero(ds["alpha_steps"].values)
    return ds.isel(learner=having) if having.size else ds


def why_no_alpha(ds: xr.Dataset) -> dict[str, str]:
    """In words, for each learner without an alpha, why it has none."""
    return {name: str(ds["alpha_steps"].attrs[name]) for name in learner_names(ds) if not alpha_steps(ds, name)}


def trained_learners(ds: xr.Dataset) -> list[str]:
    """Every learner that is no untrained control."""
    return [name for name, trained in zip(learner_names(ds), ds["trained"].values, strict=True) if trained]


def shot_pairs(ds: xr.Dataset) -> list[tuple[str, str]]:
    """(learner with SHOT, the same learner without) for every pair the study has."""
    meanings = ds["learner"].attrs["flag_meanings"].split()
    pairs = zip(learner_names(ds), ds["without_shot"].values, strict=True)
    return [(name, meanings[int(code)]) for name, code in pairs if code >= 0]


def learner_code(ds: xr.Dataset, name: str) -> int:
    """The code of a learner, for ``ds.sel(learner=...)``."""
    names = learner_names(ds)
    if name not in names:
        raise ValueError(f"no learner {name!r} in this study; it has {', '.join(names)}")
    return int(ds["learner"].values[names.index(name)])


def _concat(parts: list[xr.Dataset], dim: str) -> xr.Dataset:
    return xr.concat(parts, dim=dim, join="outer", combine_attrs="override", data_vars="all", coords="minimal")
