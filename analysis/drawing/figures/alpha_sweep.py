"""Accuracy after an inner loop with other step sizes than the learner's own, before and after meta-training."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice
from analysis.drawing.summary import Summary, diverged_units, measured, summarise
from analysis.evaluation import has_accuracy, score_name
from analysis.schema import learner_names, trained_learners


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, _variable(ds))


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default: the trained ones, whose untrained networks are drawn as well."""
    return trained_learners(selection.for_lines(ds)) or learner_names(ds)


def numbers(ds: xr.Dataset, choice: Choice) -> dict[str, Summary]:
    """The accuracy (for regression, the loss) of each learner at the first and the last checkpoint, by the factor."""
    ends = choice.part(ds).isel(checkpoint=[0, -1])
    return {f"{score_name(ds)}, other step sizes": summarise(measured(ends, _variable(ds)))}


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw one panel: the accuracy of each learner at the last checkpoint against the factor of its step size.

    Dotted lines are the untrained networks, and a vertical line marks the learner's own step size.
    """
    (summary,) = numbers(ds, choice).values()
    ds = choice.part(ds)
    factors = [float(factor) for factor in ds["alpha_factor"].values]
    xlabel = "multiple of the learner's own step size"
    with panels.grid(1, xlabel=xlabel, row_height=2.3, width=choice.width) as (figure, (ax,)):
        untrained_lines = curves.against(ds, ax, np.array(factors), summary)
        ax.set_xscale("log")
        references.tick_at(ax.xaxis, factors)
        ax.set_ylabel(score_name(ds))
        if not has_accuracy(ds):
            ax.set_yscale("log")  # a loss may be a hundred times larger where the step size is too large
        lines = [references.own_step_size(ax), *(references.chance(ds, ax) if has_accuracy(ds) else [])]
        notes = legend.notes(summary.per_seed, *diverged_units(ds), has_crosses=False)
        entries = [*untrained_lines, *legend.learner_entries(ds.sel(learner=trained_learners(ds)))]
        panels.outside_legends(figure, entries, [*lines, *notes])
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also says what the factors are."""
    drawn = choice.part(ds)
    score = score_name(ds)
    return legend.caption_of(
        drawn,
        measured(drawn, _variable(ds)),
        f"The {score} after inner loops whose step sizes are multiples of the learner's own, at meta-iteration "
        f"{int(ds['checkpoint'][-1])} and for the untrained networks (dotted, open markers); the vertical line is the "
        "learner's own step size.",
        "If training had only rescaled the loss, the trained line would be the dotted one, shifted sideways. A line "
        "that stays level over a wider range belongs to a learner that depends less on its step size.",
        f"Of inner loops that left the finite numbers there is no {score}.",
        selection.shown_sentence(ds, choice.learners),
    )


def _variable(ds: xr.Dataset) -> str:
    """The name of the variable that is drawn."""
    return "swept_query_accuracy" if has_accuracy(ds) else "swept_query_loss"
