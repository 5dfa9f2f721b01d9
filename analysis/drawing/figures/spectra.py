"""The spectral density of the Hessian along the inner loop, before and after meta-training.

The density is the share of eigenvalues per unit of asinh(alpha lambda / 0.1), where alpha is the inner learning
rate and lambda an eigenvalue. ``analysis.quantities.spectral_density`` measures it.
"""

from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice, Numbers
from analysis.drawing.summary import measured, summarise, tasks_per_seed
from analysis.schema import only_with_alpha
from hessian_tools.curvature import DESCENT_THRESHOLD

MAX_LEARNERS = 3
"""The largest number of learners that are shown by default."""
SMALLEST_FRACTION = 1e-4
"""The smallest density that is drawn, as a fraction of the largest density; smaller densities are white."""

HAS_STEPS = True


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "density")


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default."""
    return selection.main_learners(only_with_alpha(ds), MAX_LEARNERS)


def numbers(ds: xr.Dataset, choice: Choice) -> Numbers:
    """The mean density of the states that the heat maps show, at each inner step and each alpha lambda (``grid``)."""
    density = summarise(measured(choice.part(ds), "density")).mean
    return {"density": curves.where_shown(density, curves.states_by_start(ds, density, choice.learners))}


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw a heat map for each untrained network, and beside it one for each learner that starts from this network."""
    density = summarise(measured(choice.part(ds), "density")).mean
    maps = curves.states_by_start(ds, density, choice.learners)
    largest = max(float(density.isel(one.position).max()) for one in maps)
    norm = LogNorm(SMALLEST_FRACTION * largest, largest)
    options: dict[str, Any] = {"row_height": 2.3, "width": choice.width}
    with panels.grid(len(maps), xlabel="inner step", **options) as (figure, axes):
        for (title, color, position), ax in zip(maps, axes, strict=True):
            picture = _heat_map(ax, density.isel(position), norm)
            ax.set_title(title, color=color)
            line = references.threshold(ax, label=r"$\alpha\lambda=2$")  # the last one serves as the legend entry
        panels.left_labels(axes, r"eigenvalue, $\alpha\lambda$")
        # ``aspect`` is the length of the bar over its width, which is then the same for figures of any height.
        figure.colorbar(picture, ax=axes, label="density of eigenvalues", pad=0.01, aspect=12 * figure.get_figheight())
        panels.outside_legends(figure, [], [line])
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also names the variable that is drawn and says over what the means are."""
    drawn = choice.part(ds)
    values = measured(drawn, "density")
    ends = [curves.first_and_last_states(drawn, values, name)[-1] for name in choice.learners]
    checkpoints = {int(drawn["checkpoint"][state.checkpoint]) for state in ends}
    return legend.joined(
        "The spectrum of the support loss's Hessian along the inner loop, before meta-training and after it "
        f"(meta-iteration {', '.join(map(str, sorted(checkpoints)))}): the {values.attrs.get('long_name', 'density')}.",
        "Each learner is beside its own untrained network. The y axis is linear around 0 and logarithmic beyond, as "
        "asinh is. The density is therefore one per unit of asinh and not per unit of alpha lambda.",
        f"White stands for less than {SMALLEST_FRACTION:g} of the largest density. Above the dashed line gradient "
        "descent is unstable.",
        f"Means are over the {tasks_per_seed(values.isel(grid=0, inner_step=0))} tasks of each seed that are measured "
        "in full, then over the seeds; the kernel by which the density is smoothed blurs single eigenvalues.",
        legend.no_alpha_sentence(ds),
        selection.shown_sentence(only_with_alpha(ds), choice.learners),
    )


def _heat_map(ax: Axes, values: xr.DataArray, norm: LogNorm) -> Any:
    """Draw the densities [inner_step, grid] of one state as a heat map; returns the image."""
    grid = values["grid"].values
    # Cells meet halfway between points of the grid; the outermost cells reach as far beyond their points as within.
    middles = (grid[1:] + grid[:-1]) / 2
    y_edges = np.concatenate([[2 * grid[0] - middles[0]], middles, [2 * grid[-1] - middles[-1]]])
    x_edges = np.arange(values.sizes["inner_step"] + 1) - 0.5  # the shown steps are columns of width 1, side by side
    # Missing densities, and those below the smallest that is drawn, are white. The map is dark where the density is
    # large, and grows darker evenly, so that it can be read in grey.
    shades = mpl.colormaps["cividis_r"]
    table = np.ma.masked_less(np.ma.masked_invalid(values.transpose("grid", "inner_step").values), norm.vmin or 0)
    picture = ax.pcolormesh(x_edges, y_edges, table, cmap=shades, norm=norm, rasterized=True)
    ax.set_xticks(range(values.sizes["inner_step"]), [str(step) for step in values["inner_step"].values])
    ax.set_xlim(x_edges[0], x_edges[-1])
    references.symlog_axis(ax.yaxis, *_span(table, grid))
    ax.grid(visible=False)
    return picture


def _span(table: np.ma.MaskedArray, grid: np.ndarray) -> tuple[float, float]:
    """The ends of the y axis: the smallest and the largest alpha lambda that have a density in the panel.

    The upper end is at least 1.2 times the threshold 2, so that the threshold is always seen.
    """
    filled = grid[~np.ma.getmaskarray(table).all(axis=1)]
    if not filled.size:
        return float(grid[0]), float(grid[-1])
    return float(filled[0]), float(max(filled[-1], 1.2 * DESCENT_THRESHOLD))
