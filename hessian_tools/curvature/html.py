"""Results as HTML for a notebook: numbers with their errors, and a small picture in SVG.

Pictures with axes are drawn by ``analysis.plot``, not here.
"""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite, log10, prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# The size of a picture and its margin, in pixels.
WIDTH, HEIGHT, MARGIN = 320, 60, 6
# The largest number of points shown, because a result at thousands of points would fill the page.
MAX_ROWS = 8
# The largest number of eigenvalues of a point that are written out.
MAX_NUMBERS = 12
# The colours: INK for a value, SHADE for its error or for a value that has not converged, ZERO for the line at zero.
# A verdict is written in the colour ZERO where it is bad, and else in GOOD.
INK, SHADE, ZERO, GOOD = "#333333", "#c9c9c9", "#b2182b", "#1b6e3c"
# The logarithmic axis of a density begins at this fraction of the largest value that is drawn.
LOWEST = 1e-5


def eigenvalues_html(
    values: Float[Tensor, "*point k"],
    residuals: Float[Tensor, "*point k"],
    converged: Bool[Tensor, "*point k"],
    title: str = "EigenPairs (± residual)",
) -> str:
    """A row for each point: its eigenvalues as ticks, grey where not converged. All rows have the same axis."""
    rows = list(zip(_rows(values), _rows(residuals), _rows(converged.to(values)), strict=True))[:MAX_ROWS]
    finite = [v for value, *_ in rows for v in value if isfinite(v)]
    low, high = min([0.0, *finite]), max([0.0, *finite])  # the axis, which always contains zero
    texts = []
    for value, residual, good in rows:
        colored = [(v, INK if g else SHADE) for v, g in zip(value, good, strict=True) if isfinite(v)]
        marks = [_tick(_x_of(v, low, high), color) for v, color in colored]
        shown = zip(value[:MAX_NUMBERS], residual, strict=False)
        numbers = ", ".join(f"{v:.4g} ± {r:.1g}" for v, r in shown) + ", ..." * (len(value) > MAX_NUMBERS)
        texts.append(_svg(_tick(_x_of(0.0, low, high), ZERO, 0.25) + "".join(marks), 20) + _line(numbers))
    return _block(title, texts, values.shape[:-1])


def lines_html(
    title: str,
    lines: Mapping[str, Float[Tensor, "*point step"]],
    steps: Sequence[float] | None = None,
    *,
    where: str = "at {} points",
) -> str:
    """A row for each point: its numbers over the steps as lines, dark and then grey, with their first and last value.

    lines: the numbers by name, for one or two lines. steps: the x coordinates, by default 0, 1, ...; they need not be
    sorted. where: follows the title, with the number of points in place of {}; if the lines have no axis of points,
    nothing follows the title. All rows have the same axes.
    """
    rows = {name: _rows(values)[:MAX_ROWS] for name, values in lines.items()}
    finite = [v for values in rows.values() for row in values for v in row if isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    x = range(next(iter(lines.values())).shape[-1]) if steps is None else steps
    order = sorted(range(len(x)), key=lambda k: x[k])
    texts = []
    for position in range(len(next(iter(rows.values())))):
        pictures, words = [], []
        for (name, values), color in zip(rows.items(), (INK, SHADE)[: len(rows)], strict=True):
            y = values[position]
            places = [(_x_of(x[k], min(x), max(x)), _y_of(y[k], low, high)) for k in order if isfinite(y[k])]
            points = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
            pictures.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>')
            words.append(f"{name} {y[order[0]]:.4g} to {y[order[-1]]:.4g}")
        # SVG draws later elements over earlier ones. The first line, which is dark, comes last, so that it lies on top.
        texts.append(_svg("".join(reversed(pictures)), HEIGHT) + _line("; ".join(words)))
    return _block(title, texts, next(iter(lines.values())).shape[:-1], where)


def interval_html(value: float, low: float, high: float, marks: Sequence[float], text: str) -> str:
    """One row: a value with its interval on an axis that has a red line at zero and thin grey ones at ``marks``."""
    ends = [end for end in (value, low, high, *marks, 0.0) if isfinite(end)]
    first, last = min(ends), max(ends)
    picture = _tick(_x_of(0.0, first, last), ZERO, 0.9)
    picture += "".join(_tick(_x_of(mark, first, last), SHADE, 0.9) for mark in marks if isfinite(mark))
    if isfinite(low) and isfinite(high):
        left, right = _x_of(low, first, last), _x_of(high, first, last)
        picture += f'<rect x="{left:.1f}" y="9" width="{max(right - left, 1):.1f}" height="2" fill="{INK}"/>'
    if isfinite(value):
        picture += _tick(_x_of(value, first, last), INK, 0.5)
    return f"<div>{_svg(picture, 20)} {escape(text)}</div>"


def density_html(
    grid: Float[Tensor, "*point grid"], density: Float[Tensor, "*point grid"], high: Float[Tensor, "*point grid"]
) -> str:
    """A row for each point: the density on a logarithmic axis, and behind it the upper end of its error band (high)."""
    texts = []
    for x, y, top in list(zip(*(_rows(part) for part in (grid, density, high)), strict=True))[:MAX_ROWS]:
        if not all(map(isfinite, y)):
            texts.append(_line("not finite"))
            continue
        peak = max(top) or 1.0
        curves = "".join(_area(x, values, peak, color) for values, color in ((top, SHADE), (y, INK)))
        texts.append(_svg(curves, HEIGHT) + _line(f"{x[0]:.4g} to {x[-1]:.4g}, logarithmic, peak {max(y):.3g}"))
    return _block("Density", texts, density.shape[:-1])


def estimate_html(value: Float[Tensor, "*point"], stderr: Float[Tensor, "*point"], probes: int) -> str:
    """A row for each point: the value with one standard error each way. All rows have the same axis."""
    pairs = _rows(torch.stack([value, stderr], dim=-1))[:MAX_ROWS]
    ends = [end for v, e in pairs for end in (v - e, v + e) if isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    texts = []
    for v, e in pairs:
        picture = _tick(_x_of(0.0, low, high), ZERO, 0.25)
        if isfinite(v) and isfinite(e):
            left, right = _x_of(v - e, low, high), _x_of(v + e, low, high)
            picture += f'<rect x="{left:.1f}" y="6" width="{max(right - left, 1):.1f}" height="8" fill="{SHADE}"/>'
            picture += _tick(_x_of(v, low, high), INK)
        texts.append(_svg(picture, 20) + _line(f"{v:.4g} ± {e:.2g}"))
    return _block(f"Estimate from {probes} probes (± standard error)", texts, value.shape)


def modules_html(
    names: Sequence[str], value: Float[Tensor, "*point module"], stderr: Float[Tensor, "*point module"], probes: int
) -> str:
    """A bar for the trace of each module's block, with one standard error each way; for several points, their mean."""
    pairs = _rows(torch.stack([part.reshape(-1, len(names)).mean(0) for part in (value, stderr)], dim=-1))
    ends = [end for v, e in pairs for end in (v - e, v + e) if isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    texts = []
    for name, (v, e) in zip(names, pairs, strict=True):
        picture = _tick(_x_of(0.0, low, high), ZERO, 0.25)
        if isfinite(v) and isfinite(e):
            places = sorted(_x_of(end, low, high) for end in (0.0, v))
            bar = f'<rect x="{places[0]:.1f}" y="5" width="{places[1] - places[0]:.1f}" height="10" fill="{SHADE}"/>'
            error = [_x_of(end, low, high) for end in (v - e, v + e)]
            line = f'<line x1="{error[0]:.1f}" x2="{error[1]:.1f}" y1="10" y2="10" stroke="{INK}" stroke-width="1.5"/>'
            picture = bar + picture + line
        shown = name or "network"  # "" is the name of the network itself
        texts.append(_svg(picture, 20) + _line(f"{shown}: {v:.4g} ± {e:.2g}"))
    return _block(f"Trace by module from {probes} probes (± standard error)", texts, ())


def findings_html(title: str, findings: Sequence[tuple[bool | None, str, str, str]]) -> str:
    """A table with a row for each finding: whether it passed (None: not judged), its verdict, its name, a sentence."""
    colors = {True: GOOD, False: ZERO, None: "#777777"}
    rows = "".join(
        f'<tr><td style="color:{colors[passed]};white-space:nowrap;text-align:left"><b>{escape(verdict)}</b></td>'
        f'<td style="text-align:left">{escape(name)}</td><td style="text-align:left">{escape(sentence)}</td></tr>'
        for passed, verdict, name, sentence in findings
    )
    return f"<div><div><b>{escape(title)}</b></div><table>{rows}</table></div>"


def _rows(values: Tensor) -> list[list[float]]:
    """One list of numbers for each point."""
    return values.detach().cpu().reshape(-1, values.shape[-1]).tolist()


def _x_of(value: float, low: float, high: float) -> float:
    """The x coordinate, in pixels, of a value in a picture whose axis goes from low to high."""
    return MARGIN + (value - low) / ((high - low) or 1.0) * (WIDTH - 2 * MARGIN)


def _y_of(value: float, low: float, high: float) -> float:
    """The y coordinate, in pixels from the top, of a value in a picture whose axis goes from low to high."""
    return HEIGHT - MARGIN - (value - low) / ((high - low) or 1.0) * (HEIGHT - 2 * MARGIN)


def _tick(x: float, color: str, height: float = 0.7) -> str:
    """A vertical line in a picture that is 20 pixels high. height: its length as a fraction of the picture's height."""
    top = 10 - 10 * height
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{20 - top:.1f}" stroke="{color}" stroke-width="1.5"/>'


def _area(x: Sequence[float], y: Sequence[float], peak: float, color: str) -> str:
    """The area below a curve on the logarithmic axis. Each column of pixels shows the largest of its values."""
    columns: dict[int, float] = {}
    for position, value in zip(x, y, strict=True):
        column = round(_x_of(position, x[0], x[-1]))
        columns[column] = max(columns.get(column, 0.0), value)
    depth = log10(1 / LOWEST)  # the powers of ten that the axis covers
    heights = {}
    for column, value in columns.items():
        below_peak = log10(peak / max(value, LOWEST * peak))  # in powers of ten
        heights[column] = HEIGHT * (1 - min(1.0, below_peak / depth))
    points = " ".join(f"{c},{HEIGHT - h:.1f}" for c, h in sorted(heights.items()))
    return f'<polygon points="{min(columns)},{HEIGHT} {points} {max(columns)},{HEIGHT}" fill="{color}"/>'


def _svg(content: str, height: int) -> str:
    """A picture of these SVG elements."""
    # A screen reader passes over the picture, because the text beside it says the same.
    return f'<svg width="{WIDTH}" height="{height}" aria-hidden="true" style="vertical-align:middle">{content}</svg>'


def _line(text: str) -> str:
    """A line of text in a monospaced font."""
    return f' <span style="font-family:monospace">{escape(text)}</span>'


def _block(title: str, rows: list[str], points: Sequence[int], where: str = "at {} points") -> str:
    """The title, the rows, and how many points have no row. points: the shape of the axes of points."""
    count = prod(points)
    more = f"<div>and {count - len(rows)} more</div>" if count > len(rows) else ""
    at_points = f" {where.format(count)}" if len(points) else ""
    return f"<div><div>{escape(title + at_points)}</div>{''.join(f'<div>{row}</div>' for row in rows)}{more}</div>"
