"""The spectral density of the Hessian along the inner loop, before and after meta-training."""

from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.style import method_label
from analysis.drawing.summary import measured, summarise, tasks_per_seed
from analysis.schema import with_alpha
from hessian_tools.curvature import DESCENT_THRESHOLD

MAX_LEARNERS = 3
SMALLEST_SHARE = 1e-4
"""The smallest density that is drawn, as a fraction of the largest; smaller ones are white."""


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "density")


def draw(ds: xr.Dataset) -> Figure:
    """Draw a heat map for each untrained network, and beside it one for each learner that starts from it."""
    drawn = with_alpha(ds)
    density = summarise(measured(drawn, "density")).mean
    states = _states(drawn, density)
    largest = max(float(np.nanmax(values.values)) for _, _, values in states)
    norm = LogNorm(SMALLEST_SHARE * largest, largest)
    with panels.grid(len(states), xlabel="inner step", row_height=2.3) as (figure, axes):
        for (title, color, values), ax in zip(states, axes, strict=True):
            picture = _heat_map(ax, values, norm)
            ax.set_title(title, color=color)
            line = references.threshold(ax, label=r"$\alpha\lambda=2$")
        panels.left_labels(axes, r"eigenvalue, $\alpha\lambda$")
        figure.colorbar(picture, ax=axes, label="density of eigenvalues", pad=0.01)
        panels.outside_legends(figure, [], [line])
    return figure


def caption(ds: xr.Dataset) -> str:
    """Return the caption, which also names the variable that is drawn and says over what the means are."""
    drawn = with_alpha(ds)
    values = measured(drawn, "density")
    names = selection.main_learners(drawn, MAX_LEARNERS)
    checkpoints = _last(drawn, values, names)
    sentences = (
        "The spectrum of the support loss's Hessian along the inner loop, before meta-training and after it "
        f"(meta-iteration {', '.join(map(str, sorted(checkpoints)))}): the {values.attrs.get('long_name', 'density')}.",
        "Each learner is beside its own untrained network. The y axis is linear around 0 and logarithmic beyond, and "
        "so is the unit to which the density refers.",
        f"White stands for less than {SMALLEST_SHARE:g} of the largest density. Above the dashed line gradient descent "
        "is unstable.",
        f"Means are over the {tasks_per_seed(values.isel(grid=0, inner_step=0))} tasks of each seed that are measured "
        "in full, then over the seeds; the kernel by which the density is smoothed blurs single eigenvalues.",
        legend.no_alpha_sentence(ds),
        selection.shown_sentence(drawn, names),
    )
    return " ".join(sentence for sentence in sentences if sentence)


def _states(ds: xr.Dataset, density: xr.DataArray) -> list[tuple[str, str, xr.DataArray]]:
    """The title, the colour of the title and the density [inner_step, grid] of every panel."""
    names = [name for name in selection.main_learners(ds, MAX_LEARNERS) if curves.states(ds, density, name)]
    groups = curves.alike_at_start(ds, density, names)
    states = []
    for group in groups:
        title = "untrained" if len(groups) == 1 else f"untrained ({method_label(group[0])})"
        states.append((title, "black", density.sel(learner=group[0]).isel(checkpoint=0)))
        states += [_last_state(ds, density, name) for name in group]
    ungrouped = [name for name in names if not any(name in group for group in groups)]
    return states + [_last_state(ds, density, name) for name in ungrouped]


def _last_state(ds: xr.Dataset, density: xr.DataArray, name: str) -> tuple[str, str, xr.DataArray]:
    last = curves.states(ds, density, name)[-1]
    return method_label(name), curves.learner_style(ds, name).color, density.isel(last.position)


def _last(ds: xr.Dataset, values: xr.DataArray, names: list[str]) -> set[int]:
    """The last checkpoints at which the learners have values."""
    return {int(ds["checkpoint"][curves.states(ds, values, name)[-1].checkpoint]) for name in names}


def _heat_map(ax: Axes, values: xr.DataArray, norm: LogNorm) -> Any:
    grid = values["grid"].values
    middles = (grid[1:] + grid[:-1]) / 2
    edges = np.concatenate([[2 * grid[0] - middles[0]], middles, [2 * grid[-1] - middles[-1]]])
    steps = np.arange(values.sizes["inner_step"] + 1) - 0.5
    # Both densities of 0 and missing ones are white. The map is dark where the density is large, and grows darker
    # evenly, so that it can be read in grey.
    shades = mpl.colormaps["cividis_r"]
    table = np.ma.masked_less(np.ma.masked_invalid(values.transpose("grid", "inner_step").values), norm.vmin or 0)
    picture = ax.pcolormesh(steps, edges, table, cmap=shades, norm=norm, rasterized=True)
    references.step_axis(ax, values.sizes["inner_step"])
    ax.set_xlim(steps[0], steps[-1])
    references.symlog_axis(ax.yaxis, *_span(table, grid))
    ax.grid(visible=False)
    return picture


def _span(table: np.ma.MaskedArray, grid: np.ndarray) -> tuple[float, float]:
    """The range of eigenvalues that has any density in a panel, with the threshold of 2 in it."""
    filled = grid[~np.ma.getmaskarray(table).all(axis=1)]
    if not filled.size:
        return float(grid[0]), float(grid[-1])
    return float(filled[0]), float(max(filled[-1], 1.2 * DESCENT_THRESHOLD))
