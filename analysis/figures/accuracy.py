"""Figure 4: how well the adapted learner does on held-out tasks, over meta-training."""

import xarray as xr
from matplotlib.figure import Figure

from analysis import style
from analysis.figures import words
from analysis.figures.grid import panels
from analysis.plots.legend import (
    band_handle,
    chance_handle,
    learner_handles,
    lost_handles,
    outside_legends,
    untrained_handle,
)
from analysis.plots.over_training import over_training, shared_start
from analysis.plots.references import chance_line, untrained_line
from analysis.plots.summary import evaluated, has_accuracy, lost_evaluations, summarise

NAME = "accuracy"


def draw(ds: xr.Dataset) -> Figure:
    """One panel in a single column, with the untrained network and chance."""
    accuracy = has_accuracy(ds)
    missing, tried = lost_evaluations(ds)
    summary = summarise(evaluated(ds))
    with style.context(width="single"):
        figure, (ax,) = panels(1, xlabel="meta-iteration", row_height=2.1)
        over_training(ds, ax, summary=summary, incomplete=missing)
        start = [untrained_handle()] if untrained_line(ax, shared_start(ds, summary)) else []
        ax.set_ylabel("query accuracy" if accuracy else "query loss")
        notes = [band_handle(summary.num_seeds), *lost_handles(int(missing.sum()), tried)]
        if accuracy and "ways" in ds.attrs:
            chance_line(ds, ax)
            notes.insert(0, chance_handle(float(ds.attrs["ways"])))
        outside_legends(figure, [*start, *learner_handles(ds)], notes)
    return figure


def caption(ds: xr.Dataset) -> str:
    """What is drawn, over how many seeds and tasks, and what the bands are."""
    values = evaluated(ds)
    lost, tried = lost_evaluations(ds)
    what = "Query accuracy" if has_accuracy(ds) else "Query loss"
    count = int(lost.sum())
    gone = f" {count} of {tried} evaluations diverged and are not in the means (crosses)." if count else ""
    return (
        f"{what} after the inner loop on held-out tasks, against the meta-iteration; dotted: the untrained network. "
        f"{words.sample(values)} {words.band(values)}{gone}{words.begun(ds)}"
    )
