"""Figure 4: how well the adapted learner does on held-out tasks, over meta-training."""

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references
from analysis.drawing.summary import evaluated, has_accuracy, lost_evaluations, summarise


def draw(ds: xr.Dataset) -> Figure:
    """Draw one panel in a single column, with the untrained network and chance."""
    missing, tried = lost_evaluations(ds)
    summary = summarise(evaluated(ds))
    with panels.grid(1, xlabel="meta-iteration") as (figure, (ax,)):
        curves.over_training(ds, ax, summary, incomplete=missing)
        start = curves.common_start(ds, ax, summary)
        ax.set_ylabel("query accuracy" if has_accuracy(ds) else "query loss")
        chance = references.chance(ds, ax) if has_accuracy(ds) else []
        notes = legend.notes(summary.num_seeds, missing, tried, what="evaluations")
        panels.outside_legends(figure, [*start, *legend.learner_entries(ds)], [*chance, *notes])
    return figure


def caption(ds: xr.Dataset) -> str:
    """What is drawn, over how many seeds and tasks, what the bands are, and how many evaluations diverged."""
    lost, tried = lost_evaluations(ds)
    count = int(lost.sum())
    return legend.caption_of(
        ds,
        evaluated(ds),
        f"Query {'accuracy' if has_accuracy(ds) else 'loss'} after the inner loop on held-out tasks, against the "
        "meta-iteration.",
        "The dotted line is the untrained network.",
        diverged=f"{count} of {tried} evaluations diverged and are not in the means (crosses)." if count else "",
    )
