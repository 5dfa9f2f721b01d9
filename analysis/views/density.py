"""The spectral density: a curve with its band, on a logarithmic axis, and isolated eigenvalues as stems."""

from math import floor, log10

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from analysis.plots.curve import BAND_ALPHA
from analysis.views.series import Series, leading, legend, split
from analysis.views.units import label

# The axis ends at this share of the peak of one single eigenvalue.
FLOOR = 0.2
# Beyond such a ratio of their reaches two points do not show on one linear axis.
FAR = 4.0


def density(ds: xr.Dataset, ax: Axes) -> Axes:
    """Share of eigenvalues per unit of curvature; ds as of a Density.

    The band is that over the probes. A stem with a head stands at each isolated node: an eigenvalue, or a cluster
    narrower than the kernel, with no other within two widths of the kernel. Outliers are one of many eigenvalues,
    so the axis is logarithmic, down to a fifth of the peak of a single one. Nothing is drawn of a point that is not
    finite. Lines have gids ``density:<point>``, ``band:<point>``, ``isolated:<point>``.
    """
    series = split(ds, leading(ds, "density", "grid"))
    drawn = [one for one in series if np.isfinite(one.ds["density"].values).all()]
    bottom = min((_floor(one.ds) for one in drawn), default=1e-3)
    ax.set_yscale("log", nonpositive="clip")
    for one in drawn:
        _curve(one, ax)
        _stems(one, ax, bottom)
    for one in drawn[:1]:
        share = f"{100 * one.ds.attrs['confidence']:g}"
        ax.fill_between([], [], color="black", alpha=BAND_ALPHA, linewidth=0, label=f"{share}% band over probes")
    if any(one.ds["node_isolated"].values.any() for one in drawn):
        ax.plot([], [], color="black", linewidth=0.8, marker="o", markersize=2.5, label="isolated eigenvalue")
    top = max((float(one.ds["density_high"].max()) for one in drawn), default=1.0)
    ax.set_ylim(bottom, 2 * top)
    remark = _curvature_axis(drawn, ax)
    ax.set_xlabel(label("eigenvalue", ds["curvature"].attrs["units"]) + remark)
    ax.set_ylabel(label("density", ds["density"].attrs["units"]))
    return legend(ax)


def _floor(ds: xr.Dataset) -> float:
    peak = 1 / (ds.attrs["num_params"] * float(ds["width"]) * np.sqrt(2 * np.pi))
    return FLOOR * peak


def _curvature_axis(drawn: list[Series], ax: Axes) -> str:
    """Linear; where one point reaches four times as far as another, linear only as far as the nearest one does."""
    reach = [float(np.abs(one.ds["node_value"]).max()) for one in drawn]
    if not reach or max(reach) <= FAR * min(reach) or min(reach) == 0:
        return ""
    ax.set_xscale("asinh", linear_width=min(reach))
    first, last = (floor(log10(end)) for end in (min(reach), max(reach)))
    decades = [10.0**power for power in range(first, last + 1)]
    ticks = [*(-value for value in reversed(decades)), 0.0, *decades]
    ax.set_xticks(ticks, [f"{value:g}".replace("-", "\N{MINUS SIGN}") for value in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    return f"\n(linear within ±{min(reach):.2g}, logarithmic beyond)"


def _curve(one: Series, ax: Axes) -> None:
    x, y = one.ds["curvature"].values, one.ds["density"].values
    low, high = (one.ds[f"density_{end}"].values for end in ("low", "high"))
    ax.fill_between(x, low, high, color=one.color, alpha=BAND_ALPHA, linewidth=0, gid=f"band:{one.label}")
    width = f"width {float(one.ds['width']):.2g}"
    text = f"{one.label} ({width})" if one.label else f"kernel {width}"
    ax.plot(x, y, color=one.color, label=text, gid=f"density:{one.label}")


def _stems(one: Series, ax: Axes, bottom: float) -> None:
    nodes = np.unique(one.ds["node_value"].values[one.ds["node_isolated"].values.astype(bool)])
    heights = np.interp(nodes, one.ds["curvature"].values, one.ds["density"].values)
    ax.vlines(nodes, bottom / 10, heights, color=one.color, linewidth=0.8, gid=f"stems:{one.label}")
    ax.plot(nodes, heights, linestyle="none", marker="o", markersize=2.5, color=one.color, gid=f"isolated:{one.label}")
