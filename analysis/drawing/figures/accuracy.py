"""Figure 4: query accuracy (for regression, query loss) after adaptation on held-out tasks, over meta-training."""

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references
from analysis.drawing.summary import lost_evaluations, summarise
from analysis.evaluation import evaluation_scores, has_accuracy


def draw(ds: xr.Dataset) -> Figure:
    """Draw one panel, as wide as a column, with lines for the untrained network and for the accuracy of guessing."""
    num_diverged, num_tried = lost_evaluations(ds)
    summary = summarise(evaluation_scores(ds))
    with panels.grid(1, xlabel="meta-iteration") as (figure, (ax,)):
        curves.over_training(ds, ax, summary, num_diverged=num_diverged)
        start = curves.common_start(ds, ax, summary)
        ax.set_ylabel("query accuracy" if has_accuracy(ds) else "query loss")
        chance = references.chance(ds, ax) if has_accuracy(ds) else []
        notes = legend.notes(summary.num_seeds, num_diverged, num_tried, what="evaluations")
        panels.outside_legends(figure, [*start, *legend.learner_entries(ds)], [*chance, *notes])
    return figure


def caption(ds: xr.Dataset) -> str:
    """Return the caption, which also says what the means and bands are and how many evaluations diverged."""
    num_diverged, num_tried = lost_evaluations(ds)
    total = int(num_diverged.sum())
    return legend.caption_of(
        ds,
        evaluation_scores(ds),
        f"Query {'accuracy' if has_accuracy(ds) else 'loss'} after the inner loop on held-out tasks, against the "
        "meta-iteration.",
        "The dotted line is the untrained network.",
        diverged=f"{total} of {num_tried} evaluations diverged and are not in the means (crosses)." if total else "",
    )
