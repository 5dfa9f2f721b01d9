"""Curvature and accuracy against the weight of SHOT and against the weight of the penalty on the curvature.

SHOT is the penalty on the distance between the ends of few large and of many small inner steps (Lee, Yoo, Kwak 2023).
The curvature penalty is on the mean of alpha |Hg| / |g| over the inner steps; alpha is the inner learning rate, g the
gradient of the support loss and H its Hessian. A series has a learner with neither SHOT nor this penalty, whose weight
is 0, and the learners that differ from it only in the weight of one of the two.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice, Numbers
from analysis.drawing.style import CONTROL_STYLE, method_label
from analysis.drawing.summary import MAX_SEEDS_SHOWN, Summary, mean_over, measured, summarise
from analysis.evaluation import evaluation_scores, score_name
from analysis.schema import learner_names, learners_by_weight, plain_learners, setting, untrained_start

WEIGHTS = {"dose": "weight of SHOT", "penalty": "weight of the curvature penalty"}
"""The coordinates of a study's Dataset that hold a weight, and the label of each one's axis."""
MIN_WEIGHTS = 3
"""The smallest number of different weights, 0 among them, that make a series."""

RATIO = "alpha |Hg| / |g|"


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    if not any(_series(ds, weight) for weight in WEIGHTS):
        return f"no learner of the study has {MIN_WEIGHTS} or more weights of SHOT or of the penalty"
    return selection.lacks(ds, "alpha_hg_ratio", "evaluation_loss")


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default: those of a series."""
    in_series = {name for weight in WEIGHTS for series in _series(ds, weight).values() for name in series}
    return [name for name in learner_names(ds) if name in in_series]


def numbers(ds: xr.Dataset, choice: Choice) -> Numbers:
    """The weights of each learner of a series, and the quantities that are drawn, at the last checkpoint.

    Those of the untrained networks belong to the learners without an intervention, which start from them.
    """
    ds = choice.part(ds)
    names = learners(ds)
    starts = _starts(ds)
    weights = {
        label: xr.DataArray([float(setting(ds, weight, name)) for name in names], {"learner": names})
        for weight, label in WEIGHTS.items()
    }
    drawn = {label: summary.select(names) for label, summary in _quantities(ds).items()}
    untrained = {f"{label}, untrained": means.sel(learner=starts) for label, means in _untrained(ds).items()}
    return weights | drawn | (untrained if starts else {})


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw a column for each kind of weight, with curvature at step 0 and at later steps, and accuracy.

    All values are those of the last checkpoint but for the dotted lines, which are the untrained networks.
    """
    ds = choice.part(ds)
    columns = {weight: series for weight in WEIGHTS if (series := _series(ds, weight))}
    rows, untrained = _quantities(ds), _untrained(ds)
    starts = _starts(ds)
    # The columns have axes of their own along x, and each row has one axis along y.
    default = "single" if len(columns) == 1 else "double"
    options: dict[str, Any] = {"columns": len(columns), "default": default, "row_height": 1.5, "share_y": False}
    with panels.grid(len(rows) * len(columns), xlabel="", width=choice.width, **options) as (figure, axes):
        table = np.array(axes, dtype=object).reshape(len(rows), len(columns))
        for (label, summary), row in zip(rows.items(), table, strict=True):
            for (weight, series), ax in zip(columns.items(), row, strict=True):
                for name, learners in series.items():
                    _draw_series(ds, ax, summary, name, learners, weight)
                _weight_axis(ax, [float(w) for learners in series.values() for w in learners.values()])
                # After the axis along x, whose limits a line across the panel would fix before it is logarithmic.
                for name in (each for each in starts if each in series):
                    look = _untrained_look(ds, name)
                    ax.axhline(float(untrained[label].sel(learner=name)), gid=f"untrained:{weight}:{name}", **look)
            levels = untrained[label].sel(learner=starts).values
            _value_axes(list(row), summary, levels, positive=label.startswith(RATIO))
            row[0].set_ylabel(label.replace(f"{RATIO}, ", r"$\alpha\,|Hg|/|g|$" + "\n"))
        for ax, weight in zip(table[-1], columns, strict=True):
            ax.set_xlabel(WEIGHTS[weight])
        names = dict.fromkeys(name for series in columns.values() for name in series)
        dot = legend.entry("each seed", color="black", linestyle="none", marker="o", markersize=1.8)
        # Each series is drawn in the style of its learner without an intervention, so only these have legend entries.
        entries = [entry for entry in legend.learner_entries(ds) if entry.get_label() in set(map(method_label, names))]
        for name in starts:
            words = f"untrained, adapted as {method_label(name)}" if len(names) > 1 else "untrained"
            entries.append(legend.entry(words, **_untrained_look(ds, name)))
        notes = [dot, legend.entry(f"bar: {_bar_words(ds)}", color="black", marker="_", markersize=5)]
        panels.outside_legends(figure, entries, notes)
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also names the learners of each series."""
    ds = choice.part(ds)
    counts = _seeds(ds)
    # The number of seeds stands beside each learner if it differs between learners. If not, the sentence on the bars,
    # which gives it in any case, is enough.
    words = {name: f", {num} seeds" if len(set(counts.values())) > 1 else "" for name, num in counts.items()}
    lists = [
        f"{method_label(name)}: "
        + ", ".join(f"{learner} ({weight:g}{words[learner]})" for learner, weight in learners.items())
        for kind in WEIGHTS
        for name, learners in _series(ds, kind).items()
    ]
    return legend.joined(
        f"The response to the weight of an intervention, at meta-iteration {int(ds['checkpoint'][-1])}: alpha "
        "|Hg| / |g| at step 0 and averaged over later points of the inner loop, and the query "
        f"{score_name(ds).removeprefix('query ')} on other held-out tasks.",
        "Learners of a series differ only in the weight; at 0 there is none. The axis is linear around 0 and "
        "logarithmic beyond; a negative weight rewards what a positive one penalises.",
        "Dotted lines are the untrained networks from which all learners of a series start." if _starts(ds) else "",
        f"Dots are the means of single seeds; markers are their means, with bars that show the {_bar_words(ds)}.",
        f"The learners and their weights: {'; '.join(lists)}.",
    )


def _series(ds: xr.Dataset, weight: str) -> dict[str, dict[str, float]]:
    """For each learner without an intervention, the learners that differ from it only in ``weight``, and their weights.

    Of learners with equal weights, which differ in another setting of the intervention, the first one is taken. A
    series of fewer than ``MIN_WEIGHTS`` different weights is left out.
    """
    series = {base: learners_by_weight(ds, base, weight) for base in plain_learners(ds)}
    return {
        base: {name: key for key, name in learners.items()}
        for base, learners in series.items()
        if len(learners) >= MIN_WEIGHTS
    }


def _starts(ds: xr.Dataset) -> list[str]:
    """The learners without an intervention whose untrained network the study has at checkpoint 0."""
    names = dict.fromkeys(name for weight in WEIGHTS for name in _series(ds, weight))
    return [name for name in names if int(ds["checkpoint"][0]) == 0 and untrained_start(ds, name) == name]


def _untrained(ds: xr.Dataset) -> dict[str, xr.DataArray]:
    """The means of all learners at the first checkpoint, by the name of what is drawn."""
    return {label: summary.mean for label, summary in _quantities(ds, checkpoint=0).items()}


def _untrained_look(ds: xr.Dataset, name: str) -> dict[str, Any]:
    """How the untrained network is drawn from which the learners of a series start.

    name: the learner without an intervention, whose colour the line has.
    """
    return {"color": curves.learner_style(ds, name).color, "linestyle": CONTROL_STYLE.linestyle, "linewidth": 1.2}


def _quantities(ds: xr.Dataset, *, checkpoint: int = -1) -> dict[str, Summary]:
    """What is drawn of all learners at a checkpoint, the last one by default, by name.

    checkpoint: the position of the checkpoint.
    """
    curvature = measured(ds.isel(checkpoint=checkpoint), "alpha_hg_ratio")
    later = mean_over(curvature.isel(inner_step=slice(1, None)), "inner_step")
    scores = evaluation_scores(ds).isel(checkpoint=checkpoint)
    return {
        f"{RATIO}, step 0": summarise(curvature.isel(inner_step=0)),
        f"{RATIO}, later steps": summarise(later),
        score_name(ds): summarise(scores),
    }


def _draw_series(
    ds: xr.Dataset, ax: Axes, summary: Summary, name: str, learners: dict[str, float], weight: str
) -> None:
    """Draw a series: the means of the learners with bars over the seeds, and the mean of each seed as a dot.

    name: the learner without an intervention, whose style the series has. learners: the weight of each learner.
    """
    style = curves.learner_style(ds, name)
    part = summary.select(list(learners))
    x = np.array(list(learners.values()))
    mean, low, high = (values.values for values in (part.mean, part.low, part.high))
    dots: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 1.8, "markeredgewidth": 0, "alpha": 0.5}
    each = part.per_seed.transpose("learner", "seed").values
    ax.plot(np.repeat(x, each.shape[1]), each.ravel(), color=style.color, gid=f"seeds:{weight}:{name}", **dots)
    look: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle, "marker": style.marker}
    curves.plot_finite(ax, x, mean, gid=f"mean:{weight}:{name}", zorder=3, **look)
    known = np.isfinite(low)
    ax.vlines(x[known], low[known], high[known], color=style.color, linewidth=0.9, gid=f"bar:{weight}:{name}")


def _value_axes(row: Sequence[Axes], summary: Summary, levels: np.ndarray, *, positive: bool) -> None:
    """Give the panels of a row one axis along y.

    levels: the values of the untrained networks, which the axis holds too.
    positive: True for a quantity that is never negative and may differ by orders of magnitude between weights. Its axis
        is linear up to 0.1 and logarithmic beyond, and holds all seeds; a bar that reaches below 0 is cut off.
    """
    lows, highs = zip(*(ax.get_ylim() for ax in row), strict=True)
    each_seed = np.concatenate([summary.per_seed.values.ravel(), levels])
    for ax in row:
        if positive and np.isfinite(each_seed).any():
            references.symlog_axis(ax.yaxis, float(np.nanmin(each_seed)), float(np.nanmax(each_seed)))
        else:
            ax.set_ylim(min(lows), max(highs))


def _weight_axis(ax: Axes, weights: list[float]) -> None:
    """Make x linear up to the smallest magnitude of a weight and logarithmic beyond, with ticks at the weights."""
    magnitudes = sorted({abs(weight) for weight in weights if weight})
    ax.set_xscale("symlog", linthresh=magnitudes[0], linscale=0.7)
    references.tick_at(ax.xaxis, sorted(set(weights)))


def _seeds(ds: xr.Dataset) -> dict[str, int]:
    """The number of seeds of each learner of a series, over which its means at the last checkpoint are."""
    per_seed = next(iter(_quantities(ds).values())).per_seed
    return {name: int(per_seed.sel(learner=name).notnull().sum()) for name in learners(ds)}


def _bar_words(ds: xr.Dataset) -> str:
    """What the bars show, and over how many seeds, such as '6-10 seeds' if learners have different numbers of them."""
    num_seeds = next(iter(_quantities(ds).values())).num_seeds
    if num_seeds < 2:
        return "nothing, as there is one seed"
    counts = _seeds(ds).values()
    seeds = "-".join(str(num) for num in dict.fromkeys((min(counts), max(counts))))
    return f"{'95% t interval' if num_seeds > MAX_SEEDS_SHOWN else 'range'} over {seeds} seeds"
