"""Panels of one figure at its final width."""

from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots.legend import LEGENDS
from analysis.style import INCHES

MOST_COLUMNS = 4


def panels(number: int, *, xlabel: str, row_height: float = 1.75, share_y: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure with ``number`` panels, at most four a row: one column wide for one panel, else two.

    The x label stands under each column, so that the legend below the panels does not run into it.
    """
    columns = number if number <= MOST_COLUMNS else ceil(number / ceil(number / MOST_COLUMNS))
    rows = ceil(number / columns)
    width = INCHES["single" if number == 1 else "double"]
    figure = Figure(figsize=(width, rows * row_height + LEGENDS), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=share_y, squeeze=False)
    axes = list(grid.flat)
    for spare in axes[number:]:
        spare.set_visible(False)
    for ax in axes[max(number - columns, 0) : number]:
        ax.set_xlabel(xlabel)
    return figure, axes[:number]


def left_labels(axes: list[Axes], label: str) -> None:
    """The y label on the panels of the first column only, as the panels share y."""
    for ax in axes:
        place = ax.get_subplotspec()
        if place is not None and place.is_first_col():
            ax.set_ylabel(label)


def step_title(step: int, num_points: int) -> str:
    """Name of a point of the inner loop: at the last one the network is adapted and no step is taken."""
    return f"adapted (after {step} step{'s' * (step != 1)})" if step == num_points - 1 and step > 0 else f"step {step}"
