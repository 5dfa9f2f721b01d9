"""``to_xarray``: every result of the library as a labelled Dataset, each variable with its unit, meaning and error."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from torch import Tensor
from torch.nn.functional import pad

from hessian_tools import curvature
from hessian_tools.trajectory import Trajectory

# A loss has one unit (nat, say, or a squared error) and a parameter has another; all other units follow from these.
NUMBER = "1"
LOSS = "loss"
PARAMETER = "parameter"
GRADIENT = "loss/parameter"
CURVATURE = "loss/parameter^2"
"""Unit of the Hessian, its eigenvalues and its trace, and of 1 / step size: a step size is parameter^2 / loss."""
PER_CURVATURE = "parameter^2/loss"
CURVATURE_SQUARED = "loss^2/parameter^4"

# A finding of a self-check has passed (True), failed (False), or was not judged (None); as CF flags these are numbers.
VERDICTS = {False: 0, None: 1, True: 2}
VERDICT_MEANINGS = "wrong not_judged ok"


class Column(NamedTuple):
    """One variable of a Dataset.

    dims: names of the axes behind those of the points.
    error: the name of the variable that holds its error.
    source: which attribute of a result has the values, such as ``trace.value``; by default that of the variable's name.
        It may also be a function of the result.
    """

    dims: tuple[str, ...]
    units: str
    long_name: str
    error: str = ""
    source: str | Callable[[Any], Any] = ""


Columns = dict[str, Column]


def _pairs(name: str, dim: str, meaning: str, *, of: str = "") -> Columns:
    return {
        name: Column((dim,), CURVATURE, meaning, f"{name}_residual", f"{of}values"),
        f"{name}_residual": Column((dim,), CURVATURE, _RESIDUAL, source=f"{of}residuals"),
        f"{name}_converged": Column((dim,), NUMBER, "whether the residual is as small as asked", "", f"{of}converged"),
        f"{name}_complete": Column((), NUMBER, _COMPLETE, source=f"{of}complete"),
        f"{name}_vector": Column(("param", dim), NUMBER, "unit eigenvectors", source=f"{of}vectors"),
    }


def _estimate(name: str, units: str, meaning: str, *, of: str = "") -> Columns:
    return {
        name: Column((), units, f"{meaning}, mean over probes", f"{name}_stderr", f"{of}value"),
        f"{name}_stderr": Column((), units, f"standard error of the {meaning}", source=f"{of}stderr"),
        f"{name}_sample": Column(("probe",), units, f"{meaning}, of each probe", source=f"{of}samples"),
        f"{name}_converged": Column((), NUMBER, "whether the error is as small as asked", source=f"{of}converged"),
    }


def _diagonal(*, of: str = "") -> Columns:
    meaning = "diagonal entries, mean over probes"
    return {
        "diagonal": Column(("param",), CURVATURE, meaning, "diagonal_stderr", f"{of}value"),
        "diagonal_stderr": Column(("param",), CURVATURE, "standard error of each entry", source=f"{of}stderr"),
        "diagonal_converged": Column(("param",), NUMBER, "whether both are finite", source=f"{of}converged"),
    }


def _num_matvecs(*, of: str = "") -> Columns:
    return {"num_matvecs": Column((), NUMBER, "products with the matrix used at each point", source=f"{of}num_matvecs")}


def _of_findings(read: Callable[[curvature.Finding], float], dtype: str = "float64") -> Callable[[Any], np.ndarray]:
    """A function that reads one number of every finding of a Check."""
    return lambda check: np.array([read(finding) for finding in check.findings], dtype=dtype)


def _padded_vectors(spectrum: curvature.Spectrum) -> Tensor | None:
    """The eigenvectors, with zeros for those of eigenvalues zero that were not computed."""
    if spectrum.vectors is None:
        return None
    return pad(spectrum.vectors, (0, spectrum.values.shape[-1] - spectrum.vectors.shape[-1]))


_RESIDUAL = "|Hv - lambda v|: some eigenvalue lies that near"
_NONZERO = "eigenvalues by falling magnitude; all others are zero"
_COMPLETE = "whether it was shown that no wanted eigenvalue is missing"
_EIGEN, _GRID, _NODE, _STEP = ("eigen_index",), ("grid",), ("probe", "node"), ("inner_step",)

# The variables of each kind of result. The first variable of a kind has all axes of the points.
COLUMNS: dict[type, Columns] = {
    curvature.EigenPairs: _pairs("eigenvalue", "eigen_index", "eigenvalues") | _num_matvecs(),
    curvature.Extremes: _pairs("eigenvalue", "eigen_index", "largest eigenvalues by magnitude", of="magnitude.")
    | _pairs("eigenvalue_max", "end_index", "largest algebraic eigenvalues", of="largest.")
    | _pairs("eigenvalue_min", "end_index", "smallest algebraic eigenvalues", of="smallest.")
    | _num_matvecs(of="magnitude."),
    curvature.Spectrum: {
        "eigenvalue": Column(_EIGEN, CURVATURE, _NONZERO, "eigenvalue_error", "values"),
        "eigenvalue_error": Column((), CURVATURE, "error of every eigenvalue of a point", source="error"),
        "eigenvalue_vector": Column(("param", *_EIGEN), NUMBER, "unit eigenvectors", source=_padded_vectors),
        "dense": Column((), NUMBER, "whether the whole matrix was computed"),
    }
    | _num_matvecs(),
    curvature.Estimate: _estimate("estimate", CURVATURE, "estimate") | _num_matvecs(),
    curvature.Diagonal: _diagonal() | _num_matvecs(),
    curvature.Moments: _estimate("trace", CURVATURE, "trace", of="trace.")
    | _estimate("frobenius_squared", CURVATURE_SQUARED, "squared Frobenius norm", of="frobenius_squared.")
    | _diagonal(of="diagonal.")
    | _num_matvecs(of="trace."),
    curvature.Density: {
        "density": Column(_GRID, PER_CURVATURE, "share of eigenvalues per unit of curvature"),
        "density_low": Column(_GRID, PER_CURVATURE, "low end of the band over probes", source=lambda d: d.band[0]),
        "density_high": Column(_GRID, PER_CURVATURE, "high end of the band over probes", source=lambda d: d.band[1]),
        "cumulative": Column(_GRID, NUMBER, "share of eigenvalues up to this grid point"),
        "curvature": Column(_GRID, CURVATURE, "eigenvalue", source="grid"),
        "node_value": Column(_NODE, CURVATURE, "nodes of each probe's Gauss rule", "node_residual", "nodes"),
        "node_residual": Column(_NODE, CURVATURE, "some eigenvalue lies that near to the node", source="residuals"),
        "node_weight": Column(_NODE, NUMBER, "weights of the nodes", source="weights"),
        "node_isolated": Column(
            _NODE, NUMBER, "whether the node is an eigenvalue that stands alone", source="isolated"
        ),
        "width": Column((), CURVATURE, "standard deviation of the kernel"),
    }
    | _num_matvecs(),
    curvature.GradientCurvature: {
        "rho": Column((), CURVATURE, "curvature along the gradient, g'Hg / g'g", "rho_error"),
        "hg_ratio": Column((), CURVATURE, "|Hg| / |g|, which bounds |rho|", "rho_error"),
        "rho_error": Column((), CURVATURE, "rounding error of rho and of |Hg| / |g|", source="error"),
        "grad_norm": Column((), GRADIENT, "norm of the gradient |g|"),
    },
    curvature.Check: {
        "value": Column(("finding",), NUMBER, "the worst error found", source=_of_findings(lambda f: f.value)),
        "allowed": Column(("finding",), NUMBER, "the error allowed", source=_of_findings(lambda f: f.allowed)),
        "passed": Column(("finding",), NUMBER, "verdict", source=_of_findings(lambda f: VERDICTS[f.passed], "int8")),
    },
    Trajectory: {
        "support_loss": Column(_STEP, LOSS, "loss on the support set"),
        "query_loss": Column(_STEP, LOSS, "loss on the query set"),
        "support_accuracy": Column(_STEP, NUMBER, "accuracy on the support set"),
        "query_accuracy": Column(_STEP, NUMBER, "accuracy on the query set"),
        "theta_norm": Column(_STEP, PARAMETER, "Euclidean norm of the parameters |theta_k|"),
        "grad_norm": Column(_STEP, GRADIENT, "norm of the inner gradient |g_k|"),
        "displacement": Column(_STEP, PARAMETER, "distance from the start |theta_k - theta_0|"),
        "gram": Column(("step_i", "step_j"), "loss^2/parameter^2", "inner products of the inner gradients g_i'g_j"),
        "thetas": Column((*_STEP, "param"), PARAMETER, "parameters theta_k"),
        "gradients": Column((*_STEP, "param"), GRADIENT, "inner gradients g_k"),
    },
}


def to_xarray(
    result: Any, *, dims: Sequence[str] | None = None, coords: Mapping[str, Sequence[Any] | np.ndarray] | None = None
) -> xr.Dataset:
    """Turn a result into a Dataset of copies on the CPU, with names, units and meanings.

    result: one of the kinds in ``COLUMNS``, such as EigenPairs, Estimate, Density or Trajectory.
    dims: names of its leading axes; by default ("point",), or ("task",) for a Trajectory.
    coords: labels of any dimension, such as {"point": inner_steps}; by default whole numbers from 0.
    Returns a Dataset whose ``attrs["kind"]`` names the kind of result. Units are those of the loss and the parameters.
        A variable that has an error names it in its attribute ``error_variable``.
    Raises TypeError for anything else, and ValueError for names that do not fit.

    >>> import torch
    >>> from hessian_tools.curvature import EigenPairs
    >>> values = torch.tensor([[4.0, -3.0], [2.0, 1.0]])
    >>> products, complete = torch.tensor([9, 9]), torch.tensor([True, True])
    >>> pairs = EigenPairs(values, 1e-3 * values.abs(), values > 0, None, products, complete)
    >>> ds = to_xarray(pairs, coords={"point": [0, 5]})
    >>> ds["eigenvalue"].sel(point=5).values, ds["eigenvalue"].attrs["error_variable"]
    (array([2., 1.], dtype=float32), 'eigenvalue_residual')
    """
    if type(result) not in COLUMNS:
        kinds = ", ".join(kind.__name__ for kind in COLUMNS)
        raise TypeError(f"to_xarray cannot label a {type(result).__name__}; give a result of one of the kinds {kinds}")
    columns = COLUMNS[type(result)]
    arrays = {name: _array(result, name, column.source) for name, column in columns.items()}
    first = next(iter(columns))
    leading = _leading_dims(arrays[first].ndim - len(columns[first].dims), dims, result)
    ds = xr.Dataset(attrs={"kind": type(result).__name__})
    for name, array in arrays.items():
        if array is not None:
            column = columns[name]
            attrs = {"long_name": column.long_name, "units": column.units}
            attrs |= {"error_variable": column.error} if arrays.get(column.error) is not None else {}
            ds[name] = ((*leading, *column.dims), array, attrs)
    given = {name: np.asarray(labels) for name, labels in (coords or {}).items()}
    if unknown := sorted(set(given) - {str(name) for name in ds.sizes}):
        raise ValueError(f"coords has {unknown[0]!r}; this result has the dimensions {', '.join(map(str, ds.sizes))}")
    ds = ds.assign_coords({str(name): np.arange(size) for name, size in ds.sizes.items()} | given)
    if isinstance(result, curvature.Check):
        meanings = " ".join(finding.name for finding in result.findings)
        ds.attrs["finding_sentences"] = [finding.sentence for finding in result.findings]
        ds["finding"].attrs.update(flag_values=ds["finding"].values.tolist(), flag_meanings=meanings)
        ds["passed"].attrs.update(flag_values=list(VERDICTS.values()), flag_meanings=VERDICT_MEANINGS)
    if isinstance(result, curvature.Density):
        ds.attrs |= {"confidence": result.confidence, "num_params": result.num_params}
        ds = ds.set_coords("curvature")
    return ds


def _array(result: Any, name: str, source: str | Callable[[Any], Any]) -> Any:
    """A copy of a variable's values as a numpy array; None for what the result does not hold, such as eigenvectors."""
    values = source(result) if callable(source) else attrgetter(source or name)(result)
    return values.numpy(force=True).copy() if isinstance(values, Tensor) else values


def _leading_dims(number: int, dims: Sequence[str] | None, result: Any) -> tuple[str, ...]:
    """Names of the ``number`` axes of points: as given, or by default where there is at most one."""
    default = "task" if isinstance(result, Trajectory) else "point"
    names = ((default,) if number == 1 else ()) if dims is None else tuple(dims)
    if len(names) != number or len(set(names)) != number:
        raise ValueError(
            f"dims={list(names)} for a result with {number} leading axes; give {number} different names, such as "
            f"{['task', 'inner_step'][:number]}"
        )
    return names


def axis_label(name: str, units: str) -> str:
    """The label of an axis: the name, and the unit in brackets where there is one.

    >>> axis_label("trace", CURVATURE), axis_label("accuracy", NUMBER)
    ('trace [loss/parameter$^2$]', 'accuracy')
    """
    return name if units == NUMBER else f"{name} [{units.replace('^2', '$^2$').replace('^4', '$^4$')}]"
