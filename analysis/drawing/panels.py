"""The layout of a figure: panels at their final width, legends around them, and the files it is written to."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.drawing import style

MAX_COLUMNS = 4
LEGEND_ROOM = 0.7
"""Inches of a figure's height that are left for the legends above and below its panels."""

# A date or a version of matplotlib in the file would make two equal figures differ.
METADATA: dict[str, dict[str, str | None]] = {
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    ".png": {"Software": None},
}


@contextmanager
def grid(
    number: int, *, xlabel: str, row_height: float = 2.1, share_y: bool = True
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with ``number`` panels to draw in, under the style of the house.

    A single panel is one column of a paper wide; more are two columns wide, with at most four panels a row.
    ``row_height`` is in inches. The x label stands under each column, where the legend below cannot run into it.
    """
    columns = number if number <= MAX_COLUMNS else ceil(number / ceil(number / MAX_COLUMNS))
    rows = ceil(number / columns)
    width: style.Width = "single" if number == 1 else "double"
    with style.context(width=width):
        size = (style.INCHES[width], rows * row_height + LEGEND_ROOM)
        figure = Figure(figsize=size, layout="constrained")
        axes = list(figure.subplots(rows, columns, sharey=share_y, squeeze=False).flat)
        for unused in axes[number:]:
            unused.set_visible(False)
        for ax in axes[max(number - columns, 0) : number]:
            ax.set_xlabel(xlabel)
        yield figure, axes[:number]


def left_labels(axes: list[Axes], label: str) -> None:
    """Put the y label on the panels of the first column only, as the panels share y."""
    for ax in axes:
        place = ax.get_subplotspec()
        if place is not None and place.is_first_col():
            ax.set_ylabel(label)


def outside_legends(figure: Figure, above: Sequence[Artist], below: Sequence[Artist]) -> None:
    """Put legends above and below the panels of a figure: what lines are above; references, bands and notes below.

    What they need beyond ``LEGEND_ROOM`` is added to the figure's height, so that many learners do not take the
    panels' place.
    """
    needed = _fitting_legend(figure, above, "outside upper left") + _fitting_legend(figure, below, "outside lower left")
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + max(0.0, needed - LEGEND_ROOM))


def _fitting_legend(
    figure: Figure, entries: Sequence[Artist], loc: Literal["outside upper left", "outside lower left"]
) -> float:
    """Add a legend of at most five columns with as few rows as fit into the width; returns its height in inches."""
    if not entries:
        return 0.0
    renderer = FigureCanvasAgg(figure).get_renderer()  # only a renderer knows how wide the texts are
    for rows in range(-(-len(entries) // 5), len(entries) + 1):
        # The columns are filled evenly, or a last row of one entry would stand apart from its kind.
        columns = -(-len(entries) // rows)
        legend = figure.legend(handles=list(entries), loc=loc, ncols=columns)
        extent = legend.get_window_extent(renderer)
        if extent.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    return float(extent.height) / figure.dpi


def save(figure: Figure, path_stem: Path | str) -> tuple[Path, Path]:
    """Write a figure as PDF and as PNG of 300 dpi: each file in whole or not at all, and the same bytes each time.

    ``path_stem`` is the path without a suffix. Returns both paths.
    """
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    pdf = _write(figure, stem, ".pdf")
    figure.set_layout_engine("none")  # the PDF laid it out; a second layout could come out otherwise
    return pdf, _write(figure, stem, ".png")


def _write(figure: Figure, stem: Path, suffix: str) -> Path:
    path = stem.with_name(stem.name + suffix)
    # The file is written beside its place and renamed over the old one. If a killed run leaves it behind, the next
    # save of this figure writes over it.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with style.context():
            figure.savefig(partial, format=suffix[1:], metadata=METADATA[suffix], dpi=style.DPI)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
