"""Alpha rho, the curvature along the gradient times the step size, over meta-training."""

from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice, Numbers
from analysis.drawing.summary import Summary, diverged_units, measured, summarise
from analysis.schema import learner_names, only_with_alpha
from hessian_tools.curvature import DESCENT_THRESHOLD

HAS_STEPS = True


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "alpha_rho")


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default."""
    return learner_names(selection.for_lines(only_with_alpha(ds)))


def numbers(ds: xr.Dataset, choice: Choice) -> Numbers:
    """Alpha rho of each learner at each checkpoint and inner step."""
    return {"alpha rho": _summary(choice.part(ds))}


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw one panel for each point of the inner loop.

    Different points are not averaged, because the network has adapted to the task at later steps and not at step 0.
    """
    last = int(ds["inner_step"].max())
    ds = choice.part(ds)
    summary = _summary(ds)
    num_diverged, num_tried = diverged_units(ds)
    options: dict[str, Any] = {"row_height": 1.75, "width": choice.width}
    with panels.grid(ds.sizes["inner_step"], xlabel="meta-iteration", **options) as (figure, axes):
        curves.over_training_by_step(ds, axes, summary, num_diverged=num_diverged, last=last)
        # All panels share the y axis of the first one.
        remark = references.curvature_axis(axes[0], *summary.span)
        label = r"threshold $\alpha\rho = 2$"
        if axes[0].get_ylim()[1] < DESCENT_THRESHOLD:
            label += " (above the axis)"
        lines = [references.threshold(ax, label=label) for ax in axes]
        scale = f"\n({remark})" if remark else ""
        panels.left_labels(axes, r"$\alpha\rho=\alpha\,g^{\mathsf{T}}Hg\,/\,g^{\mathsf{T}}g$" + scale)
        notes = [lines[0], *legend.notes(summary.per_seed, num_diverged, num_tried)]
        panels.outside_legends(figure, legend.learner_entries(ds), notes)
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also says what the means and bands are, and how many units diverged.

    A unit is one task of one seed at one checkpoint.
    """
    drawn = choice.part(ds)
    shows_last = int(drawn["inner_step"][-1]) == int(ds["inner_step"].max())
    return legend.caption_of(
        drawn,
        measured(drawn, "alpha_rho"),
        "The curvature of the support loss along the gradient times the inner learning rate, alpha rho = alpha g'Hg / "
        "g'g, at each point of the inner loop, against the meta-iteration.",
        "A gradient step lowers the quadratic model of the loss if and only if alpha rho is below 2.",
        "The last panel shows the adapted network, from which no further step is taken." if shows_last else "",
        legend.no_alpha_sentence(ds),
        selection.shown_sentence(only_with_alpha(ds), choice.learners),
    )


def _summary(ds: xr.Dataset) -> Summary:
    """The means of alpha rho over the tasks of each seed and over the seeds."""
    return summarise(measured(ds, "alpha_rho"))
