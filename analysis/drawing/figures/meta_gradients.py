"""How far the full meta-gradient agrees with the first-order one, over meta-training."""

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.summary import diverged_units, measured, summarise
from analysis.schema import learner_names


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "meta_gradient_cosine", "meta_gradient_ratio")


def draw(ds: xr.Dataset) -> Figure:
    """Draw two panels over meta-training: the cosine between the two meta-gradients, and the ratio of their norms."""
    ds = selection.for_lines(ds)
    num_diverged, num_tried = diverged_units(ds)
    cosine, ratio = (summarise(measured(ds, f"meta_gradient_{name}")) for name in ("cosine", "ratio"))
    with panels.grid(2, xlabel="meta-iteration", share_y=False) as (figure, (left, right)):
        starts = []
        for ax, summary in ((left, cosine), (right, ratio)):
            curves.over_training(ds, ax, summary, num_diverged=num_diverged)
            starts += curves.untrained_levels(ds, ax, summary)
            equal = references.equal(ax)
        left.set_title("direction (1: equal)")
        left.set_ylabel("cosine, full and first-order")
        right.set_title("length (1: equal)")
        right.set_ylabel("norm, full / first-order")
        notes = [equal, *legend.notes(cosine.per_seed, num_diverged, num_tried)]
        panels.outside_legends(figure, legend.training_entries(ds, starts), notes)
    return figure


def caption(ds: xr.Dataset) -> str:
    """Return the caption, which also says what the means and bands are."""
    shown = selection.for_lines(ds)
    return legend.caption_of(
        shown,
        measured(shown, "meta_gradient_cosine"),
        "The full meta-gradient of the query loss, which contains the Hessians of the inner loop, compared with the "
        "first-order one, which leaves them out: the cosine between them, and the norm of the full one divided by that "
        "of the first-order one. If the Hessians did not matter, both would be 1.",
        "Dotted lines are untrained networks.",
        selection.shown_sentence(ds, learner_names(shown)),
    )
