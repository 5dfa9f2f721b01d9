"""Lines and bands to compare with: the descent threshold, the null of the cosine, chance, the untrained network."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from analysis.plots.summary import Summary
from analysis.style import GREY, LIGHT_GREY

THRESHOLD = 2.0
"""A gradient step lowers the quadratic model of the loss iff alpha * rho is below this."""

# Hatched, so that no one takes it for a band over seeds.
NULL_LOOK: dict[str, Any] = {"facecolor": "none", "edgecolor": LIGHT_GREY, "hatch": "/////", "linewidth": 0.0}

# Above the threshold values may be anything (a diverging loop); below it is where learners differ.
_FAR_BELOW = 0.4
_FAR_ABOVE = 6.0


def threshold(ax: Axes, value: float = THRESHOLD) -> Axes:
    """The dashed line at the threshold; it does not move the limits of the axis."""
    limits = ax.get_ylim()
    ax.axhline(value, color="black", linestyle=(0, (4, 2)), linewidth=0.8, gid="threshold", zorder=2)
    ax.set_ylim(limits)
    return ax


def curvature_axis(ax: Axes, low: float, high: float) -> str:
    """Set y for alpha * rho between ``low`` and ``high``; returns what a reader must know of the axis, or "".

    Linear with the threshold in sight when values come within a fifth of it; linear without it when they do not;
    linear to the threshold and logarithmic beyond it when values far exceed it.
    """
    if not np.isfinite([low, high]).all():
        low, high = 0.0, THRESHOLD
    if high > _FAR_ABOVE or low < -_FAR_ABOVE:
        ax.set_yscale("symlog", linthresh=THRESHOLD, linscale=1.5)
        ax.set_ylim(1.3 * low if low < 0 else 0.0, max(1.3 * high, 1.2 * THRESHOLD))
        return "logarithmic beyond it"
    near = high >= _FAR_BELOW
    top = max(high, THRESHOLD) if near else high
    pad = 0.06 * (top - min(low, 0.0)) or 1e-3
    ax.set_ylim(min(low - pad, 0.0), top + pad)
    return "" if near else "above the axis"


def cosine_null(ax: Axes, steps: int) -> Axes:
    """The band [1/K, 1/sqrt K] that the mean cosine lies in when the K inner gradients are orthogonal.

    Then sum_k cos^2 = 1; the mean of K such cosines is largest, 1/sqrt K, when they are equal, and 1/K when one
    gradient is the whole displacement. For K = 1 the cosine is 1 by definition.
    """
    ax.axhspan(1 / steps, steps**-0.5, **NULL_LOOK, gid="null", zorder=0.5)
    return ax


def zero(ax: Axes) -> Axes:
    """A thin line at 0."""
    ax.axhline(0.0, color="black", linewidth=0.6, gid="zero", zorder=1.5)
    return ax


def untrained_line(ax: Axes, summary: Summary | None) -> Axes:
    """The untrained network's mean as a grey dotted line; nothing when there is not one level for all learners."""
    if summary is not None and np.isfinite(float(summary.mean)):
        ax.axhline(float(summary.mean), color=GREY, linestyle=":", linewidth=1.2, gid="mean:untrained", zorder=2.5)
    return ax


def chance_line(ds: xr.Dataset, ax: Axes) -> Axes:
    """Chance accuracy, 1 / ways, if the study says how many ways its tasks have (``ds.attrs['ways']``)."""
    ways = ds.attrs.get("ways")
    if ways:
        ax.axhline(1 / float(ways), color="black", linestyle=(0, (1, 2)), linewidth=0.8, gid="chance", zorder=1.5)
    return ax
