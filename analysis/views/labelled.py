"""``to_xarray``: every result of the library as a labelled Dataset, each variable with its unit, meaning and error."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from analysis.views.columns import VERDICT_MEANINGS, VERDICTS, Column, columns_of
from hessian_tools.curvature import Check, Density
from hessian_tools.trajectory import Trajectory


def to_xarray(
    result: Any, *, dims: Sequence[str] | None = None, coords: Mapping[str, Sequence[Any] | np.ndarray] | None = None
) -> xr.Dataset:
    """A result with names, units and meanings; variables that have an error name it in ``error_variable``.

    result: EigenPairs, Extremes, Estimate, Moments, Diagonal, Density, Spectrum, AlongGradient, Check or
    Trajectory. dims: names of its leading axes; ("point",) by default, ("task",) for a Trajectory. coords: labels
    of any dimension, such as {"point": inner_steps}; whole numbers from 0 where none are given. What kind of
    result it was stands in ``attrs["kind"]``. Numbers are copied, to the CPU. Units: those of the loss and the
    parameters. Raises TypeError for anything else, ValueError for names that do not fit.

    >>> import torch
    >>> from hessian_tools.curvature import EigenPairs
    >>> values = torch.tensor([[4.0, -3.0], [2.0, 1.0]])
    >>> products, complete = torch.tensor([9, 9]), torch.tensor([True, True])
    >>> pairs = EigenPairs(values, 1e-3 * values.abs(), values > 0, None, products, complete)
    >>> ds = to_xarray(pairs, coords={"point": [0, 5]})
    >>> ds["eigenvalue"].sel(point=5).values, ds["eigenvalue"].attrs["error_variable"]
    (array([2., 1.], dtype=float32), 'eigenvalue_residual')
    """
    columns = columns_of(result)
    attrs: dict[str, Any] = {"kind": type(result).__name__}
    if isinstance(result, Check):
        attrs |= {"finding_sentences": [finding.sentence for finding in result.findings]}
    if isinstance(result, Density):
        attrs |= {"confidence": result.confidence, "num_params": result.num_params}
    leading = _leading(columns, dims, default="task" if isinstance(result, Trajectory) else "point")
    data = {name: _variable(column, leading) for name, column in columns.items()}
    ds = xr.Dataset(data, attrs=attrs)
    labels = {name: np.arange(size) for name, size in ds.sizes.items()} | {
        name: np.asarray(labels) for name, labels in (coords or {}).items()
    }
    if unknown := sorted(set(labels) - {str(name) for name in ds.sizes}):
        raise ValueError(f"coords has {unknown[0]!r}; this result has the dimensions {', '.join(map(str, ds.sizes))}")
    ds = ds.assign_coords(labels)
    if isinstance(result, Check):
        meanings = " ".join(finding.name for finding in result.findings)
        ds["finding"].attrs.update(flag_values=ds["finding"].values.tolist(), flag_meanings=meanings)
        ds["passed"].attrs.update(flag_values=list(VERDICTS.values()), flag_meanings=VERDICT_MEANINGS)
    return ds.set_coords("curvature") if "curvature" in ds else ds


def _leading(columns: Mapping[str, Column], dims: Sequence[str] | None, *, default: str) -> tuple[str, ...]:
    first = next(iter(columns.values()))
    number = first.values.ndim - len(first.dims)
    names = ((default,) if number == 1 else ()) if dims is None else tuple(dims)
    if len(names) != number or len(set(names)) != number:
        raise ValueError(
            f"dims={list(names)} for a result with {number} leading axes; give {number} different names, such as "
            f"{['task', 'inner_step'][:number]}"
        )
    return names


def _variable(column: Column, leading: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
    attrs = {"long_name": column.long_name, "units": column.units}
    if column.error is not None:
        attrs["error_variable"] = column.error
    return (*leading, *column.dims), column.values.detach().cpu().numpy().copy(), attrs
