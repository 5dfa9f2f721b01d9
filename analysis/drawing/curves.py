"""Lines with bands: a mean over seeds with its band and error bars, over meta-training or along the inner loop.

Lines, bands and bars carry a gid such as ``mean:<name>`` or ``seed:<name>:<seed>``, by which a test or a drawing
program finds them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.drawing.references import step_axis, training_axis
from analysis.drawing.style import CONTROL, GREY, Line, MethodStyle, method_label, method_style
from analysis.drawing.summary import MAX_SEEDS_SHOWN, Summary, summarise
from analysis.schema import learner_names, trained_learners

BAND_ALPHA = 0.16
SEED_ALPHA = 0.45


def controls(ds: xr.Dataset) -> list[str]:
    """The learners that are not trained, by what the study says of them: a control may have any name."""
    trained = trained_learners(ds)
    return [name for name in learner_names(ds) if name not in trained]


def learner_style(ds: xr.Dataset, name: str) -> MethodStyle:
    """The look of one learner: that of its method if it is trained, grey if it is an untrained control."""
    return CONTROL if name in controls(ds) else method_style(name)


def plot_finite(ax: Axes, x: np.ndarray, y: np.ndarray, **look: Any) -> None:
    """Draw the points whose y is finite; a line goes straight across those that are left out."""
    finite = np.isfinite(y)
    ax.plot(x[finite], y[finite], **look)


def curve(ax: Axes, x: np.ndarray, summary: Summary, *, style: MethodStyle, name: str, filled: bool = True) -> None:
    """Draw the mean as a thick line, the band behind it, and each seed as a thin line while there are up to four."""
    x = np.asarray(x, dtype=float)
    low, high = summary.low.values, summary.high.values
    if summary.num_seeds > 1:
        finite = np.isfinite(low)
        band: dict[str, Any] = {"color": style.color, "alpha": BAND_ALPHA, "linewidth": 0}
        ax.fill_between(x[finite], low[finite], high[finite], gid=f"band:{name}", **band)
    if 1 < summary.num_seeds <= MAX_SEEDS_SHOWN:
        thin: dict[str, Any] = {"color": style.color, "alpha": SEED_ALPHA, "linewidth": 0.5}
        for seed in summary.per_seed["seed"].values:
            plot_finite(ax, x, summary.per_seed.sel(seed=seed).values, gid=f"seed:{name}:{seed}", **thin)
    look: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle, "marker": style.marker}
    face = style.color if filled else "white"
    plot_finite(ax, x, summary.mean.values, markerfacecolor=face, gid=f"mean:{name}", zorder=3, **look)


def level(ax: Axes, summary: Summary, *, style: MethodStyle, name: str) -> None:
    """Draw one number that does not change along x: a horizontal line at its mean, with its band."""
    mean, low, high = (float(value) for value in (summary.mean, summary.low, summary.high))
    if not np.isfinite(mean):
        return
    if np.isfinite(low):
        ax.axhspan(low, high, color=style.color, alpha=BAND_ALPHA, linewidth=0, gid=f"band:{name}")
    ax.axhline(mean, color=style.color, linestyle=style.linestyle, gid=f"mean:{name}", zorder=2.5)


def error_bars(ax: Axes, x: np.ndarray, y: np.ndarray, error: np.ndarray, *, color: str, name: str) -> None:
    """Draw vertical bars of one error each way behind the markers, wherever both value and error are finite."""
    finite = np.isfinite(y) & np.isfinite(error)
    if not finite.any():
        return
    look: dict[str, Any] = {"fmt": "none", "elinewidth": 0.8, "capsize": 1.5, "zorder": 2.8}
    bars = ax.errorbar(np.asarray(x, dtype=float)[finite], y[finite], yerr=error[finite], ecolor=color, **look)
    for lines in bars[2]:
        lines.set_gid(f"error:{name}")


def over_training(ds: xr.Dataset, ax: Axes, summary: Summary, *, incomplete: xr.DataArray) -> None:
    """Draw a summary with dimensions learner and checkpoint against the meta-iteration, one line per learner.

    An untrained control has one checkpoint and is drawn as a level. ``incomplete`` [learner, checkpoint] counts the
    units that a mean lacks because they diverged. Such a mean gets a cross; where every unit diverged, the cross stands
    at the top edge.
    """
    x = ds["checkpoint"].values.astype(float)
    for position, name in enumerate(learner_names(ds)):
        part, style = summary.at(learner=position), learner_style(ds, name)
        has_mean = np.isfinite(part.mean.values)
        if name in controls(ds):
            level(ax, part.at(checkpoint=int(np.argmax(has_mean))), style=style, name=name)
        else:
            curve(ax, x, part, style=style, name=name)
        lacks_units = incomplete.isel(learner=position).values > 0
        partial, lost = lacks_units & has_mean, lacks_units & ~has_mean
        cross: dict[str, Any] = {"marker": "x", "linestyle": "none", "markersize": 6.5, "markeredgewidth": 1.1}
        cross |= {"color": style.color, "zorder": 5}
        if partial.any():
            ax.plot(x[partial], part.mean.values[partial], gid=f"diverged:{name}", **cross)
        if lost.any():
            edge: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "gid": f"all diverged:{name}"}
            ax.plot(x[lost], np.full(lost.sum(), 0.97), **edge, **cross)
    training_axis(ax, ds["checkpoint"].values)


def common_start(ds: xr.Dataset, ax: Axes, summary: Summary) -> list[Line2D]:
    """Draw the level of the untrained network in a study without a control; returns its legend entry.

    It is the mean at checkpoint 0, where all learners are the same network. Nothing is drawn, and no entry returned,
    in a study with a control, which ``over_training`` draws, or where learners with different inner learning rates
    start from different levels.
    """
    means = summary.mean.isel(checkpoint=0).values
    means = means[np.isfinite(means)]
    if controls(ds) or int(ds["checkpoint"][0]) != 0 or means.size == 0:
        return []
    if not np.allclose(means, means[0], rtol=1e-4, atol=1e-9):
        return []
    look: dict[str, Any] = {"color": CONTROL.color, "linestyle": CONTROL.linestyle, "linewidth": 1.2}
    return [ax.axhline(float(means[0]), label="untrained", gid="untrained", zorder=2.5, **look)]


# ---- along the inner loop: the first and the last checkpoint of each learner


class QuantityLook(NamedTuple):
    """Marker, line and legend text of a quantity that shares its panel with other quantities."""

    marker: str
    linestyle: Line
    label: str


@dataclass(frozen=True)
class State:
    """One learner at its first or its last measured checkpoint; both are positions in the study.

    The first state is drawn grey with open markers, the last one filled and in the method's colour.
    """

    learner: int
    checkpoint: int
    name: str
    is_first: bool

    @property
    def label(self) -> str:
        """The end of a gid, such as ``last:maml``."""
        return f"{'first' if self.is_first else 'last'}:{self.name}"

    @property
    def color(self) -> str:
        """Grey for the first state, the method's own colour for the last."""
        return GREY if self.is_first else method_style(self.name).color

    @property
    def position(self) -> dict[str, int]:
        """Where this state is in the study, for ``isel``."""
        return {"learner": self.learner, "checkpoint": self.checkpoint}

    @property
    def shift(self) -> float:
        """How far to move points along x: the first state to the left of a step's tick, the last one to the right."""
        return -0.12 if self.is_first else 0.12


def states(ds: xr.Dataset, values: xr.DataArray, name: str) -> list[State]:
    """The first and the last checkpoint at which a learner has values: two states, one, or none."""
    learner = learner_names(ds).index(name)
    present = values.isel(learner=learner).notnull()
    checkpoints = np.flatnonzero(present.any([dim for dim in present.dims if dim != "checkpoint"]).values)
    ends = dict.fromkeys(int(checkpoints[end]) for end in (0, -1)) if checkpoints.size else {}
    return [State(learner, checkpoint, name, is_first=not number) for number, checkpoint in enumerate(ends)]


def panel_learners(ds: xr.Dataset) -> list[str]:
    """The learners that have a panel: the trained ones, as an untrained control is only where each of them starts."""
    return trained_learners(ds) or learner_names(ds)


def draw_states(
    ds: xr.Dataset, axes: list[Axes], values: xr.DataArray, draw: Callable[[xr.Dataset, Axes, State], object]
) -> None:
    """Draw both states of every learner into its panel; ``values`` tells which checkpoints were measured."""
    for name, ax in zip(panel_learners(ds), axes, strict=True):
        for state in states(ds, values, name):
            draw(ds, ax, state)
        ax.set_title(method_label(name), color=learner_style(ds, name).color)


def along_steps(
    ax: Axes, state: State, values: xr.DataArray, *, name: str, look: QuantityLook, error: xr.DataArray | None = None
) -> None:
    """Draw a quantity along the inner loop of one state.

    values: the quantity of the whole study, so that all panels have the same kind of band.
    error: the error of its means, drawn as bars.
    """
    summary = summarise(values).at(**state.position)
    x = summary.mean["inner_step"].values + state.shift
    style = MethodStyle(state.color, look.marker, ":" if state.is_first else look.linestyle)
    name = f"{name}:{state.label}"
    curve(ax, x, summary, style=style, name=name, filled=not state.is_first)
    if error is not None:
        mean_error = error.isel(state.position).values
        error_bars(ax, x, summary.mean.values, mean_error, color=state.color, name=name)
    step_axis(ax, len(x))
