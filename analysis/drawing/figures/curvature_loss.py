"""Curvature along the inner loop against the support loss, before and after meta-training."""

from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice
from analysis.drawing.summary import Summary, diverged_units, mean_over, measured, summarise
from analysis.schema import only_with_alpha, trained_learners

NUM_BINS = 8
"""The number of intervals of the loss over which the points of a panel are averaged."""
MOST_OUTSIDE = 0.02
"""The share of a panel's points beyond the first interval, and beyond the last one: outliers would widen all others."""
LEAST_SHARE = 0.7
"""The share of a learner's seeds that must have a point in an interval for its mean to be drawn."""

# The variable and the label of each row of panels, and the title and the inner steps of each column.
QUANTITIES = {"alpha_rho": r"$\alpha\rho$", "alpha_hg_ratio": r"$\alpha\,|Hg|\,/\,|g|$"}
GROUPS = {"step 0": slice(0, 1), "later steps": slice(1, None)}


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    if int(ds["checkpoint"][0]) != 0 or not trained_learners(ds):
        return "no learner has an untrained start with which it could be compared"
    return selection.lacks(ds, *QUANTITIES, "support_loss")


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default: trained ones, whose untrained networks are drawn as well."""
    return trained_learners(selection.for_lines(only_with_alpha(ds)))


def numbers(ds: xr.Dataset, choice: Choice) -> dict[str, Summary]:
    """Both quantities of each learner at the first and the last checkpoint, by the support loss."""
    ends = choice.part(ds).isel(checkpoint=[0, -1])
    return {
        f"{name.replace('_', ' ').replace('hg ratio', '|Hg| / |g|')}, {group}": _by_loss(ends, name, steps)
        for name in QUANTITIES
        for group, steps in GROUPS.items()
    }


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw a row of panels for each quantity, and a column for step 0 and for the later steps.

    A line is the mean over the points (one inner step of one task) whose support losses lie in the same interval, at
    the last checkpoint. Dotted lines are the untrained networks.
    """
    summaries = list(numbers(ds, choice).values())
    ds = choice.part(ds)
    options: dict[str, Any] = {"columns": len(GROUPS), "share_y": False, "row_height": 1.9, "width": choice.width}
    with panels.grid(len(summaries), xlabel="support loss", **options) as (figure, axes):
        untrained_lines: list[Line2D] = []
        for position, (ax, summary) in enumerate(zip(axes, summaries, strict=True)):
            losses = summary.mean["support_loss"].values
            untrained_lines += curves.against(ds, ax, losses, summary)
            # The band of an interval with few seeds may be many times as wide as all that is drawn. So the axis ends at
            # the values of the single seeds, where such a band is cut off.
            references.symlog_axis(ax.yaxis, float(summary.per_seed.min()), float(summary.per_seed.max()))
            # The linear part ends at a power of ten below all losses, so that only the logarithmic part is in sight.
            references.symlog_axis(ax.xaxis, losses[0], losses[-1], linear=10.0 ** np.floor(np.log10(losses[0])))
            if position < len(GROUPS):
                ax.set_title(list(GROUPS)[position])
            if position % len(GROUPS) == 0:
                ax.set_ylabel(list(QUANTITIES.values())[position // len(GROUPS)])
        entries = legend.training_entries(ds, untrained_lines)
        notes = legend.notes(measured(ds, "alpha_rho"), *diverged_units(ds), has_crosses=False)
        panels.outside_legends(figure, entries, notes)
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also says what a point of a line is."""
    drawn = choice.part(ds)
    return legend.caption_of(
        drawn,
        measured(drawn, "alpha_rho"),
        "Alpha rho and alpha |Hg| / |g| against the support loss at the same inner step of the same task, at "
        f"meta-iteration {int(ds['checkpoint'][-1])} and for the untrained networks (dotted, open markers).",
        "Curvature falls together with the loss, so curvatures compare fairly only where the losses are equal: at the "
        "same place along x, a line below the dotted one shows a lower curvature at equal support loss. Where only one "
        "of the two lines is drawn, their losses hardly overlap, and the figure says nothing.",
        f"The losses of a panel, without the smallest and the largest {MOST_OUTSIDE:.0%}, are cut into {NUM_BINS} "
        "intervals of equal width on the logarithmic axis, which are wider than the caliper of the claims at equal "
        "support loss. "
        "A marker stands in the middle of an interval, at the mean over the inner steps and tasks whose loss lies in "
        f"it, where at least {LEAST_SHARE:.0%} of the learner's seeds have any.",
        "Both axes are logarithmic; along y, the part within ±0.1 is linear. Bands are cut off at the range of the "
        "single seeds.",
        legend.no_alpha_sentence(ds),
        selection.shown_sentence(only_with_alpha(ds), choice.learners),
    )


def _by_loss(ds: xr.Dataset, name: str, steps: slice) -> Summary:
    """The means of a quantity over points with similar support losses [learner, seed, checkpoint, support_loss].

    A point is one inner step of one task. The coordinate ``support_loss`` holds the middles of the intervals.
    """
    values, loss = (measured(ds, part).isel(inner_step=steps) for part in (name, "support_loss"))
    loss = loss.where(values.notnull() & (loss > 0))  # a loss of 0 has no place on the logarithmic axis
    known = loss.values[np.isfinite(loss.values)]
    low, high = np.quantile(known, [MOST_OUTSIDE, 1 - MOST_OUTSIDE]) if known.size else (1.0, 1.0)
    edges = np.geomspace(low, max(high, 1.000001 * low), NUM_BINS + 1)  # equal losses get intervals of a tiny width
    means = [
        mean_over(values.where((loss >= start) & (loss < end)), "task", "inner_step") for start, end in pairwise(edges)
    ]
    middles = np.sqrt(edges[:-1] * edges[1:])
    summary = summarise(xr.concat(means, dim=xr.DataArray(middles, dims="support_loss", name="support_loss")))
    num_seeds = loss.notnull().any(["task", "inner_step"]).sum("seed")
    return summary.where(summary.per_seed.notnull().sum("seed") >= LEAST_SHARE * num_seeds)
