"""Sets the scales and ticks of axes, and draws reference lines and bands.

A function that draws a reference returns it as a matplotlib artist, which also serves as its legend entry. So the
reference and its legend entry always look the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, Formatter, MaxNLocator, NullLocator

from analysis.drawing.style import LIGHT_GREY
from hessian_tools.curvature import DESCENT_THRESHOLD
from hessian_tools.curvature import cosine_null as cosine_bounds

# ---- references


def threshold(ax: Axes, value: float = DESCENT_THRESHOLD, *, label: str = "") -> Line2D:
    """Draw a dashed horizontal line at ``value``, without changing the limits of the axis.

    The default is 2: a gradient step lowers the quadratic model of the loss if and only if alpha rho < 2, where alpha
    is the step size and rho the curvature along the gradient.
    """
    limits = ax.get_ylim()
    look: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 0.8}
    line = ax.axhline(value, label=label, gid="threshold", zorder=2, **look)
    ax.set_ylim(limits)
    return line


def cosine_null(ax: Axes, steps: int) -> Patch:
    """Draw the band in which a mean cosine lies if the inner gradients are orthogonal to each other.

    The mean cosine is the mean, over the inner steps, of the cosine between a step's descent direction and the
    displacement of the whole inner loop.

    steps: the number K of inner steps.
    """
    null = cosine_bounds(steps)
    label = r"orthogonal gradients: $[1/K,\ 1/\sqrt{K}]$, " + f"$K={steps}$"
    # The band is hatched, because bands over seeds are filled.
    look: dict[str, Any] = {"facecolor": "none", "edgecolor": LIGHT_GREY, "hatch": "/////", "linewidth": 0.0}
    return ax.axhspan(null.low, null.high, label=label, gid="null", zorder=0.5, **look)


def zero(ax: Axes) -> Line2D:
    """Draw a thin line at 0."""
    return ax.axhline(0.0, color="black", linewidth=0.6, gid="zero", zorder=1.5)


def own_step_size(ax: Axes) -> Line2D:
    """Draw a dashed vertical line at the factor 1 of a learner's step size."""
    look: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 0.8, "zorder": 1.5}
    return ax.axvline(1.0, label="own step size", gid="own step size", **look)


def equality_line(ax: Axes) -> Line2D:
    """Draw a dashed line at 1, where two quantities are equal, and make the axis reach beyond it."""
    low, high = ax.get_ylim()
    pad = 0.05 * (max(high, 1.0) - min(low, 1.0))
    ax.set_ylim(min(low, 1.0 - pad), max(high, 1.0 + pad))
    return threshold(ax, 1.0, label="equal (1)")


def stability_lines(ax: Axes) -> list[Line2D]:
    """Draw both thresholds and the diagonal on axes of alpha rho (x) and alpha lambda_max (y).

    The curvature along any direction is at most the largest eigenvalue, so no point lies below the diagonal.
    """
    x_limits, y_limits = ax.get_xlim(), ax.get_ylim()
    look: dict[str, Any] = {"color": "black", "linewidth": 0.8, "zorder": 1.5}
    low, high = min(x_limits[0], y_limits[0]), max(x_limits[1], y_limits[1])
    # The diagonal needs many points, because it is not straight on axes that are linear only around 0.
    places = np.concatenate([-np.geomspace(max(-low, 1e-3), 1e-3, 50), np.geomspace(1e-3, max(high, 1e-3), 50)])
    dashed, dotted = (0, (4, 2)), (0, (1, 1.5))
    lines = [
        ax.axhline(DESCENT_THRESHOLD, label=r"$\lambda_{\max}=2/\alpha$", gid="edge", linestyle=dashed, **look),
        ax.axvline(DESCENT_THRESHOLD, label=r"$\alpha\rho=2$", gid="threshold", linestyle=dotted, **look),
        ax.plot(places, places, label=r"$\rho=\lambda_{\max}$", gid="diagonal", **look | {"color": LIGHT_GREY})[0],
    ]
    ax.set_xlim(x_limits)
    ax.set_ylim(y_limits)
    return lines


def chance(ds: xr.Dataset, ax: Axes) -> list[Line2D]:
    """Draw and return a line at the accuracy of guessing, 1 / ways, if the study has ways (classes of a task)."""
    ways = ds.attrs.get("ways")
    if not ways:
        return []
    look: dict[str, Any] = {"color": "black", "linestyle": (0, (1, 2)), "linewidth": 0.8}
    return [ax.axhline(1 / float(ways), label=f"chance (1/{ways:g})", gid="chance", zorder=1.5, **look)]


# ---- scales: "symlog" and "asinh" are linear around 0 and logarithmic beyond. ``linthresh`` and ``linear_width`` are
# where the linear part ends, and ``linscale`` is its length on either side of 0, in units of a factor of ten beyond.

TICK_INCHES = 0.35
"""The distance, in inches of a panel, at which two labels of an x axis do not touch."""


def step_axis(ax: Axes, points: Sequence[int] | np.ndarray) -> None:
    """Put a tick at each of the given points of the inner loop, numbered from 0; more than 12 get fewer ticks."""
    if len(points) <= 12:
        ax.xaxis.set_major_locator(FixedLocator([int(point) for point in points]))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(min(points) - 0.45, max(points) + 0.45)


def training_axis(ax: Axes, checkpoints: np.ndarray) -> None:
    """Put ticks at the checkpoints, on an x axis of meta-iterations.

    If the checkpoints span a factor of more than four, the axis is logarithmic from the first positive checkpoint on,
    and linear from 0 to there; a label "meta-iteration" then says so.
    """
    positive = [int(point) for point in checkpoints if point > 0]
    if positive and positive[-1] > 4 * positive[0]:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        if ax.get_xlabel() == "meta-iteration":
            ax.set_xlabel("meta-iteration (log scale)")
    transform = ax.xaxis.get_transform()
    places = transform.transform(np.asarray(checkpoints, dtype=float))
    width = max(float(places[-1] - places[0]), 1e-9)
    # The first and the last checkpoint get labels first. The others follow from right to left, as far as there is room:
    # labels whose distance is below 0.17 of the axis would touch.
    order = [0, len(places) - 1, *range(len(places) - 2, 0, -1)]
    labelled = _spaced((places - places[0]) / width, order, gap=0.17)
    # 1500 is written as 1.5k, because panels are too narrow for long numbers.
    texts = [f"{point / 1000:g}k" if point >= 1000 else f"{point}" for point in checkpoints]
    _set_ticks(ax.xaxis, checkpoints, [text if index in labelled else "" for index, text in enumerate(texts)])
    pad = 0.04 * width if len(places) > 1 else 1.0
    ax.set_xlim(*transform.inverted().transform(np.array([places[0] - pad, places[-1] + pad])))


def curvature_axis(ax: Axes, low: float, high: float) -> str:
    """Set the scale of y for values of alpha rho between ``low`` and ``high``.

    If all values are below a fifth of the threshold 2, the axis is linear and ends at the largest value. If a value
    reaches a fifth of the threshold, the axis is linear and shows the threshold as well. If a value exceeds three times
    the threshold, the axis is linear up to the threshold and logarithmic beyond: values beyond it, where inner loops
    diverge, may be arbitrarily large, while the differences between learners lie below. In this last case, returns a
    remark on the scale for the axis label; otherwise "".
    """
    if not np.isfinite([low, high]).all():
        low, high = 0.0, DESCENT_THRESHOLD
    if max(high, -low) > 3 * DESCENT_THRESHOLD:
        ax.set_yscale("symlog", linthresh=DESCENT_THRESHOLD, linscale=1.5)
        ax.set_ylim(1.3 * low if low < 0 else 0.0, max(1.3 * high, 1.2 * DESCENT_THRESHOLD))
        # Labels are plain numbers, because powers of ten would make the linear part look logarithmic. The order of the
        # ticks is their priority: if there is no room for all, 0 and the threshold are kept first.
        beyond = [digit * power for digit in (1, 5, 2) for power in _powers_of_ten(ax, 0)]
        beyond = [value for value in beyond if value > DESCENT_THRESHOLD]
        ticks = [0.0, *_both_signs([DESCENT_THRESHOLD, 1.0, 0.5, 1.5, *beyond])]
        _set_spaced_ticks(ax.yaxis, ticks, [f"{value:.15g}" for value in ticks])
        inside = "below 2" if low >= -DESCENT_THRESHOLD else "within ±2"
        return f"linear {inside}, logarithmic beyond"
    top = max(high, DESCENT_THRESHOLD) if high >= DESCENT_THRESHOLD / 5 else high
    pad = 0.06 * (top - min(low, 0.0)) or 1e-3
    ax.set_ylim(min(low - pad, 0.0), top + pad)
    return ""


def symlog_axis(axis: Axis, low: float, high: float, *, linear: float = 0.1) -> None:
    """Make an axis for values between ``low`` and ``high`` linear within ``linear`` of 0 and logarithmic beyond.

    Its ticks are plain numbers: 0, and round multiples of powers of ten as far as there is room.
    """
    if not np.isfinite([low, high]).all():
        low, high = 0.0, 1.0
    is_x = axis is axis.axes.xaxis
    set_scale = axis.axes.set_xscale if is_x else axis.axes.set_yscale
    set_scale("symlog", linthresh=linear, linscale=0.4)
    transform = axis.get_transform()
    ends = transform.transform(np.array([min(low, 0.0) if low < linear else low, high]))
    pad = 0.06 * max(float(np.ptp(ends)), 1e-6)
    start, end = transform.inverted().transform(ends + np.array([-pad, pad]))
    axis.axes.set(**{"xlim" if is_x else "ylim": (start, end)})
    powers = [10.0**power for power in range(int(np.floor(np.log10(linear))), 7)]
    # The order of the ticks is their priority.
    ticks = [0.0, *_both_signs([digit * power for digit in (1, 2, 5, 3, 1.5, 4, 7) for power in powers])]
    _set_spaced_ticks(axis, ticks, [f"{value:.4g}" for value in ticks], gap=0.12)


def tick_at(axis: Axis, values: list[float]) -> None:
    """Put ticks at the given values, in rising order; only those that are far enough apart have a label."""
    start, end = axis.get_transform().transform(np.array(axis.get_view_interval()))
    places = (axis.get_transform().transform(np.array(values)) - start) / (end - start)
    # 0 gets a label first, then the smallest and the largest value, and then the others.
    order = sorted(range(len(values)), key=lambda index: (values[index] != 0, index not in (0, len(values) - 1), index))
    position = axis.axes.get_subplotspec()  # None for axes that are not in a grid of panels
    columns = position.get_gridspec().ncols if position is not None else 1
    figure = axis.axes.figure
    inches = figure.bbox.width / figure.dpi / columns  # the width of the panel
    labelled = _spaced(places, order, gap=max(0.11, TICK_INCHES / inches))
    texts = [Formatter.fix_minus(f"{value:g}") if index in labelled else "" for index, value in enumerate(values)]
    _set_ticks(axis, values, texts)


def decade_axis(ax: Axes, linear_width: float) -> None:
    """Make y linear within ``linear_width`` of 0 and logarithmic beyond, with ticks at 0 and powers of ten beyond."""
    ax.set_yscale("asinh", linear_width=linear_width)
    transform = ax.yaxis.get_transform()
    low, high = transform.transform(np.array(ax.get_ylim()))
    pad = 0.03 * (high - low)  # matplotlib's default margin cuts the outermost markers in half
    ax.set_ylim(*transform.inverted().transform(np.array([low - pad, high + pad])))
    decade_ticks(ax, linear_width)


def decade_ticks(ax: Axes, linear_width: float) -> None:
    """Put ticks on y at 0 and at powers of ten of both signs, on an axis that is linear within ``linear_width`` of 0.

    Only 0 has a tick within the linear part, because labels would overlap there; labels near 0 without room are left
    out, too.
    """
    powers = _powers_of_ten(ax, int(np.floor(np.log10(linear_width))))
    powers = _both_signs([power for power in powers if power >= linear_width])
    labels = [f"${'-' if value < 0 else ''}10^{{{round(np.log10(abs(value)))}}}$" for value in powers]
    _set_spaced_ticks(ax.yaxis, [0.0, *powers], ["0", *labels])


def _powers_of_ten(ax: Axes, first: int) -> list[float]:
    """The powers of ten from 10^``first`` to the first one that is beyond both ends of y."""
    largest = max(abs(limit) for limit in ax.get_ylim())
    return [10.0**power for power in range(first, max(int(np.ceil(np.log10(largest))), first) + 1)]


def _both_signs(values: list[float]) -> list[float]:
    """Each value, followed by its negative."""
    return [sign * value for value in values for sign in (1.0, -1.0)]


def _spaced(places: np.ndarray, order: list[int], *, gap: float) -> list[int]:
    """Choose places along an axis so that any two are at least ``gap`` apart; return their indices.

    places: positions as fractions of the axis. order: the indices in the order in which they are considered.
    """
    chosen: list[int] = []
    for index in order:
        if all(abs(places[index] - places[other]) >= gap for other in chosen):
            chosen.append(index)
    return chosen


def _set_spaced_ticks(axis: Axis, ticks: list[float], labels: list[str], *, gap: float = 0.06) -> None:
    """Set those ticks that lie within the limits, at least ``gap`` of the axis apart; earlier ticks take precedence."""
    scale = axis.get_transform().transform
    start, end = scale(np.array(axis.get_view_interval()))
    places = (scale(np.array(ticks)) - start) / (end - start)
    in_sight = [index for index, place in enumerate(places) if 0 <= place <= 1]
    shown = sorted(_spaced(places, in_sight, gap=gap), key=lambda index: ticks[index])
    _set_ticks(axis, [ticks[index] for index in shown], [Formatter.fix_minus(labels[index]) for index in shown])


def _set_ticks(axis: Axis, ticks: Any, labels: list[str]) -> None:
    """Set the ticks of an axis with their labels, and no minor ticks."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(labels))
    axis.set_minor_locator(NullLocator())
