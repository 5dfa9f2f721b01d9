"""Query accuracy (for regression, query loss) after adaptation on held-out tasks, over meta-training.

It is the right half of figure 3 of Lee, Yoo, Kwak (2023).
"""

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.style import method_label
from analysis.drawing.summary import lost_evaluations, summarise
from analysis.evaluation import evaluation_scores, has_accuracy
from analysis.schema import learner_names


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "evaluation_loss")


def draw(ds: xr.Dataset) -> Figure:
    """Draw one panel, with lines for the untrained networks and for the accuracy of guessing.

    In a study of many learners, each family has a panel of its own.
    """
    num_diverged, num_tried = lost_evaluations(ds)
    scores = evaluation_scores(ds)
    parts = selection.families(ds)
    drawn = _drawn(ds)
    with panels.grid(len(parts), xlabel="meta-iteration") as (figure, axes):
        starts = []
        for part, ax in zip(parts, axes, strict=True):
            names = learner_names(part)
            summary = summarise(scores).select(names)
            curves.over_training(part, ax, summary, num_diverged=num_diverged.sel(learner=names))
            starts += curves.untrained_levels(part, ax, summary)
            chance = references.chance(ds, ax) if has_accuracy(ds) else []
            if len(parts) > 1:
                own = [name for name in names if not selection.is_control(ds, name)]
                ax.set_title(method_label(own[0]) if own else "controls")
        panels.left_labels(axes, "query accuracy" if has_accuracy(ds) else "query loss")
        notes = legend.notes(scores, num_diverged, num_tried, what="evaluations")
        panels.outside_legends(figure, legend.training_entries(drawn, starts), [*chance, *notes])
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
        "Dotted lines are untrained networks.",
        selection.shown_sentence(ds, learner_names(_drawn(ds))),
        diverged=f"{total} of {num_tried} evaluations diverged and are not in the means (crosses)." if total else "",
    )


def _drawn(ds: xr.Dataset) -> xr.Dataset:
    return ds.sel(learner=[name for part in selection.families(ds) for name in learner_names(part)])
