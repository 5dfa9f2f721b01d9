"""Figure 4: how well the adapted learner does on held-out tasks, over meta-training."""

import xarray as xr
from matplotlib.figure import Figure

from analysis import style
from analysis.figures import words
from analysis.figures.grid import panels
from analysis.plots.legend import band_handle, chance_handle, lost_handles, method_handles, outside_legends
from analysis.plots.over_training import over_training, untrained_summary
from analysis.plots.references import chance_line, untrained_line
from analysis.plots.summary import lost_evaluations, summarise
from analysis.schema import learner_names

NAME = "accuracy"


def shown(ds: xr.Dataset) -> str:
    """Accuracy; for regression, which has none, the query loss."""
    return "evaluation_accuracy" if bool(ds["evaluation_accuracy"].notnull().any()) else "evaluation_loss"


def draw(ds: xr.Dataset) -> Figure:
    """One panel in a single column, with the untrained network and chance."""
    name = shown(ds)
    missing, tried = lost_evaluations(ds, name)
    summary = summarise(ds[name])
    with style.context(width="single"):
        figure, (ax,) = panels(1, xlabel="meta-iteration", row_height=2.1)
        over_training(ds, ax, summary=summary, incomplete=missing)
        untrained_line(ax, untrained_summary(ds, summary))
        ax.set_ylabel("query accuracy" if name == "evaluation_accuracy" else "query loss")
        notes = [band_handle(summary.num_seeds), *lost_handles(int(missing.sum()), tried)]
        if name == "evaluation_accuracy" and "ways" in ds.attrs:
            chance_line(ds, ax)
            notes.insert(0, chance_handle(float(ds.attrs["ways"])))
        outside_legends(figure, method_handles(learner_names(ds)), notes)
    return figure


def caption(ds: xr.Dataset) -> str:
    """What is drawn, over how many seeds and tasks, and what the bands are."""
    name = shown(ds)
    lost, tried = lost_evaluations(ds, name)
    what = "Query accuracy" if name == "evaluation_accuracy" else "Query loss"
    count = int(lost.sum())
    gone = f" {count} of {tried} evaluations diverged and are not in the means (crosses)." if count else ""
    return (
        f"{what} after the inner loop on held-out tasks, against the meta-iteration; dotted: the untrained network. "
        f"{words.sample(ds[name])} {words.band(ds[name])}{gone}"
    )
