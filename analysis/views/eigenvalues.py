"""Eigenvalues with their residuals: by rank at one point, along the points where there are several."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from analysis.plots.curve import error_bars
from analysis.plots.references import zero
from analysis.views.series import Series, legend, over_points, point_axis
from analysis.views.units import label

ENDS = {"eigenvalue_max": ("^", "largest algebraic"), "eigenvalue_min": ("v", "smallest algebraic")}

# Ends stand beside the largest by magnitude, most of which they are, by this share of the way to the next point.
SHIFT = 0.12


def eigenvalues(ds: xr.Dataset, ax: Axes) -> Axes:
    """Every eigenvalue of an EigenPairs or Extremes as a marker, open where it did not converge; bars are residuals.

    One point: against their rank. Several: against the last axis of points, one colour for each of the others;
    no lines join them, for the i-th by magnitude changes its sign from point to point. Triangles: algebraic ends.
    """
    dim, series = over_points(ds, "eigenvalue", "eigen_index")
    for one in series:
        _markers(one, ax, "eigenvalue", "eigen_index", "o", dim, 0.0)
        for name, (marker, _) in ENDS.items():
            if name in ds:
                _markers(one, ax, name, "end_index", marker, dim, SHIFT)
        if one.label:
            ax.plot([], [], color=one.color, marker="o", linestyle="none", label=one.label)
    for name, (marker, text) in ENDS.items():
        if name in ds:
            ax.plot([], [], color="black", marker=marker, linestyle="none", label=text)
    if not all(ds[name].values.all() for name in ds.data_vars if str(name).endswith("_converged")):
        ax.plot([], [], color="black", marker="o", markerfacecolor="white", linestyle="none", label="not converged")
    ax.set_ylabel(label("eigenvalue", ds["eigenvalue"].attrs["units"]))
    if dim is None:
        ax.set_xlabel("rank")
    else:
        point_axis(ds, ax, dim)
    return legend(zero(ax))


def _markers(one: Series, ax: Axes, name: str, index: str, marker: str, dim: str | None, shift: float) -> None:
    axes = (index,) if dim is None else (dim, index)
    y, error, there = (one.ds[part].transpose(*axes).values for part in (name, f"{name}_residual", f"{name}_converged"))
    places = one.ds[axes[0]].values
    places = places + shift * np.min(np.diff(places), initial=1.0)
    x = np.broadcast_to(places.reshape(-1, *[1] * (y.ndim - 1)), y.shape)
    error_bars(ax, x=x.ravel(), y=y.ravel(), error=error.ravel(), color=one.color, name=name)
    for good, fill in ((True, one.color), (False, "white")):
        chosen = np.isfinite(y) & (there.astype(bool) == good)
        gid = f"{name}:{one.label}" if good else f"{name}:{one.label}:open"
        look: dict[str, Any] = {"marker": marker, "linestyle": "none", "color": one.color, "markerfacecolor": fill}
        ax.plot(x[chosen], y[chosen], gid=gid, zorder=3, **look)
