"""Curvature along the gradient over the points, inside the bound that |Hg| / |g| sets it."""

import xarray as xr
from matplotlib.axes import Axes

from analysis.plots.curve import BAND_ALPHA
from analysis.plots.references import zero
from analysis.views.series import legend, over_points, point_axis
from analysis.views.units import label


def along(ds: xr.Dataset, ax: Axes) -> Axes:
    """rho of a GradientCurvature against the last axis of points; the shade is -|Hg|/|g| to |Hg|/|g|, its bound."""
    dim, series = over_points(ds, "rho")
    for one in series:
        part = one.ds if dim is not None else one.ds.expand_dims("point")
        x = part[dim or "point"].values
        rho, most = part["rho"].values, part["hg_ratio"].values
        ax.fill_between(x, -most, most, color=one.color, alpha=BAND_ALPHA / 2, linewidth=0, gid=f"bound:{one.label}")
        ax.plot(x, most, color=one.color, linestyle="--", linewidth=0.8, gid=f"hg_ratio:{one.label}")
        ax.plot(x, rho, color=one.color, marker="o", label=one.label or None, gid=f"rho:{one.label}")
    ax.plot([], [], color="black", marker="o", label=r"$\rho$")
    ax.plot([], [], color="black", linestyle="--", linewidth=0.8, label=r"$|Hg|\,/\,|g|$")
    if dim is None:
        ax.set_xticks([])
    else:
        point_axis(ds, ax, dim)
    ax.set_ylabel(label(r"curvature along the gradient $\rho$", ds["rho"].attrs["units"]))
    return legend(zero(ax))
