"""A quantity against meta-training: x is the meta-iteration, one line a learner."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from analysis.plots.curve import curve, level
from analysis.plots.look import controls, learner_style
from analysis.plots.summary import Summary
from analysis.schema import learner_names
from analysis.style import MethodStyle


def over_training(ds: xr.Dataset, ax: Axes, *, summary: Summary, incomplete: xr.DataArray | None = None) -> Axes:
    """Draw a summary with dimensions learner and checkpoint against the meta-iteration.

    An untrained control has one checkpoint and is drawn as a level. ``incomplete`` (learner, checkpoint) counts
    the units missing from a mean because they diverged: such a point gets a cross.
    """
    checkpoints, untrained = ds["checkpoint"].values, controls(ds)
    for position, name in enumerate(learner_names(ds)):
        own, style = summary.at(learner=position), learner_style(ds, name)
        if name in untrained:
            level(_at_start(own), ax, style=style, name=name)
        else:
            curve(own, ax, x=checkpoints, style=style, name=name)
        if incomplete is not None:
            missing = incomplete.isel(learner=position).values
            cross_out(own, ax, x=checkpoints, missing=missing, style=style, name=name)
    return training_axis(ax, checkpoints)


def cross_out(summary: Summary, ax: Axes, *, x: np.ndarray, missing: np.ndarray, style: MethodStyle, name: str) -> Axes:
    """Crosses over the means that lack diverged units; at the top edge where every unit diverged."""
    positions, mean = np.asarray(x, dtype=float), summary.mean.values
    cross: dict[str, Any] = {
        "marker": "x",
        "linestyle": "none",
        "markersize": 6.5,
        "markeredgewidth": 1.1,
        "color": style.color,
    }
    partial = (missing > 0) & np.isfinite(mean)
    if partial.any():
        ax.plot(positions[partial], mean[partial], gid=f"diverged:{name}", zorder=5, **cross)
    lost = (missing > 0) & ~np.isfinite(mean)
    if lost.any():
        at_top = ax.get_xaxis_transform()
        top = np.full(lost.sum(), 0.97)
        ax.plot(positions[lost], top, transform=at_top, gid=f"all diverged:{name}", zorder=5, **cross)
    return ax


def shared_start(ds: xr.Dataset, summary: Summary) -> Summary | None:
    """The level of the untrained network in a study without a control: checkpoint 0, where all learners agree there.

    None with a control, which ``over_training`` draws, and where learners with different inner learning rates
    start from different levels: then there is not one to draw.
    """
    if controls(ds):
        return None
    means = summary.mean.isel(checkpoint=0).values
    there = np.flatnonzero(np.isfinite(means))
    if int(ds["checkpoint"].values[0]) != 0 or there.size == 0:
        return None
    if not np.allclose(means[there], means[there[0]], rtol=1e-4, atol=1e-9):
        return None
    return summary.at(learner=int(there[0]), checkpoint=0)


def training_axis(ax: Axes, checkpoints: np.ndarray) -> Axes:
    """x grows by decades from the first positive checkpoint on, with 0 on the axis; ticks are the checkpoints."""
    positive = [int(point) for point in checkpoints if point > 0]
    logarithmic = bool(positive) and positive[-1] > 4 * positive[0]
    if logarithmic:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    forward = ax.xaxis.get_transform().transform
    places = forward(np.asarray(checkpoints, dtype=float))
    width = max(float(places[-1] - places[0]), 1e-9)
    ax.xaxis.set_major_locator(FixedLocator(list(checkpoints)))
    ax.xaxis.set_major_formatter(FixedFormatter(_thinned_labels(checkpoints, (places - places[0]) / width)))
    ax.xaxis.set_minor_locator(NullLocator())
    inverse = ax.xaxis.get_transform().inverted().transform
    pad = 0.04 * width if len(places) > 1 else 1.0
    ax.set_xlim(*inverse(np.array([places[0] - pad, places[-1] + pad])))
    return ax


def _thinned_labels(checkpoints: np.ndarray, places: np.ndarray, gap: float = 0.17) -> list[str]:
    """A label for the first and last checkpoint and for those between that leave room (share of the axis)."""
    kept = [0, len(places) - 1]
    for index in range(len(places) - 2, 0, -1):
        if all(abs(places[index] - places[other]) >= gap for other in kept):
            kept.append(index)
    return [_short(int(point)) if index in kept else "" for index, point in enumerate(checkpoints)]


def _short(count: int) -> str:
    """1500 as 1.5k: meta-iterations are long numbers in narrow panels."""
    return f"{count / 1000:g}k" if count >= 1000 else str(count)


def _at_start(summary: Summary) -> Summary:
    """A learner's summary at the first checkpoint that has a value."""
    there = np.flatnonzero(np.isfinite(summary.mean.values))
    return summary.at(checkpoint=int(there[0]) if there.size else 0)
