"""Lines and bands to compare with: the descent threshold, the null of the cosine, chance, the untrained network."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, Formatter, NullLocator

from analysis.plots.summary import Summary
from analysis.style import CONTROL, LIGHT_GREY

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
    """Set y for alpha * rho between ``low`` and ``high``; returns what a reader must know of its scale, or "".

    Linear with the threshold in sight when values come within a fifth of it; linear without it when they do not;
    linear to the threshold and logarithmic beyond it when values far exceed it.
    """
    if not np.isfinite([low, high]).all():
        low, high = 0.0, THRESHOLD
    if high > _FAR_ABOVE or low < -_FAR_ABOVE:
        ax.set_yscale("symlog", linthresh=THRESHOLD, linscale=1.5)
        ax.set_ylim(1.3 * low if low < 0 else 0.0, max(1.3 * high, 1.2 * THRESHOLD))
        plain_ticks(ax)
        inside = "below 2" if low >= -THRESHOLD else "within ±2"
        return f"linear {inside}, logarithmic beyond"
    near = high >= _FAR_BELOW
    top = max(high, THRESHOLD) if near else high
    pad = 0.06 * (top - min(low, 0.0)) or 1e-3
    ax.set_ylim(min(low - pad, 0.0), top + pad)
    return ""


def plain_ticks(ax: Axes) -> Axes:
    """Plain numbers on an axis that is linear to the threshold and logarithmic beyond, where the stock ticks are few.

    Exponents would let a reader take the linear part for a logarithmic one: 0, 0.5, 1, 1.5, 2, then 5, 10, 20 and so
    on, and their negatives; 0 and the threshold go first.
    """
    beyond = [step * decade for step in (1, 5, 2) for decade in _decades(ax, 0) if step * decade > THRESHOLD]
    wanted = [0.0, *_both([THRESHOLD, 1.0, 0.5, 1.5, *beyond])]
    return _spaced_ticks(ax, wanted, [f"{value:.15g}" for value in wanted])


def decade_ticks(ax: Axes, linear: float) -> Axes:
    """0 and the powers of ten beyond ``linear``, below which an asinh axis is linear: no labels crowd around 0."""
    transform = ax.yaxis.get_transform()
    low, high = transform.transform(np.array(ax.get_ylim()))
    pad = 0.03 * (high - low)  # matplotlib's own margin leaves half of an outermost marker outside
    ax.set_ylim(*transform.inverted().transform(np.array([low - pad, high + pad])))
    powers = _both([decade for decade in _decades(ax, int(np.floor(np.log10(linear)))) if decade >= linear])
    labels = [f"${'-' if value < 0 else ''}10^{{{round(np.log10(abs(value)))}}}$" for value in powers]
    return _spaced_ticks(ax, [0.0, *powers], ["0", *labels])


def _decades(ax: Axes, first: int) -> list[float]:
    """Powers of ten from 10^first to beyond the axis."""
    largest = max(abs(limit) for limit in ax.get_ylim())
    return [10.0**power for power in range(first, max(int(np.ceil(np.log10(largest))), first) + 1)]


def _both(values: list[float]) -> list[float]:
    return [sign * value for value in values for sign in (1.0, -1.0)]


def _spaced_ticks(ax: Axes, wanted: list[float], labels: list[str], gap: float = 0.06) -> Axes:
    """Of the wanted ticks, earlier ones first, those in sight and at least ``gap`` of the axis apart."""
    scale = ax.yaxis.get_transform().transform
    start, end = scale(np.array(ax.get_ylim()))
    places = (scale(np.array(wanted)) - start) / (end - start)
    kept: list[int] = []
    for index, at in enumerate(places):
        if 0 <= at <= 1 and all(abs(at - places[other]) >= gap for other in kept):
            kept.append(index)
    kept.sort(key=lambda index: wanted[index])
    ax.yaxis.set_major_locator(FixedLocator([wanted[index] for index in kept]))
    ax.yaxis.set_major_formatter(FixedFormatter([Formatter.fix_minus(labels[index]) for index in kept]))
    ax.yaxis.set_minor_locator(NullLocator())
    return ax


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


def untrained_line(ax: Axes, summary: Summary | None) -> bool:
    """The untrained network's mean as a grey dotted line; False when there is not one level for all learners."""
    if summary is None or not np.isfinite(float(summary.mean)):
        return False
    look: dict[str, Any] = {"color": CONTROL.color, "linestyle": CONTROL.linestyle, "linewidth": 1.2}
    ax.axhline(float(summary.mean), **look, gid="untrained", zorder=2.5)
    return True


def chance_line(ds: xr.Dataset, ax: Axes) -> Axes:
    """Chance accuracy, 1 / ways, if the study says how many ways its tasks have (``ds.attrs['ways']``)."""
    ways = ds.attrs.get("ways")
    if ways:
        ax.axhline(1 / float(ways), color="black", linestyle=(0, (1, 2)), linewidth=0.8, gid="chance", zorder=1.5)
    return ax
