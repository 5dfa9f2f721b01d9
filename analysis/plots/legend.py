"""Legend entries: methods by their fixed look, what the band is, reference lines, and how many units diverged."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import xarray as xr
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.plots.curve import BAND_ALPHA
from analysis.plots.look import controls, learner_style
from analysis.plots.references import NULL_LOOK
from analysis.plots.states import panel_learners, states
from analysis.plots.summary import band_label, diverged_units
from analysis.schema import begun_elsewhere, learner_names
from analysis.style import CONTROL, DARK, GREY, Line, method_label

Place = Literal["outside upper left", "outside lower left"]
LEGENDS = 0.7
"""Inches that a figure has for the legends above and below its panels."""


def learner_handles(ds: xr.Dataset) -> list[Artist]:
    """One line with its marker for each learner; an untrained control is a level and has no marker."""
    handles: list[Artist] = []
    for name in learner_names(ds):
        style = learner_style(ds, name)
        marker = "" if name in controls(ds) else style.marker
        label = method_label(name)
        handles.append(Line2D([], [], color=style.color, linestyle=style.linestyle, marker=marker, label=label))
    return handles


def untrained_handle() -> Artist:
    """The grey dotted level of the untrained network in a study without a control."""
    return Line2D([], [], color=CONTROL.color, linestyle=CONTROL.linestyle, label="untrained")


def band_handle(num_seeds: int) -> Artist:
    """What the band is, in words."""
    return Patch(color="black", alpha=BAND_ALPHA, linewidth=0, label=band_label(num_seeds))


def threshold_handle(label: str) -> Artist:
    """The dashed black line of a threshold."""
    return Line2D([], [], color="black", linestyle=(0, (4, 2)), linewidth=0.8, label=label)


def null_handle(label: str) -> Artist:
    """The grey band of a null."""
    return Patch(**NULL_LOOK, label=label)


def chance_handle(ways: float) -> Artist:
    """The dotted black line of chance."""
    return Line2D([], [], color="black", linestyle=(0, (1, 2)), linewidth=0.8, label=f"chance (1/{ways:g})")


def quantity_handles(quantities: Mapping[str, tuple[str, Line, str]]) -> list[Artist]:
    """Marker, line and label of quantities that share a panel; black, as colour belongs to the method."""
    return [
        Line2D([], [], color="black", marker=marker, linestyle=line, label=label)
        for marker, line, label in quantities.values()
    ]


def dots_handle(label: str) -> Artist:
    """Small dots: single tasks."""
    return Line2D([], [], color="black", marker="o", markersize=1.8, markeredgewidth=0, linestyle="none", label=label)


def state_handles(ds: xr.Dataset, values: xr.DataArray) -> list[Artist]:
    """Grey and open for the first checkpoint; dark and filled, without a line, for the last one in any colour."""
    drawn = [state for name in panel_learners(ds) for state in states(values, ds, name)]
    handles: list[Artist] = []
    for first in (True, False):
        iterations = {int(ds["checkpoint"][state.checkpoint]) for state in drawn if state.first is first}
        if not iterations:
            continue
        label = f"meta-iteration {min(iterations)}" if len(iterations) == 1 else "each learner's last checkpoint"
        if first and iterations == {0}:
            label = "meta-iteration 0" if set(begun_elsewhere(ds)) & set(panel_learners(ds)) else "untrained"
        label += "" if first else " (in the learner's colour)"
        look: dict[str, Any] = {"color": GREY, "linestyle": CONTROL.linestyle, "markerfacecolor": "white"}
        look = look if first else {"color": DARK, "linestyle": "none"}
        handles.append(Line2D([], [], marker="o", markersize=4.5, label=label, **look))
    return handles


def diverged_handles(ds: xr.Dataset, *, crossed: bool = True) -> list[Artist]:
    """The count of diverged task units, when there are any; ``crossed``: the figure marks the means they lack."""
    counts, tried = diverged_units(ds)
    return lost_handles(int(counts.sum()), tried, what="task units", crossed=crossed)


def lost_handles(lost: int, tried: int, *, what: str = "evaluations", crossed: bool = True) -> list[Artist]:
    """'2 of 64 task units diverged: not in the means', with the cross that marks the means they are missing from."""
    if lost == 0:
        return []
    label = f"{lost} of {tried} {what} diverged: not in the means"
    marker = "x" if crossed else ""
    return [Line2D([], [], color=GREY, marker=marker, linestyle="none", markersize=6, markeredgewidth=1.1, label=label)]


def outside_legends(figure: Figure, above: Sequence[Artist], below: Sequence[Artist]) -> None:
    """What lines are, above the panels; references, bands and notes below them.

    The figure has room for ``LEGENDS`` inches of them; what they need beyond that is added to its height, so that
    many learners do not take the panels' place.
    """
    needed = _fitting_legend(figure, above, "outside upper left") + _fitting_legend(figure, below, "outside lower left")
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + max(0.0, needed - LEGENDS))


def _fitting_legend(figure: Figure, handles: Sequence[Artist], loc: Place, most_columns: int = 5) -> float:
    """A legend with as few rows as fit into the width of the figure, which its texts decide: they are measured.

    Its columns are filled evenly, or a last row of one entry would stand apart from its kind. Returns its inches.
    """
    if not handles:
        return 0.0
    renderer = FigureCanvasAgg(figure).get_renderer()
    fewest = -(-len(handles) // most_columns)
    for rows in range(fewest, len(handles) + 1):
        columns = max(-(-len(handles) // rows), 1)
        legend = figure.legend(handles=list(handles), loc=loc, ncols=columns)
        extent = legend.get_window_extent(renderer)
        if extent.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    return float(extent.height) / figure.dpi
