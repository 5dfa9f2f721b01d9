"""An estimate with its error: the probes it is the mean of at one point, error bars along the points of several."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from analysis.plots.curve import BAND_ALPHA, error_bars
from analysis.plots.references import zero
from analysis.views.series import Series, legend, over_points, point_axis
from analysis.views.units import label


def estimate(ds: xr.Dataset, ax: Axes, *, name: str = "estimate") -> Axes:
    """The variable ``name`` of an Estimate or Moments ("trace", "frobenius_squared").

    One point: each probe a dot, their mean a line, one standard error each way a band. Several: the mean with one
    standard error each way, against the last axis of points.
    """
    dim, series = over_points(ds, name)
    for one in series:
        if dim is None:
            _samples(one, ax, name)
        else:
            x, y, error = one.ds[dim].values, one.ds[name].values, one.ds[f"{name}_stderr"].values
            error_bars(ax, x=x, y=y, error=error, color=one.color, name=one.label)
            ax.plot(x, y, color=one.color, marker="o", label=one.label or None, gid=f"{name}:{one.label}")
    if dim is None:
        ax.set_xlabel("probe")
    else:
        point_axis(ds, ax, dim)
    words = "squared Frobenius norm" if name == "frobenius_squared" else name
    ax.set_ylabel(label(words, ds[name].attrs["units"]))
    low, high = ax.get_ylim()
    return legend(zero(ax) if low <= 0 <= high else ax)


def _samples(one: Series, ax: Axes, name: str) -> None:
    samples, value, error = (one.ds[part].values for part in (f"{name}_sample", name, f"{name}_stderr"))
    look: dict[str, Any] = {"marker": "o", "markersize": 2.0, "linestyle": "none", "alpha": 0.5}
    ax.plot(np.arange(len(samples)), samples, color=one.color, label="each probe", gid=f"samples:{name}", **look)
    ax.axhspan(value - error, value + error, color=one.color, alpha=BAND_ALPHA, linewidth=0, gid=f"band:{name}")
    text = f"mean, {_plain(value, 4)} ± {_plain(error, 2)}"
    ax.axhline(float(value), color=one.color, label=text, gid=f"{name}:")


def _plain(value: np.ndarray, digits: int) -> str:
    """Rounded, without an exponent: 140, not 1.4e+02."""
    return f"{float(f'{float(value):.{digits}g}'):.12g}"
