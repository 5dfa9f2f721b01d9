"""What each kind of result has to say: its variables, their axes, units, meanings, and which is whose error."""

from dataclasses import dataclass, fields
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from analysis.views.units import CURVATURE, CURVATURE_SQUARED, GRADIENT, LOSS, NUMBER, PARAMETER, PER_CURVATURE
from hessian_tools.curvature import (
    AlongGradient,
    Check,
    Density,
    Diagonal,
    EigenPairs,
    Estimate,
    Extremes,
    Moments,
    Spectrum,
)
from hessian_tools.trajectory import Trajectory

# The codes of a finding's ``passed``, as CF flags.
VERDICTS = {False: 0, None: 1, True: 2}
VERDICT_MEANINGS = "wrong not_judged ok"


@dataclass(frozen=True)
class Column:
    """One variable to be: values whose leading axes are points, names of the axes behind them, and what it is."""

    values: Tensor
    dims: tuple[str, ...]
    units: str
    long_name: str
    error: str | None = None


@singledispatch
def columns_of(result: Any) -> dict[str, Column]:
    """The variables of a result; the first has all leading axes."""
    raise TypeError(
        f"to_xarray knows no {type(result).__name__}; give a result such as EigenPairs, Estimate, Density or Trajectory"
    )


def _with_error(
    values: Tensor, error: Tensor, dims: tuple[str, ...], units: str, said: dict[str, str]
) -> dict[str, Column]:
    """A variable and its error; said: both names with their meanings."""
    (name, meaning), (error_name, error_meaning) = said.items()
    return {
        name: Column(values, dims, units, meaning, error=error_name),
        error_name: Column(error, dims, units, error_meaning),
    }


def _pairs(pairs: EigenPairs, name: str, dim: str, meaning: str) -> dict[str, Column]:
    said = {name: meaning, f"{name}_residual": "|Hv - lambda v|: some eigenvalue lies that near"}
    columns = _with_error(pairs.values, pairs.residuals, (dim,), CURVATURE, said)
    columns[f"{name}_converged"] = Column(pairs.converged, (dim,), NUMBER, "whether the residual is as small as asked")
    meaning = "whether it was shown that no wanted eigenvalue is missing"
    columns[f"{name}_complete"] = Column(pairs.complete, (), NUMBER, meaning)
    if pairs.vectors is not None:
        columns[f"{name}_vector"] = Column(pairs.vectors, ("param", dim), NUMBER, "unit eigenvectors")
    return columns


def _num_matvecs(count: Tensor) -> dict[str, Column]:
    return {"num_matvecs": Column(count, (), NUMBER, "products with the matrix used at each point")}


@columns_of.register
def _eigen_pairs(pairs: EigenPairs) -> dict[str, Column]:
    return _pairs(pairs, "eigenvalue", "eigen_index", "eigenvalues") | _num_matvecs(pairs.num_matvecs)


@columns_of.register
def _extremes(extremes: Extremes) -> dict[str, Column]:
    return (
        _pairs(extremes.magnitude, "eigenvalue", "eigen_index", "largest eigenvalues by magnitude")
        | _pairs(extremes.largest, "eigenvalue_max", "end_index", "largest algebraic eigenvalues")
        | _pairs(extremes.smallest, "eigenvalue_min", "end_index", "smallest algebraic eigenvalues")
        | _num_matvecs(extremes.magnitude.num_matvecs)
    )


def _estimated(estimate: Estimate, name: str, units: str, meaning: str) -> dict[str, Column]:
    said = {name: f"{meaning}, mean over probes", f"{name}_stderr": f"standard error of the {meaning}"}
    columns = _with_error(estimate.value, estimate.stderr, (), units, said)
    columns[f"{name}_sample"] = Column(estimate.samples, ("probe",), units, f"{meaning}, of each probe")
    columns[f"{name}_converged"] = Column(estimate.converged, (), NUMBER, "whether the error is as small as asked")
    return columns


@columns_of.register
def _estimate(estimate: Estimate) -> dict[str, Column]:
    return _estimated(estimate, "estimate", CURVATURE, "estimate") | _num_matvecs(estimate.num_matvecs)


def _entries(diagonal: Diagonal) -> dict[str, Column]:
    said = {"diagonal": "diagonal entries, mean over probes", "diagonal_stderr": "standard error of each entry"}
    columns = _with_error(diagonal.value, diagonal.stderr, ("param",), CURVATURE, said)
    columns["diagonal_converged"] = Column(diagonal.converged, ("param",), NUMBER, "whether both are finite")
    return columns


@columns_of.register
def _diagonal(diagonal: Diagonal) -> dict[str, Column]:
    return _entries(diagonal) | _num_matvecs(diagonal.num_matvecs)


@columns_of.register
def _moments(moments: Moments) -> dict[str, Column]:
    squared = CURVATURE_SQUARED
    return (
        _estimated(moments.trace, "trace", CURVATURE, "trace")
        | _estimated(moments.frobenius_squared, "frobenius_squared", squared, "squared Frobenius norm")
        | _entries(moments.diagonal)
        | _num_matvecs(moments.trace.num_matvecs)
    )


@columns_of.register
def _density(density: Density) -> dict[str, Column]:
    per, (low, high), node = PER_CURVATURE, density.band, ("probe", "node")
    band = f"of the {100 * density.confidence:g} % band over probes, at each grid point"
    return {
        "density": Column(density.density, ("grid",), per, "share of eigenvalues per unit of curvature"),
        "density_low": Column(low, ("grid",), per, f"low end {band}"),
        "density_high": Column(high, ("grid",), per, f"high end {band}"),
        "cumulative": Column(density.cumulative, ("grid",), NUMBER, "share of eigenvalues up to here"),
        "curvature": Column(density.grid, ("grid",), CURVATURE, "eigenvalue"),
        "node_value": Column(density.nodes, node, CURVATURE, "nodes of each probe's Gauss rule", error="node_residual"),
        "node_residual": Column(density.residuals, node, CURVATURE, "some eigenvalue lies that near to the node"),
        "node_weight": Column(density.weights, node, NUMBER, "weights of the nodes"),
        "node_isolated": Column(density.isolated, node, NUMBER, "whether the node is an eigenvalue that stands alone"),
        "width": Column(density.width, (), CURVATURE, "standard deviation of the kernel"),
    } | _num_matvecs(density.num_matvecs)


@columns_of.register
def _spectrum(spectrum: Spectrum) -> dict[str, Column]:
    meaning = "eigenvalues by falling magnitude; all others are zero"
    columns = {
        "eigenvalue": Column(spectrum.values, ("eigen_index",), CURVATURE, meaning, error="eigenvalue_error"),
        "eigenvalue_error": Column(spectrum.error, (), CURVATURE, "error of every eigenvalue of a point"),
    }
    if spectrum.vectors is not None:
        # Zeros stand for the vectors of eigenvalues zero that were not computed.
        vectors = pad(spectrum.vectors, (0, spectrum.values.shape[-1] - spectrum.vectors.shape[-1]))
        columns["eigenvalue_vector"] = Column(vectors, ("param", "eigen_index"), NUMBER, "unit eigenvectors")
    if spectrum.dense is None or spectrum.num_matvecs is None:
        return columns
    dense = Column(spectrum.dense, (), NUMBER, "whether the whole matrix was computed")
    return columns | {"dense": dense} | _num_matvecs(spectrum.num_matvecs)


@columns_of.register
def _along(along: AlongGradient) -> dict[str, Column]:
    return {
        "rho": Column(along.rho, (), CURVATURE, "curvature along the gradient, g'Hg / g'g"),
        "hg_ratio": Column(along.hg_ratio, (), CURVATURE, "|Hg| / |g|, which bounds |rho|"),
        "grad_norm": Column(along.grad_norm, (), GRADIENT, "norm of the gradient |g|"),
    }


_OF_TRAJECTORY = {
    "support_loss": (("inner_step",), LOSS, "loss on the support set"),
    "query_loss": (("inner_step",), LOSS, "loss on the query set"),
    "support_accuracy": (("inner_step",), NUMBER, "accuracy on the support set"),
    "query_accuracy": (("inner_step",), NUMBER, "accuracy on the query set"),
    "theta_norm": (("inner_step",), PARAMETER, "Euclidean norm of the parameters |theta_k|"),
    "grad_norm": (("inner_step",), GRADIENT, "norm of the inner gradient |g_k|"),
    "displacement": (("inner_step",), PARAMETER, "distance from the start |theta_k - theta_0|"),
    "gram": (("step_i", "step_j"), "loss^2/parameter^2", "inner products of the inner gradients g_i'g_j"),
    "thetas": (("inner_step", "param"), PARAMETER, "parameters theta_k"),
    "gradients": (("inner_step", "param"), GRADIENT, "inner gradients g_k"),
}


@columns_of.register
def _trajectory(trajectory: Trajectory) -> dict[str, Column]:
    present = [f.name for f in fields(Trajectory) if getattr(trajectory, f.name) is not None]
    columns = {}
    for name in present:
        dims, units, meaning = _OF_TRAJECTORY[name]
        columns[name] = Column(getattr(trajectory, name), dims, units, meaning)
    return columns


@columns_of.register
def _check(check: Check) -> dict[str, Column]:
    def row(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    findings = check.findings
    passed = torch.tensor([VERDICTS[finding.passed] for finding in findings], dtype=torch.int8)
    return {
        "value": Column(row([f.value for f in findings]), ("finding",), NUMBER, "the worst error found"),
        "allowed": Column(row([f.allowed for f in findings]), ("finding",), NUMBER, "the error allowed"),
        "passed": Column(passed, ("finding",), NUMBER, "verdict"),
    }
