"""``to_xarray``: turn a result of the library into a Dataset whose variables have units, meanings and errors.

The points of a result are the parameter vectors at which a quantity was computed. The leading axes of a result, such as
task and inner step, tell its points apart. They are called its axes of points.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from torch import Tensor
from torch.nn.functional import pad

from hessian_tools import curvature
from hessian_tools.trajectory import Trajectory

# Losses have one unit (such as nats or a squared error) and parameters have another. All other units follow from these.
DIMENSIONLESS = "1"
LOSS = "loss"
PARAMETER = "parameter"
GRADIENT = "loss/parameter"
CURVATURE = "loss/parameter^2"
"""The unit of the Hessian, its eigenvalues and its trace; a step size has the inverse unit, parameter^2 / loss."""
PER_CURVATURE = "parameter^2/loss"
CURVATURE_SQUARED = "loss^2/parameter^4"

# A ``curvature.Check`` is a list of findings, each about one property of a product, such as its symmetry. A finding has
# passed (True), failed (False) or was not judged (None). The variable ``passed`` of a Dataset stores these as numbers.
# Its attributes flag_values and flag_meanings say what they mean, as in the CF conventions for climate data.
VERDICTS = {False: 0, None: 1, True: 2}
VERDICT_MEANINGS = "wrong not_judged ok"  # of the numbers 0, 1 and 2


class Column(NamedTuple):
    """One variable of a Dataset.

    dims: the names of the axes that follow the axes of points.
    units, long_name: the unit of the values, and what they are.
    error: the name of the variable that holds the errors of this one; "" if there is none.
    source: the attribute of a result that holds the values, such as ``trace.value``, or a function that computes them
        from a result. By default, it is the attribute with the same name as the variable.
    """

    dims: tuple[str, ...]
    units: str
    long_name: str
    error: str = ""
    source: str | Callable[[Any], Any] = ""


Columns = dict[str, Column]


# The next four functions make the columns of a kind of result. If such a result is an attribute of a larger one, the
# argument ``prefix`` names this attribute: with the prefix "trace.", values are read from ``trace.value`` of a Moments.


def _pairs(name: str, dim: str, meaning: str, *, prefix: str = "") -> Columns:
    return {
        name: Column((dim,), CURVATURE, meaning, f"{name}_residual", f"{prefix}values"),
        f"{name}_residual": Column((dim,), CURVATURE, _RESIDUAL, source=f"{prefix}residuals"),
        f"{name}_converged": Column((dim,), DIMENSIONLESS, _CONVERGED, "", f"{prefix}converged"),
        f"{name}_complete": Column((), DIMENSIONLESS, _COMPLETE, source=f"{prefix}complete"),
        f"{name}_vector": Column(("param", dim), DIMENSIONLESS, "unit eigenvectors", source=f"{prefix}vectors"),
    }


def _estimate(name: str, units: str, meaning: str, *, prefix: str = "") -> Columns:
    return {
        name: Column((), units, f"{meaning}, mean over probes", f"{name}_stderr", f"{prefix}value"),
        f"{name}_stderr": Column((), units, f"standard error of the {meaning}", source=f"{prefix}stderr"),
        f"{name}_sample": Column(("probe",), units, f"{meaning}, of each probe", source=f"{prefix}samples"),
        f"{name}_converged": Column(
            (), DIMENSIONLESS, "whether the error is within tolerance", source=f"{prefix}converged"
        ),
    }


def _diagonal(*, prefix: str = "") -> Columns:
    meaning = "diagonal entries, mean over probes"
    return {
        "diagonal": Column(("param",), CURVATURE, meaning, "diagonal_stderr", f"{prefix}value"),
        "diagonal_stderr": Column(("param",), CURVATURE, "standard error of each entry", source=f"{prefix}stderr"),
        "diagonal_converged": Column(("param",), DIMENSIONLESS, _FINITE, source=f"{prefix}converged"),
    }


def _num_matvecs(*, prefix: str = "") -> Columns:
    return {"num_matvecs": Column((), DIMENSIONLESS, _PRODUCTS, source=f"{prefix}num_matvecs")}


def _from_findings(read: Callable[[curvature.Finding], float], dtype: str = "float64") -> Callable[[Any], np.ndarray]:
    """A function that reads one number from every finding of a Check, as an array of type ``dtype``."""
    return lambda check: np.array([read(finding) for finding in check.findings], dtype=dtype)


def _padded_vectors(spectrum: curvature.Spectrum) -> Tensor | None:
    """The eigenvectors as columns, one for each eigenvalue.

    A Spectrum may hold fewer eigenvectors than eigenvalues: the last eigenvalues are 0, and their eigenvectors were not
    computed. The columns of these are filled with zeros.
    """
    if spectrum.vectors is None:
        return None
    return pad(spectrum.vectors, (0, spectrum.values.shape[-1] - spectrum.vectors.shape[-1]))


_CONVERGED = "whether the residual is within tolerance"
_FINITE = "whether value and error are finite"
_PRODUCTS = "matrix-vector products used at each point"
_NODE_RESIDUAL = "at least one exact eigenvalue lies within this distance of the node"
_RESIDUAL = "|Hv - lambda v|: at least one exact eigenvalue lies within this distance"
_BY_MAGNITUDE = "eigenvalues by falling magnitude; those that are not listed are zero"
_COMPLETE = "whether it was shown that no wanted eigenvalue is missing"
# The dimensions of variables, after the axes of points.
_EIGEN, _GRID, _NODE, _STEP = ("eigen_index",), ("grid",), ("probe", "node"), ("inner_step",)

# The variables of each kind of result. ``to_xarray`` finds the number of axes of points from the first variable of a
# kind, so this variable must have all of them.
COLUMNS: dict[type, Columns] = {
    curvature.EigenPairs: _pairs("eigenvalue", "eigen_index", "eigenvalues") | _num_matvecs(),
    curvature.Extremes: _pairs("eigenvalue", "eigen_index", "largest eigenvalues by magnitude", prefix="magnitude.")
    | _pairs("eigenvalue_max", "end_index", "largest algebraic eigenvalues", prefix="largest.")
    | _pairs("eigenvalue_min", "end_index", "smallest algebraic eigenvalues", prefix="smallest.")
    | _num_matvecs(prefix="magnitude."),  # one run finds all three, and each of them counts all its products
    curvature.Spectrum: {
        "eigenvalue": Column(_EIGEN, CURVATURE, _BY_MAGNITUDE, "eigenvalue_error", "values"),
        "eigenvalue_error": Column((), CURVATURE, "bound on the error of every eigenvalue of a point", source="error"),
        "eigenvalue_vector": Column(("param", *_EIGEN), DIMENSIONLESS, "unit eigenvectors", source=_padded_vectors),
        "dense": Column((), DIMENSIONLESS, "whether the whole matrix was computed"),
    }
    | _num_matvecs(),
    curvature.Estimate: _estimate("estimate", CURVATURE, "estimate") | _num_matvecs(),
    curvature.Diagonal: _diagonal() | _num_matvecs(),
    curvature.Moments: _estimate("trace", CURVATURE, "trace", prefix="trace.")
    | _estimate("frobenius_squared", CURVATURE_SQUARED, "squared Frobenius norm", prefix="frobenius_squared.")
    | _diagonal(prefix="diagonal.")
    | _num_matvecs(prefix="trace."),  # all three come from the same products, which each of them counts
    curvature.Density: {
        "density": Column(_GRID, PER_CURVATURE, "share of eigenvalues per unit of curvature"),
        "density_low": Column(_GRID, PER_CURVATURE, "low end of the band over probes", source=lambda d: d.band[0]),
        "density_high": Column(_GRID, PER_CURVATURE, "high end of the band over probes", source=lambda d: d.band[1]),
        "cumulative": Column(_GRID, DIMENSIONLESS, "share of eigenvalues up to this grid point"),
        "curvature": Column(_GRID, CURVATURE, "eigenvalue", source="grid"),
        "node_value": Column(_NODE, CURVATURE, "nodes of each probe's Gauss rule", "node_residual", "nodes"),
        "node_residual": Column(_NODE, CURVATURE, _NODE_RESIDUAL, source="residuals"),
        "node_weight": Column(_NODE, DIMENSIONLESS, "weights of the nodes", source="weights"),
        "node_isolated": Column(
            _NODE, DIMENSIONLESS, "whether no other eigenvalue is near the node", source="isolated"
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
        "value": Column(("finding",), DIMENSIONLESS, "the worst error found", source=_from_findings(lambda f: f.value)),
        "allowed": Column(("finding",), DIMENSIONLESS, "the error allowed", source=_from_findings(lambda f: f.allowed)),
        "passed": Column(
            ("finding",), DIMENSIONLESS, "verdict", source=_from_findings(lambda f: VERDICTS[f.passed], "int8")
        ),
    },
    Trajectory: {
        "support_loss": Column(_STEP, LOSS, "loss on the support set"),
        "query_loss": Column(_STEP, LOSS, "loss on the query set"),
        "support_accuracy": Column(_STEP, DIMENSIONLESS, "accuracy on the support set"),
        "query_accuracy": Column(_STEP, DIMENSIONLESS, "accuracy on the query set"),
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
    dims: the names of the result's leading axes; by default ("point",), or ("task",) for a Trajectory.
    coords: the labels along any dimension, such as {"point": inner_steps}; by default whole numbers from 0.

    Returns a Dataset whose ``attrs["kind"]`` names the kind of result. Units are made of those of the loss and the
    parameters. A variable that has an error names the error's variable in its attribute ``error_variable``.

    Raises TypeError if ``result`` is of no known kind, and ValueError if ``dims`` does not name the leading axes or
    ``coords`` has a dimension that the result lacks.

    >>> import torch
    >>> from hessian_tools.curvature import EigenPairs
    >>> values = torch.tensor([[4.0, -3.0], [2.0, 1.0]])
    >>> num_matvecs, complete = torch.tensor([9, 9]), torch.tensor([True, True])
    >>> pairs = EigenPairs(
    ...     values,
    ...     residuals=1e-3 * values.abs(),
    ...     converged=values > 0,
    ...     vectors=None,
    ...     num_matvecs=num_matvecs,
    ...     complete=complete,
    ... )
    >>> ds = to_xarray(pairs, coords={"point": [0, 5]})
    >>> ds["eigenvalue"].sel(point=5).values, ds["eigenvalue"].attrs["error_variable"]
    (array([2., 1.], dtype=float32), 'eigenvalue_residual')
    """
    if type(result) not in COLUMNS:
        kinds = ", ".join(kind.__name__ for kind in COLUMNS)
        raise TypeError(
            f"to_xarray cannot label an object of the class {type(result).__name__}; give a result of one of the kinds"
            f" {kinds}"
        )
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
        known = ", ".join(map(str, ds.sizes))
        raise ValueError(f"coords has the unknown dimension {unknown[0]!r}; this result has the dimensions {known}")
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
    """A copy of a variable's values as a numpy array; None if the result lacks them, such as eigenvectors."""
    values = source(result) if callable(source) else attrgetter(source or name)(result)
    return values.numpy(force=True).copy() if isinstance(values, Tensor) else values


def _leading_dims(num_axes: int, dims: Sequence[str] | None, result: Any) -> tuple[str, ...]:
    """The names of the ``num_axes`` axes of points.

    They are ``dims`` if given. Otherwise there is a default for one axis; several axes must be named, or ValueError is
    raised.
    """
    default = "task" if isinstance(result, Trajectory) else "point"
    names = ((default,) if num_axes == 1 else ()) if dims is None else tuple(dims)
    if len(names) != num_axes or len(set(names)) != num_axes:
        raise ValueError(
            f"dims={list(names)} does not name the {num_axes} leading axes of this result; give {num_axes} different "
            f"names, such as {['task', 'inner_step'][:num_axes]}"
        )
    return names


def axis_label(name: str, units: str) -> str:
    """The label of an axis: the name, and the unit in brackets unless the quantity is dimensionless.

    >>> axis_label("trace", CURVATURE), axis_label("accuracy", DIMENSIONLESS)
    ('trace [loss/parameter$^2$]', 'accuracy')
    """
    return name if units == DIMENSIONLESS else f"{name} [{units.replace('^2', '$^2$').replace('^4', '$^4$')}]"
