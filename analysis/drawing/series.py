"""Split the Dataset of a result into series, each of which is drawn in its own colour.

The points of a result are the parameter vectors at which a quantity was computed. The leading axes of a result, such as
task and inner step, tell its points apart and are called its axes of points. The axes that follow them, such as
eigen_index, belong to the value at a point. A plot has the last axis of points along x, and one series for each
combination of labels of the other axes of points.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.drawing.labelled import axis_label
from analysis.drawing.style import DARK, shade

MAX_SERIES = 8
"""The largest number of series whose colours can be told apart."""
MAX_LEGEND_LETTERS = 46
"""The number of letters that two legend entries side by side may have in one column of a paper."""


@dataclass(frozen=True)
class Series:
    """A part of a Dataset, its colour, and a label that says which part it is; the label of a whole Dataset is ""."""

    ds: xr.Dataset
    color: str
    label: str


def split(ds: xr.Dataset, dims: tuple[str, ...]) -> list[Series]:
    """Split a Dataset into one series for each combination of the labels of ``dims``, coloured from dark to light.

    The attribute "label" of the Dataset stands before the label of each series. Its attribute "color" is the colour of
    a series that is the only one.

    Raises ValueError if there are more than ``MAX_SERIES`` combinations.
    """
    combinations = list(product(*(range(ds.sizes[dim]) for dim in dims)))
    num_series = len(combinations)
    if num_series > MAX_SERIES:
        raise ValueError(
            f"{num_series} curves ({', '.join(dims)}) cannot be told apart; choose up to {MAX_SERIES}: "
            f"plot(ds.isel({dims[0]}=[...])) with ds = to_xarray(result)"
        )
    series = []
    for index, positions in enumerate(combinations):
        part = ds.isel(dict(zip(dims, positions, strict=True)))
        words = [f"{dim.replace('_', ' ')} {part[dim].item()}" for dim in dims]
        label = ", ".join([ds.attrs["label"], *words] if "label" in ds.attrs else words)
        color = ds.attrs.get("color", DARK) if num_series == 1 else shade(index, num_series - 1)
        series.append(Series(part, color, label))
    return series


def point_dims(ds: xr.Dataset, name: str, *value_dims: str) -> tuple[str, ...]:
    """The axes of points of the variable ``name``: all except ``value_dims``, the axes of the value at a point."""
    return tuple(str(dim) for dim in ds[name].dims if dim not in value_dims)


def over_points(ds: xr.Dataset, name: str, *value_dims: str) -> tuple[str | None, list[Series]]:
    """Return the axis of points that is drawn along x, and the series of the other axes of points.

    The arguments are those of ``point_dims``. A result at a single point has no axis of points: then the first value is
    None, and there is one series.
    """
    dims = point_dims(ds, name, *value_dims)
    return (dims[-1], split(ds, dims[:-1])) if dims else (None, split(ds, ()))


def name_axes(ax: Axes, y: xr.DataArray, *, name: str, dim: str | None = None, x: str = "") -> Axes:
    """Label both axes, and put a legend above the panel, where it hides nothing; returns the axes.

    y: the variable that is drawn, whose unit goes into the label of the y axis. name: the variable's name in the label.
    dim: the axis of points along x. If it is None, ``x`` is the label of the x axis.
    """
    ax.set_ylabel(axis_label(name, y.attrs["units"]))
    ax.set_xlabel(x if dim is None else dim.replace("_", " "))
    if dim is not None and len(y[dim]) <= 12 and np.issubdtype(y[dim].dtype, np.number):
        ax.set_xticks(y[dim].values)  # more than 12 ticks would overlap
    elif dim is not None and np.issubdtype(y[dim].dtype, np.integer):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Results in the same axes have entries in common, such as the band; the first entry of a label stands for all.
    handles = {label: handle for handle, label in reversed(list(zip(*ax.get_legend_handles_labels(), strict=True)))}
    labels = list(reversed(handles))
    if labels:
        # matplotlib fills a legend of two columns column by column.
        half = (len(labels) + 1) // 2
        letters = sum(max(map(len, column), default=0) for column in (labels[:half], labels[half:]))
        columns = 2 if letters <= MAX_LEGEND_LETTERS else 1
        shown = [handles[label] for label in labels]
        ax.legend(
            shown, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, handlelength=1.8, columnspacing=1
        )
    return ax
