"""Draws the mean of a quantity over seeds, with a band and error bars, over meta-training or along the inner loop.

A learner is a method of meta-learning with its settings in the study. An untrained control is a learner that is
measured and never trained. The checkpoints of a learner are the meta-iterations at which it was measured.

Lines, bands and bars have a matplotlib group id (gid), such as ``mean:<name>`` or ``seed:<name>:<seed>``. Tests find
them by this id. The style and the label of a trained learner follow from its name alone (``method_style`` and
``method_label``), so that they are the same in every study. Untrained controls are grey, whatever their names are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.drawing.references import step_axis, training_axis
from analysis.drawing.selection import is_control
from analysis.drawing.style import CONTROL_STYLE, GREY, LineStyle, MethodStyle, method_label, method_style
from analysis.drawing.summary import MAX_SEEDS_SHOWN, Summary
from analysis.schema import learner_names, trained_learners, untrained_start

BAND_ALPHA, SEED_ALPHA = 0.16, 0.45
"""The opacities of the bands and of the thin lines of single seeds."""


def untrained_learners(ds: xr.Dataset) -> list[str]:
    """The untrained controls: the learners that are not trained by the study's settings, whatever their names are."""
    trained = trained_learners(ds)
    return [name for name in learner_names(ds) if name not in trained]


def learner_style(ds: xr.Dataset, name: str) -> MethodStyle:
    """The style of one learner: that of its name if it is trained, grey if it is an untrained control."""
    return CONTROL_STYLE if name in untrained_learners(ds) else method_style(name)


def plot_finite(ax: Axes, x: np.ndarray, y: np.ndarray, **look: Any) -> None:
    """Draw the points whose y is finite; a line connects neighbours straight across the points that are left out.

    look: the properties of the line and its markers, as ``Axes.plot`` takes them.
    """
    finite = np.isfinite(y)
    ax.plot(x[finite], y[finite], **look)


def curve(ax: Axes, x: np.ndarray, summary: Summary, *, style: MethodStyle, name: str, filled: bool = True) -> None:
    """Draw the mean as a thick line with the band behind it; with two to four seeds, add a thin line for each seed.

    name: goes into the gids. filled: whether the markers are filled with the colour, or white inside.
    """
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


def horizontal_line(ax: Axes, summary: Summary, *, style: MethodStyle, name: str) -> None:
    """Draw the summary of a number that does not depend on x: a horizontal line at its mean, with its band."""
    mean, low, high = (float(value) for value in (summary.mean, summary.low, summary.high))
    if not np.isfinite(mean):
        return
    if np.isfinite(low):
        ax.axhspan(low, high, color=style.color, alpha=BAND_ALPHA, linewidth=0, gid=f"band:{name}")
    ax.axhline(mean, color=style.color, linestyle=style.linestyle, gid=f"mean:{name}", zorder=2.5)


def error_bars(ax: Axes, x: np.ndarray, y: np.ndarray, error: np.ndarray, *, color: str, name: str) -> None:
    """Draw bars from y - error to y + error, behind the markers, wherever both y and the error are finite."""
    finite = np.isfinite(y) & np.isfinite(error)
    if not finite.any():
        return
    look: dict[str, Any] = {"fmt": "none", "elinewidth": 0.8, "capsize": 1.5, "zorder": 2.8}
    _line, _caps, bars = ax.errorbar(np.asarray(x, float)[finite], y[finite], yerr=error[finite], ecolor=color, **look)
    for lines in bars:
        lines.set_gid(f"error:{name}")


def over_training(ds: xr.Dataset, ax: Axes, summary: Summary, *, num_diverged: xr.DataArray) -> None:
    """Draw a summary with dimensions learner and checkpoint against the meta-iteration, one line per learner.

    An untrained control has values at one checkpoint and is drawn as a horizontal line.

    num_diverged: [learner, checkpoint] the number of units that diverged and are therefore missing from a mean; a unit
        is one task of one seed. A mean that lacks units gets a cross. Where every unit diverged, there is no mean, and
        the cross stands at the top edge of the panel.
    """
    x = ds["checkpoint"].values.astype(float)
    for position, name in enumerate(learner_names(ds)):
        part, style = summary.at(learner=position), learner_style(ds, name)
        has_mean = np.isfinite(part.mean.values)
        if name in untrained_learners(ds):
            only_one = int(np.argmax(has_mean))  # the position of the control's checkpoint
            horizontal_line(ax, part.at(checkpoint=only_one), style=style, name=name)
        else:
            curve(ax, x, part, style=style, name=name)
        lacks_units = num_diverged.isel(learner=position).values > 0
        with_mean, without_mean = lacks_units & has_mean, lacks_units & ~has_mean
        cross: dict[str, Any] = {"marker": "x", "linestyle": "none", "markersize": 6.5, "markeredgewidth": 1.1}
        cross |= {"color": style.color, "zorder": 5}
        if with_mean.any():
            ax.plot(x[with_mean], part.mean.values[with_mean], gid=f"diverged:{name}", **cross)
        if without_mean.any():
            # With this transform, y is a fraction of the axis: 0.97 keeps the whole cross inside the panel.
            at_top: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "gid": f"all diverged:{name}"}
            ax.plot(x[without_mean], np.full(without_mean.sum(), 0.97), **at_top, **cross)
    training_axis(ax, ds["checkpoint"].values)


def over_training_by_step(
    ds: xr.Dataset, axes: Sequence[Axes], summary: Summary, *, num_diverged: xr.DataArray, last: int
) -> None:
    """Draw a summary that also has the dimension inner_step, with a panel for each point of the inner loop.

    last: the number of the last point of the study's inner loop, at which the network is adapted.
    """
    for position, (step, ax) in enumerate(zip(ds["inner_step"].values, axes, strict=True)):
        over_training(ds, ax, summary.at(inner_step=position), num_diverged=num_diverged)
        adapted = f"adapted (after {step} step{'s' * int(step != 1)})"
        ax.set_title(adapted if 0 < step == last else f"step {step}")


def alike_at_start(ds: xr.Dataset, means: xr.DataArray, names: Sequence[str]) -> list[list[str]]:
    """Group the named learners by their untrained networks: those of the learners in one group have equal values.

    means: a quantity of the study [learner, checkpoint, ...]. Learners with the same inner loop start from the same
    network and have equal values; those with another inner loop or another step size do not. A learner that begins from
    another learner's checkpoint is not in any group, nor is one without values at checkpoint 0.
    """
    groups: list[list[str]] = []
    if int(ds["checkpoint"][0]) != 0:
        return groups
    start = means.isel(checkpoint=0)
    for name in names:
        values = start.sel(learner=name).values
        if untrained_start(ds, name) != name or not np.isfinite(values).any():
            continue
        # The values of equal networks may differ by the rounding of float32. A relative difference of 1e-4 is larger,
        # and yet too small to be seen in a figure.
        close = partial(np.allclose, values, rtol=1e-4, atol=1e-9, equal_nan=True)
        alike = next((group for group in groups if close(start.sel(learner=group[0]).values)), None)
        if alike is None:
            groups.append([name])
        else:
            alike.append(name)
    return groups


def untrained_levels(ds: xr.Dataset, ax: Axes, summary: Summary) -> list[Line2D]:
    """Draw a dotted horizontal line at the mean of each untrained network from which the trained learners start.

    There is a line for each group of ``alike_at_start``, because the mean of an untrained network depends on the inner
    loop by which it adapts. A group with the same mean as an untrained control gets no line, because ``over_training``
    draws the control's line there. If there is a single group and no untrained control, the line is grey. Otherwise
    each line has the colour of the group's first learner. The lines are returned as legend entries.
    """
    # Learners that are trained on shuffled labels, or without episodes (supervised), are controls as well. They get no
    # line.
    names = [name for name in trained_learners(ds) if not is_control(ds, name)]
    groups = alike_at_start(ds, summary.mean, names)
    start = summary.mean.isel(checkpoint=0)
    control_means = [float(value) for value in start.sel(learner=untrained_learners(ds)).values]
    lines = []
    for group in groups:
        level = float(start.sel(learner=group[0]))
        if any(np.isclose(level, control_mean, rtol=1e-4, atol=1e-9) for control_mean in control_means):
            continue
        color, label = _untrained_look(group, is_only=len(groups) == 1 and not control_means)
        look: dict[str, Any] = {"color": color, "linestyle": CONTROL_STYLE.linestyle, "linewidth": 1.2}
        lines.append(ax.axhline(level, label=label, gid=f"untrained:{group[0]}", zorder=2.5, **look))
    return lines


def _untrained_look(group: Sequence[str], *, is_only: bool) -> tuple[str, str]:
    """The colour and the legend text of the untrained network from which the learners of a group start.

    The only untrained network is grey; of several, each has the colour of its first learner.
    """
    if is_only:
        return CONTROL_STYLE.color, "untrained"
    return method_style(group[0]).color, f"untrained, adapted as {method_label(group[0])}"


def against(ds: xr.Dataset, ax: Axes, x: np.ndarray, summary: Summary) -> list[Line2D]:
    """Draw a quantity against ``x``: each trained learner at the last checkpoint, and the untrained networks dotted.

    summary: that of the quantity, with the dimensions learner and checkpoint, and a third one along which ``x`` runs.
        Its first checkpoint is the study's. If this is not 0, no untrained network is drawn.

    Networks that adapt by different inner loops have a dotted line each, which is returned as a legend entry.
    """
    names = learner_names(ds)
    # Learners that are trained on shuffled labels, or without episodes, have the same untrained networks as the other
    # learners. So they are left out here, unless the study has no other learners.
    compared = [name for name in names if not is_control(ds, name)] or names
    groups = alike_at_start(ds, summary.mean.transpose("learner", "checkpoint", ...), compared)
    entries = []
    for group in groups:
        color, label = _untrained_look(group, is_only=len(groups) == 1)
        style = MethodStyle(color, "o", CONTROL_STYLE.linestyle)
        start = summary.at(learner=names.index(group[0]), checkpoint=0)
        curve(ax, x, start, style=style, name=f"first:{group[0]}", filled=False)
        look: dict[str, Any] = {"color": color, "linestyle": style.linestyle, "marker": style.marker}
        entries.append(Line2D([], [], label=label, markerfacecolor="white", **look))
    for position, name in enumerate(names):
        if name in trained_learners(ds):
            curve(ax, x, summary.at(learner=position, checkpoint=-1), style=method_style(name), name=f"last:{name}")
    return entries


# ---- along the inner loop: the first and the last checkpoint of each learner


class QuantityLook(NamedTuple):
    """The marker, line style and legend text of a quantity that shares its panel with other quantities."""

    marker: str
    linestyle: LineStyle
    label: str


@dataclass(frozen=True)
class LearnerState:
    """The state of one learner at the first or the last checkpoint at which it was measured.

    The first state is drawn in grey with open markers, the last one in the method's colour with filled markers.
    ``learner`` and ``checkpoint`` are positions along these two axes of the study's Dataset.
    """

    learner: int
    checkpoint: int
    name: str
    is_first: bool

    @property
    def label(self) -> str:
        """The last part of the gids of this state's artists, such as ``last:maml``."""
        return f"{'first' if self.is_first else 'last'}:{self.name}"

    @property
    def color(self) -> str:
        """The colour of this state: grey for the first one, the method's colour for the last one."""
        return GREY if self.is_first else method_style(self.name).color

    @property
    def position(self) -> dict[str, int]:
        """The position of this state in the study's Dataset, as ``isel`` takes it."""
        return {"learner": self.learner, "checkpoint": self.checkpoint}

    @property
    def shift(self) -> float:
        """The distance, in inner steps, by which the state's markers are moved along x.

        The markers of the first and of the last state then do not overlap.
        """
        return -0.12 if self.is_first else 0.12


def first_and_last_states(ds: xr.Dataset, values: xr.DataArray, name: str) -> list[LearnerState]:
    """The states of a learner at the first and the last checkpoint at which ``values`` has a value of the learner.

    If these are the same checkpoint, there is one state, which counts as the first. If the learner has no value at all,
    there is none.
    """
    learner = learner_names(ds).index(name)
    present = values.isel(learner=learner).notnull()
    checkpoints = np.flatnonzero(present.any([dim for dim in present.dims if dim != "checkpoint"]).values)
    # As the keys of a dict, the checkpoints keep their order, and a repeated one is dropped.
    ends = dict.fromkeys(int(checkpoints[end]) for end in (0, -1)) if checkpoints.size else {}
    return [LearnerState(learner, checkpoint, name, is_first=place == 0) for place, checkpoint in enumerate(ends)]


def panel_learners(ds: xr.Dataset) -> list[str]:
    """The learners that have a panel of their own.

    They are the trained learners: an untrained control would repeat the first state that each of their panels shows. In
    a study without a trained learner, they are all learners.
    """
    return trained_learners(ds) or learner_names(ds)


def draw_states(
    ds: xr.Dataset, axes: list[Axes], values: xr.DataArray, draw: Callable[[Axes, LearnerState], object]
) -> None:
    """Draw the states of every learner into the learner's panel with the function ``draw``.

    values: a quantity of the whole study. A learner was measured at the checkpoints at which it has values.
    """
    for name, ax in zip(panel_learners(ds), axes, strict=True):
        for state in first_and_last_states(ds, values, name):
            draw(ax, state)
        ax.set_title(method_label(name), color=learner_style(ds, name).color)


class TitledState(NamedTuple):
    """The state that a heat map shows, with the map's title and the colour of the title.

    position: the position of the state along learner and checkpoint, as ``isel`` takes it.
    """

    title: str
    color: str
    position: dict[str, int]


def states_by_start(ds: xr.Dataset, means: xr.DataArray, names: Sequence[str]) -> list[TitledState]:
    """The states that a figure of heat maps shows, in their order.

    Each untrained network is followed by the last states of the named learners that start from it. The last states of
    learners that are in no group of ``alike_at_start`` come at the end. A learner without values is left out.

    means: the quantity of the maps [learner, checkpoint, ...], without seeds. The positions of the states are those in
        ``means``, which may have fewer learners than the study.
    """
    shown = means.to_dataset(name="means")
    last = {name: states[-1] for name in names if (states := first_and_last_states(shown, means, name))}
    names = list(last)
    groups = alike_at_start(ds, means, names)
    ungrouped = [[name] for name in names if not any(name in group for group in groups)]
    maps = []
    for group in [*groups, *ungrouped]:
        if group in groups:
            title = "untrained" if len(groups) == 1 else f"untrained ({method_label(group[0])})"
            maps.append(TitledState(title, "black", {**last[group[0]].position, "checkpoint": 0}))
        maps += [TitledState(method_label(name), learner_style(ds, name).color, last[name].position) for name in group]
    return maps


def where_shown(means: xr.DataArray, maps: Sequence[TitledState]) -> xr.DataArray:
    """The means at the states that the maps show, and NaN at all other states."""
    return means.where(_mask(means, [state.position for state in maps]))


def state_mask(ds: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """True [learner, checkpoint] at the states that ``draw_states`` draws of the quantity ``values``."""
    states = [state for name in panel_learners(ds) for state in first_and_last_states(ds, values, name)]
    return _mask(values, [state.position for state in states])


def _mask(values: xr.DataArray, positions: Sequence[dict[str, int]]) -> xr.DataArray:
    """True [learner, checkpoint] at the given positions along these axes of ``values``."""
    axes = {dim: values[dim] for dim in ("learner", "checkpoint")}
    mask = xr.DataArray(np.zeros([len(axis) for axis in axes.values()], dtype=bool), axes)
    for position in positions:
        mask[position] = True
    return mask


def along_steps(
    ax: Axes,
    state: LearnerState,
    summary: Summary,
    *,
    name: str,
    look: QuantityLook,
    error: xr.DataArray | None = None,
) -> None:
    """Draw a quantity along the inner loop of one state.

    summary: that of the quantity in the whole study. Its number of seeds decides whether bands are intervals or ranges,
        so that all panels have the same kind.
    name: the quantity's name in the gids, which the state's label follows.
    error: the errors of the quantity's means in the whole study, which are drawn as bars.
    """
    summary = summary.at(**state.position)
    x = summary.mean["inner_step"].values + state.shift
    style = MethodStyle(state.color, look.marker, ":" if state.is_first else look.linestyle)
    name = f"{name}:{state.label}"
    curve(ax, x, summary, style=style, name=name, filled=not state.is_first)
    if error is not None:
        mean_error = error.isel(state.position).values
        error_bars(ax, x, summary.mean.values, mean_error, color=state.color, name=name)
    step_axis(ax, summary.mean["inner_step"].values)
