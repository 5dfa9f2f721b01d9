"""The layout of a figure: panels at their final width, legends around them, and the files it is written to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from math import ceil
from pathlib import Path
from textwrap import wrap
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import cKDTree

from analysis.drawing import style
from hessian_tools.runs.files import write_atomic, write_text
from hessian_tools.validation import check_choice

MIN_PANEL_WIDTH = 1.6
"""The least width of a panel, in inches; a figure of the full text width then has four panels in a row."""
LEGEND_HEIGHT = 0.7
"""Inches of a figure's height that are reserved for the legends above and below its panels."""
LINE_HEIGHT = 0.14
"""Inches of a line of text."""

# Without these settings, files hold the date and the version of matplotlib, so equal figures would differ as files.
METADATA: dict[str, dict[str, str | None]] = {
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    ".png": {"Software": None},
    ".svg": {"Creator": None, "Date": None},
}
FORMATS = tuple(suffix[1:] for suffix in METADATA)


class ShownFigure(Figure):
    """A figure that a notebook shows although pyplot, which may never be imported, does not know it."""

    def _repr_png_(self) -> bytes:
        png = BytesIO()
        self.savefig(png, format="png", dpi=self.dpi, bbox_inches="tight")
        return png.getvalue()


@contextmanager
def grid(
    num_panels: int,
    *,
    xlabel: str,
    row_height: float = 2.1,
    share_y: bool = True,
    columns: int | None = None,
    width: style.Width | None = None,
    default: style.Width | None = None,
    margin: float = 0.45,
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Make a figure with ``num_panels`` panels, in the style of ``analysis.drawing.style``, for a ``with`` block.

    width: the width that the user asks for. None leaves it to ``default``, which is one column of a paper for a single
        panel, and both columns for several.
    columns: the number of panels in a row. None spreads the panels over as few rows as panels of
        ``MIN_PANEL_WIDTH`` allow, as evenly as possible.
    row_height: in inches. margin: the inches left of each panel that tick labels need.
    xlabel: stands under the lowest panel of each column, where the legend below the figure cannot overlap it.
    """
    width = style.inches_of(width or default or ("single" if num_panels == 1 else "double"))
    # Panels are spread evenly over the rows: five panels are rows of three and two, not of four and one.
    if columns is None:
        columns = ceil(num_panels / ceil(num_panels / max(1, int(width / MIN_PANEL_WIDTH))))
    rows = ceil(num_panels / columns)
    with style.context(width=width):
        size = (width, rows * row_height + LEGEND_HEIGHT)
        figure = ShownFigure(figsize=size, layout="constrained")
        axes = list(figure.subplots(rows, columns, sharey=share_y, squeeze=False).flat)
        for unused in axes[num_panels:]:
            unused.set_visible(False)
        for ax in axes[max(num_panels - columns, 0) : num_panels]:
            ax.set_xlabel(xlabel)
        yield figure, axes[:num_panels]
        _wrap(figure, axes[:num_panels], width / columns - margin)


def _wrap(figure: Figure, axes: list[Axes], inches: float) -> None:
    """Break titles and x labels that are longer than ``inches`` into lines, and make the figure higher by these."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    more_lines: dict[tuple[str, float], int] = {}  # for the titles and the labels of each row of panels
    for ax in axes:
        row = float(ax.get_position().y0)  # the same for all panels of a row
        for kind, text, write in (
            ("title", ax.get_title("left"), partial(ax.set_title, loc="left")),
            ("label", ax.get_xlabel(), ax.set_xlabel),
        ):
            # The text is put into the figure for a moment, because only a text in a figure has a width.
            trial = figure.text(0, 0, text, fontsize=style.rc_params()["axes.titlesize"])
            relative_width = trial.get_window_extent(renderer).width / figure.dpi / inches
            trial.remove()
            # A formula cannot be broken. A row becomes higher by the most lines that one of its panels needs.
            if relative_width > 1 and "$" not in text:
                lines = wrap(text, int(len(text) / relative_width))
                write("\n".join(lines))
                more_lines[kind, row] = max(more_lines.get((kind, row), 0), len(lines) - 1)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + LINE_HEIGHT * sum(more_lines.values()))


def left_labels(axes: list[Axes], label: str) -> None:
    """Label the common y axis of all panels once: beside the first panel of a single row, or beside all rows."""
    figure = axes[0].figure
    if len({ax.get_position().y0 for ax in axes}) > 1:
        figure.supylabel(label, multialignment="center")
    else:
        axes[0].set_ylabel(label)


def outside_legends(figure: Figure, above: Sequence[Artist], below: Sequence[Artist]) -> None:
    """Put legends above the panels (what the lines are) and below them (references, bands and notes).

    If the legends need more than ``LEGEND_HEIGHT``, the figure becomes higher, so that the panels keep their size.
    """
    needed = _fitting_legend(figure, above, "outside upper left") + _fitting_legend(figure, below, "outside lower left")
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + max(0.0, needed - LEGEND_HEIGHT))


def _fitting_legend(
    figure: Figure, entries: Sequence[Artist], loc: Literal["outside upper left", "outside lower left"]
) -> float:
    """Add a legend of at most five columns, with as few rows as the figure's width allows.

    Returns the legend's height in inches.
    """
    if not entries:
        return 0.0
    renderer = FigureCanvasAgg(figure).get_renderer()  # only a renderer knows how wide the texts are
    for rows in range(ceil(len(entries) / 5), len(entries) + 1):
        # The entries are spread evenly over the rows, so that the last row does not hold a single entry.
        columns = ceil(len(entries) / rows)
        legend = figure.legend(handles=list(entries), loc=loc, ncols=columns)
        extent = legend.get_window_extent(renderer)
        if extent.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    return float(extent.height) / figure.dpi


def save(figure: Figure, path_stem: Path | str, *, formats: Sequence[str] = ("pdf", "png")) -> tuple[Path, ...]:
    """Write a figure in each of the formats, which are pdf, png (of 300 dpi) and svg; returns the paths.

    ``path_stem`` is the path without a suffix. If writing fails, no incomplete file is left. Equal figures give files
    with the same bytes.
    """
    for form in formats:
        check_choice("formats", form, FORMATS)
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for form in formats:
        paths.append(_write(figure, stem, f".{form}"))
        figure.set_layout_engine("none")  # writing the first file has laid it out; a second layout could differ
    return tuple(paths)


def save_table(table: pd.DataFrame, path_stem: Path | str) -> Path:
    """Write the numbers of a figure as CSV, to six digits; returns the path, which is ``path_stem`` with ".csv"."""
    path = Path(path_stem).with_name(Path(path_stem).name + ".csv")
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return path


def _write(figure: Figure, stem: Path, suffix: str) -> Path:
    """Write the figure in one format, which the suffix names; returns the path of the file."""
    path = stem.with_name(stem.name + suffix)
    # The figure is drawn in memory first, because matplotlib hides the error of a full disk behind an AttributeError.
    content = BytesIO()
    with style.context():
        figure.savefig(content, format=suffix[1:], metadata=METADATA[suffix], dpi=style.DPI)
    data = _with_palette(content) if suffix == ".png" else content.getvalue()
    write_atomic(path, lambda part: part.write_bytes(data))
    return path


def _with_palette(png: BytesIO) -> bytes:
    """The picture with a palette of 256 colours, which takes about a third of the bytes and looks the same.

    Half of the palette are the most frequent colours, unchanged, so that a band, a line and their legend entries keep
    their colours. The other half approximates all other colours, which are mostly blends at edges.
    """
    pixels = np.asarray(Image.open(png).convert("RGB"), dtype=np.uint8)
    # Red, green and blue of each pixel are packed into one integer, so that ``unique`` counts whole colours. Its
    # ``positions`` are the place of each pixel's colour among the colours of the picture.
    weights = np.array([65536, 256, 1], dtype=np.int32)
    codes, positions, counts = np.unique(pixels.astype(np.int32) @ weights, return_inverse=True, return_counts=True)
    colors = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8)
    # The palette: the 128 most frequent colours, and 128 that approximate all colours.
    frequent = colors[np.argsort(-counts, kind="stable")[:128]]
    others = Image.fromarray(colors[None]).quantize(128, method=Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = np.concatenate([frequent, np.array(others, dtype=np.uint8).reshape(-1, 3)])[:256]
    # Each colour of the picture is replaced by the nearest one of the palette.
    _distances, nearest = cKDTree(palette).query(colors)
    picture = Image.fromarray(nearest.astype(np.uint8)[positions.reshape(pixels.shape[:2])])
    picture.putpalette(palette.tobytes())
    small = BytesIO()
    picture.save(small, "PNG", optimize=True, dpi=(style.DPI, style.DPI))
    return small.getvalue()
