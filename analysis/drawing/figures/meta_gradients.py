"""How far the full meta-gradient agrees with the first-order one, over meta-training."""

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice
from analysis.drawing.summary import Summary, diverged_units, measured, summarise
from analysis.schema import learner_names


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "meta_gradient_cosine", "meta_gradient_ratio")


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default: all of a small study, or as many as share a panel legibly."""
    return learner_names(selection.for_lines(ds))


def numbers(ds: xr.Dataset, choice: Choice) -> dict[str, Summary]:
    """The cosine between both meta-gradients and the ratio of their norms, of each learner at each checkpoint."""
    ds = choice.part(ds)
    names = {"meta_gradient_cosine": "cosine", "meta_gradient_ratio": "norm, full / first-order"}
    return {label: summarise(measured(ds, name)) for name, label in names.items()}


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw two panels over meta-training: the cosine between the two meta-gradients, and the ratio of their norms."""
    cosine, ratio = numbers(ds, choice).values()
    ds = choice.part(ds)
    num_diverged, num_tried = diverged_units(ds)
    with panels.grid(2, xlabel="meta-iteration", share_y=False, width=choice.width) as (figure, (left, right)):
        untrained_lines = []
        for ax, summary in ((left, cosine), (right, ratio)):
            curves.over_training(ds, ax, summary, num_diverged=num_diverged)
            untrained_lines += curves.untrained_levels(ds, ax, summary)
            equal = references.equality_line(ax)  # alike in both panels, so one of them serves as the legend entry
        left.set_title("direction (1: equal)")
        left.set_ylabel("cosine, full and first-order")
        right.set_title("length (1: equal)")
        right.set_ylabel("norm, full / first-order")
        notes = [equal, *legend.notes(cosine.per_seed, num_diverged, num_tried)]
        panels.outside_legends(figure, legend.training_entries(ds, untrained_lines), notes)
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also says what the means and bands are."""
    shown = choice.part(ds)
    return legend.caption_of(
        shown,
        measured(shown, "meta_gradient_cosine"),
        "The full meta-gradient of the query loss, which contains the Hessians of the inner loop, compared with the "
        "first-order one, which leaves them out: the cosine between them, and the norm of the full one divided by that "
        "of the first-order one. If the Hessians did not matter, both would be 1.",
        "Dotted lines are untrained networks.",
        selection.shown_sentence(ds, choice.learners),
    )
