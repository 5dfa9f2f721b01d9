"""Curvature along the inner loop against accuracy on held-out tasks, over checkpoints and learners.

The curvature is alpha |Hg| / |g|, where alpha is the inner learning rate, g the gradient of the support loss and H its
Hessian.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice
from analysis.drawing.style import method_label
from analysis.drawing.summary import Summary, diverged_units, mean_over, measured, seeds_with_values, summarise
from analysis.evaluation import evaluation_scores, has_accuracy, score_name
from analysis.schema import learner_names, only_with_alpha


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "alpha_hg_ratio", "evaluation_loss")


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default."""
    ds = only_with_alpha(ds)
    return learner_names(selection.for_panels(ds))


def numbers(ds: xr.Dataset, choice: Choice) -> dict[str, Summary]:
    """Of each learner at each checkpoint: alpha |Hg| / |g| at step 0 and at later steps, and the accuracy or loss."""
    ds = choice.part(ds)
    values = measured(ds, "alpha_hg_ratio")
    return {
        "alpha |Hg| / |g|, step 0": summarise(values.isel(inner_step=0)),
        "alpha |Hg| / |g|, later steps (mean)": summarise(
            mean_over(values.isel(inner_step=slice(1, None)), "inner_step")
        ),
        score_name(ds): summarise(evaluation_scores(ds)),
    }


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw two panels, for step 0 and for the mean of the later steps, with a path over the checkpoints per learner.

    If a study has too many learners for that, paths are drawn only for those that ``selection.for_lines`` chooses, such
    as the controls and the first learner with its variants. The other learners have only their first checkpoint,
    at which most of them are untrained, and their last one.
    """
    *curvatures, scores = numbers(ds, choice).values()
    ds = choice.part(ds)
    chosen, with_paths = learner_names(selection.for_lines(ds)), set()
    titles = ("step 0", "later steps (mean)")
    with panels.grid(2, xlabel="", width=choice.width) as (figure, axes):
        for ax, title, curvature in zip(axes, titles, curvatures, strict=True):
            for name in learner_names(ds):
                if _path(ds, ax, curvature, scores, name, as_path=name in chosen):
                    with_paths.add(name)
            # The values of the single seeds reach at least as far as their means, so the axis is made to fit them.
            each_seed = curvature.per_seed.values
            if np.isfinite(each_seed).any():
                references.symlog_axis(ax.xaxis, float(np.nanmin(each_seed)), float(np.nanmax(each_seed)))
            ax.set_title(title)
            ax.set_xlabel(r"$\alpha\,|Hg|\,/\,|g|$")
        panels.left_labels(axes, score_name(ds))
        # ``references.chance`` draws its line in a panel and returns it for the legend, which needs only one of them.
        chance_lines = [line for ax in axes for line in references.chance(ds, ax)] if has_accuracy(ds) else []
        look: dict[str, Any] = {"color": "black", "linestyle": "none", "marker": "o"}
        ends = [
            legend.entry("first checkpoint", markerfacecolor="white", **look),
            legend.entry("last checkpoint", **look),
            legend.entry("last checkpoint, each seed", **look | {"markersize": 1.8, "alpha": 0.6}),
        ]
        # This figure has no crosses at its means, so the legend entry on the diverged units has no cross either.
        notes = legend.diverged_notes(*diverged_units(ds), has_crosses=False)
        entries = [*ends, *chance_lines[:1], *notes]
        panels.outside_legends(figure, legend.learner_entries(ds, with_lines=with_paths), entries)
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also says over what the means are."""
    drawn = choice.part(ds)
    what = "accuracy" if has_accuracy(ds) else "loss"
    paths = learner_names(selection.for_lines(drawn))
    only_ends = len(paths) < drawn.sizes["learner"]
    sentences = (
        f"Query {what} after the inner loop against alpha |Hg| / |g|, at step 0 and averaged over the later points of "
        "the inner loop, as paths over the checkpoints of meta-training from the first (open marker) to the last one "
        "(filled).",
        f"The means are over tasks and {seeds_with_values(evaluation_scores(drawn))} seeds; small dots are single "
        "seeds at the last checkpoint.",
        f"The {what} is that of other held-out tasks than those on which the curvature is measured.",
        "A path says how both change together over training and not that one causes the other.",
        f"Paths are drawn for {', '.join(map(method_label, paths))}; the other learners have only their first "
        "and their last checkpoint."
        if only_ends
        else "",
        legend.no_alpha_sentence(ds),
        selection.shown_sentence(only_with_alpha(ds), choice.learners),
    )
    return " ".join(sentence for sentence in sentences if sentence)


def _path(ds: xr.Dataset, ax: Axes, curvature: Summary, scores: Summary, name: str, *, as_path: bool) -> bool:
    """Draw the path of a learner over the checkpoints or, unless ``as_path``, only its first and its last one.

    Returns True if there is a path: not for a learner with one checkpoint, such as an untrained control.
    """
    style = curves.learner_style(ds, name)
    x, y = curvature.mean.sel(learner=name).values, scores.mean.sel(learner=name).values
    places = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if not places.size:
        return False
    as_path = as_path and len(places) > 1
    if len(places) > 1:
        if as_path:
            line: dict[str, Any] = {"linestyle": style.linestyle, "linewidth": 0.9, "marker": ".", "markersize": 2}
            ax.plot(x[places], y[places], color=style.color, gid=f"path:{name}", **line)
        first = places[:1]
        # The filled marker of an untrained control stands at the same place, so the open marker is drawn above it.
        front: dict[str, Any] = {"markerfacecolor": "white", "zorder": 5, "gid": f"first:{name}"}
        ax.plot(x[first], y[first], color=style.color, marker=style.marker, **front)
    last = places[-1]
    points = [part.per_seed.sel(learner=name).isel(checkpoint=last).values for part in (curvature, scores)]
    dots: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 1.8, "markeredgewidth": 0, "alpha": 0.6}
    ax.plot(*points, color=style.color, gid=f"seeds:{name}", **dots)
    ax.plot(x[last], y[last], color=style.color, marker=style.marker, markersize=4.5, gid=f"last:{name}", zorder=4)
    return as_path
