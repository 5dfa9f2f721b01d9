"""The support loss around the start of the inner loop, along the gradient and a random direction.

The upper row is figure 4 of Lee, Yoo, Kwak (2023). In the lower row, each filter of the two directions is scaled to the
norm of the network's filter. The start is theta_0, and g_0 is the gradient there.
"""

from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, selection
from analysis.drawing.figures.study_figure import Choice, Numbers
from analysis.drawing.summary import measured, seeds_with_values, summarise, tasks_per_seed

MAX_LEARNERS = 3
"""The largest number of learners that are shown by default."""
MAX_RATIO = 5
"""The largest ratio of the median losses of two surfaces that linear colours can show.

Ten contours divide the range. A surface whose losses are five times lower than the highest meets two of them at most.
"""
ROWS = {"loss_surface": "raw", "loss_surface_normalised": "filter-normalised"}
"""The variable of each row, and what the row's label says of its directions."""


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, *ROWS)


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default."""
    return selection.main_learners(ds, MAX_LEARNERS)


def numbers(ds: xr.Dataset, choice: Choice) -> Numbers:
    """The mean losses of each surface at each place (x, y)."""
    means = _means(ds)
    columns = curves.states_by_start(ds, means["loss_surface"], choice.learners)
    return {
        f"support loss, {label} directions": curves.where_shown(means[name], columns) for name, label in ROWS.items()
    }


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw a row of raw surfaces and one of normalised ones.

    Each untrained network has a column, which is followed by those of the learners that start from it.
    """
    means = _means(ds)
    columns = curves.states_by_start(ds, means["loss_surface"], choice.learners)
    options: dict[str, Any] = {"columns": len(columns), "default": "double", "row_height": 1.65, "width": choice.width}
    with panels.grid(2 * len(columns), xlabel=r"along $-g_0$", **options) as (figure, axes):
        for (variable, label), row in zip(ROWS.items(), np.reshape(np.array(axes, dtype=object), (2, -1)), strict=True):
            surfaces = [means[variable].isel(position).transpose("surface_y", "surface_x") for *_, position in columns]
            norm = _norm(surfaces)
            for (title, color, _), surface, ax in zip(columns, surfaces, row, strict=True):
                picture = _surface(ax, surface, norm)
                if variable == "loss_surface":
                    ax.set_title(title, color=color)
                    # The unit of the raw surface's axes is the length of the first inner step.
                    ax.plot(1, 0, marker="x", color="black", linestyle="none", gid="step")
                ax.plot(0, 0, marker="o", color="black", linestyle="none", gid="start")
            row[0].set_ylabel(f"{label}\nrandom direction")
            scale = " (log)" if isinstance(norm, LogNorm) else ""
            figure.colorbar(picture, ax=list(row), label=f"support loss{scale}", pad=0.01, aspect=12)
        entries = [
            legend.entry(r"$\theta_0$", color="black", marker="o", linestyle="none"),
            legend.entry("after one inner step", color="black", marker="x", linestyle="none"),
            legend.entry("contours, equally spaced in colour", color="black", linewidth=0.5),
        ]
        panels.outside_legends(figure, [], entries)
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also says what the units of the axes are and over what the means are."""
    values = measured(ds, "loss_surface")
    sample = values.isel(surface_x=0, surface_y=0)
    return legend.joined(
        "The support loss around theta_0, at the first and the last checkpoint, along the descent direction -g_0 (x) "
        "and a random direction (y), which is the same for all learners.",
        "Above, the unit of both axes is the length of the first inner step, so that the cross is its end.",
        "Below, each filter of both directions has the norm of the filter of theta_0 (Li et al. 2018), so that a "
        "learner does not look flatter only because its weights are larger; the same length is then a smaller part of "
        "larger weights.",
        "Figure 4 of Lee, Yoo and Kwak (2023) has surfaces of the first kind, on other data, and gives no numbers.",
        f"Means are over {tasks_per_seed(sample)} tasks within each of {seeds_with_values(sample)} seeds, then over "
        "the seeds. Surfaces of a row share their colours, on a logarithmic scale where the losses of learners differ "
        "much; losses above the range are as bright as its end.",
        selection.shown_sentence(ds, choice.learners),
    )


def _means(ds: xr.Dataset) -> dict[str, xr.DataArray]:
    """The mean of each row's surface over tasks and seeds."""
    return {name: summarise(measured(ds, name)).mean for name in ROWS}


def _norm(surfaces: list[xr.DataArray]) -> Normalize:
    """The range of colours of a row, logarithmic where linear colours would show nothing of the lower surfaces.

    The upper end of the range ignores the largest twentieth of the losses.
    """
    finite = [surface.values[np.isfinite(surface.values)] for surface in surfaces]
    medians = [float(np.median(losses)) for losses in finite if losses.size]
    if not medians:
        return Normalize(0.0, 1.0)
    losses = np.concatenate(finite)
    low, high = float(losses.min()), float(np.quantile(losses, 0.95))
    scale = LogNorm if low > 0 and max(medians) > MAX_RATIO * min(medians) else Normalize
    return scale(low, high if high > low else low + 1.0)


def _surface(ax: Axes, surface: xr.DataArray, norm: Normalize) -> Any:
    """Draw one surface as a heat map with contours; returns the image."""
    x, y, losses = (np.asarray(values) for values in (surface["surface_x"], surface["surface_y"], surface))
    picture = ax.pcolormesh(x, y, losses, cmap=mpl.colormaps["cividis"], norm=norm, shading="nearest", rasterized=True)
    # A constant surface has no contours.
    if np.ptp(losses[np.isfinite(losses)]) > 0:
        levels = norm.inverse(np.linspace(0.0, 1.0, 10))
        ax.contour(x, y, losses, levels=levels, colors="black", linewidths=0.5)
    ax.set_xticks([-1, 0, 1])
    ax.set_yticks([-1, 0, 1])
    ax.set_aspect("equal")
    ax.grid(visible=False)
    return picture
