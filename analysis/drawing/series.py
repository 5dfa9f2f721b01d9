"""The points of a result on one picture: the last axis of points along x, the others as series in colours."""

from dataclasses import dataclass
from itertools import product

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from analysis.drawing.labelled import axis_label
from analysis.drawing.style import DARK

MAX_SERIES = 8
"""More series than this cannot be told apart."""
LEGEND_WIDTH = 46
"""Number of letters of two legend entries that fit beside each other into one column of a paper."""


@dataclass(frozen=True)
class Series:
    """A part of a Dataset, its colour, and a label that says which part it is; "" for the whole."""

    ds: xr.Dataset
    color: str
    label: str


def split(ds: xr.Dataset, dims: tuple[str, ...]) -> list[Series]:
    """One series for each combination of the labels of ``dims``, from dark to light in their order.

    Raises ValueError if there are too many to tell apart.
    """
    combinations = list(product(*(range(ds.sizes[dim]) for dim in dims)))
    number = len(combinations)
    if number > MAX_SERIES:
        raise ValueError(
            f"{number} curves ({', '.join(dims)}) cannot be told apart; choose up to {MAX_SERIES}: "
            f"plot(ds.isel({dims[0]}=[...])) with ds = to_xarray(result)"
        )
    # Viridis grows lighter evenly and is safe for colour-blind readers. Its yellow end vanishes on white.
    ramp = mpl.colormaps["viridis"]
    series = []
    for index, positions in enumerate(combinations):
        part = ds.isel(dict(zip(dims, positions, strict=True)))
        label = ", ".join(f"{dim.replace('_', ' ')} {part[dim].item()}" for dim in dims)
        series.append(Series(part, DARK if number == 1 else to_hex(ramp(0.85 * index / (number - 1))), label))
    return series


def point_dims(ds: xr.Dataset, name: str, *other_dims: str) -> tuple[str, ...]:
    """The axes of points of a variable, which are all but the other axes given."""
    return tuple(str(dim) for dim in ds[name].dims if dim not in other_dims)


def over_points(ds: xr.Dataset, name: str, *other_dims: str) -> tuple[str | None, list[Series]]:
    """The axis of points that goes along x, None for a single point, and one series for each label of the others."""
    dims = point_dims(ds, name, *other_dims)
    return (dims[-1], split(ds, dims[:-1])) if dims else (None, split(ds, ()))


def name_axes(ax: Axes, y: xr.DataArray, *, name: str, dim: str | None = None, x: str = "") -> Axes:
    """Label both axes, and explain what is drawn in a legend above them, where it hides nothing.

    y: a variable, which has the unit; name: how it is called on its axis.
    dim: the axis of points along x; None if there is none, and then ``x`` is the label of x.
    """
    ax.set_ylabel(axis_label(name, y.attrs["units"]))
    ax.set_xlabel(x if dim is None else dim.replace("_", " "))
    if dim is not None and len(y[dim]) <= 12 and np.issubdtype(y[dim].dtype, np.number):
        ax.set_xticks(y[dim].values)  # few enough that each point gets a tick of its own
    _, labels = ax.get_legend_handles_labels()
    if labels:
        half = (len(labels) + 1) // 2
        letters = sum(max(map(len, column), default=0) for column in (labels[:half], labels[half:]))
        columns = 2 if letters <= LEGEND_WIDTH else 1
        ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, handlelength=1.8, columnspacing=1)
    return ax
