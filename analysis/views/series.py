"""Points of a result as series on one picture: the last leading axis along x, the others in colours of their own."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from analysis.style import DARK

MOST = 8
"""More series than this cannot be told apart."""
COLUMN = 46
"""Letters of a legend that fit beside each other into one column of a paper."""


@dataclass(frozen=True)
class Series:
    """A part of a Dataset, its colour, and a label that says which part: "" for the whole."""

    ds: xr.Dataset
    color: str
    label: str


def leading(ds: xr.Dataset, name: str, *own: str) -> tuple[str, ...]:
    """The axes of points of a variable: those that are not its own."""
    return tuple(str(dim) for dim in ds[name].dims if dim not in own)


def split(ds: xr.Dataset, dims: tuple[str, ...]) -> list[Series]:
    """One series for each label of the dims, dark to light in their order; ValueError for too many to tell apart."""
    places = list(product(*(range(ds.sizes[dim]) for dim in dims)))
    if len(places) > MOST:
        raise ValueError(
            f"{len(places)} curves ({', '.join(dims)}) cannot be told apart; choose up to {MOST}: "
            f"ds.isel({dims[0]}=[...]), ds being to_xarray(result)"
        )
    colors = [DARK] if len(places) == 1 else list(_colors(len(places)))
    found = []
    for place, color in zip(places, colors, strict=True):
        part = ds.isel(dict(zip(dims, place, strict=True)))
        text = ", ".join(f"{_words(dim)} {part[dim].item()}" for dim in dims)
        found.append(Series(part, color, text))
    return found


def over_points(ds: xr.Dataset, name: str, *own: str) -> tuple[str | None, list[Series]]:
    """What goes along x, None for a single point; and the series."""
    dims = leading(ds, name, *own)
    return (dims[-1], split(ds, dims[:-1])) if dims else (None, split(ds, ()))


def point_axis(ds: xr.Dataset, ax: Axes, dim: str) -> Axes:
    """Ticks at the points themselves while they are few and numbers."""
    values = ds[dim].values
    ax.set_xlabel(_words(dim))
    if len(values) <= 12 and np.issubdtype(values.dtype, np.number):
        ax.set_xticks(values)
    return ax


def legend(ax: Axes) -> Axes:
    """What there is to say, above the axes, where it hides nothing; in two columns where those fit."""
    _, labels = ax.get_legend_handles_labels()
    if labels:
        half = (len(labels) + 1) // 2
        wide = sum(max(map(len, column), default=0) for column in (labels[:half], labels[half:]))
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=2 if wide <= COLUMN else 1,
            handlelength=1.8,
            columnspacing=1,
        )
    return ax


def _words(dim: str) -> str:
    return dim.replace("_", " ")


def _colors(count: int) -> Iterator[str]:
    """Of viridis, which grows lighter evenly and is safe for colour-blind readers; without its yellow end."""
    ramp = mpl.colormaps["viridis"]
    return (to_hex(ramp(0.85 * place / (count - 1))) for place in range(count))
