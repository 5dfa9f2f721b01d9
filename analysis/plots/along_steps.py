"""A quantity along the inner loop: x is the inner step, for one learner at one checkpoint."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from analysis.plots.curve import curve, error_bars
from analysis.plots.summary import Summary
from analysis.style import MethodStyle


def along_steps(
    ax: Axes,
    *,
    summary: Summary,
    style: MethodStyle,
    name: str,
    error: xr.DataArray | None = None,
    shift: float = 0.0,
    filled: bool = True,
) -> Axes:
    """Draw a summary with the dimension inner_step; ``error`` (inner_step) as bars on the mean.

    ``shift`` moves the points sideways, so that two states of one learner can be told apart.
    """
    x = summary.mean["inner_step"].values + shift
    curve(summary, ax, x=x, style=style, name=name, filled=filled)
    if error is not None:
        error_bars(ax, x=x, y=summary.mean.values, error=error.values, color=style.color, name=name)
    return step_axis(ax, len(x))


def task_values(ax: Axes, *, values: xr.DataArray, color: str, name: str, shift: float = 0.0) -> Axes:
    """Every single value of every seed and task as a small dot: nothing is averaged.

    ``values`` has inner_step among its dimensions and any others; used for eigenvalues by magnitude, whose
    sign differs from task to task, so that a mean of the i-th of them would mean nothing.
    """
    others = [dim for dim in values.dims if dim != "inner_step"]
    table = values.transpose("inner_step", *others).values.reshape(values.sizes["inner_step"], -1)
    x = np.repeat(values["inner_step"].values + shift, table.shape[1])
    y = table.ravel()
    there = np.isfinite(y)
    ax.plot(
        x[there],
        y[there],
        linestyle="none",
        marker="o",
        markersize=1.8,
        markeredgewidth=0,
        alpha=0.35,
        color=color,
        gid=f"tasks:{name}",
        zorder=2,
        rasterized=there.sum() > 4000,  # thousands of vector dots make a slow PDF
    )
    return ax


def step_axis(ax: Axes, num_points: int) -> Axes:
    """One tick for each point of the inner loop, 0 to K."""
    ax.xaxis.set_major_locator(FixedLocator(range(num_points)))
    ax.set_xlim(-0.45, num_points - 0.55)
    return ax
