"""Alpha rho, the curvature along the gradient times the step size, over meta-training."""

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.summary import diverged_units, measured, summarise
from analysis.schema import learner_names, with_alpha
from hessian_tools.curvature import DESCENT_THRESHOLD


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "alpha_rho")


def draw(ds: xr.Dataset) -> Figure:
    """Draw one panel for each point of the inner loop.

    Points are not averaged, because the network has adapted to the task at later steps and not at step 0.
    """
    ds = selection.for_lines(with_alpha(ds))
    summary = summarise(measured(ds, "alpha_rho"))
    num_diverged, num_tried = diverged_units(ds)
    last = ds.sizes["inner_step"] - 1
    with panels.grid(last + 1, xlabel="meta-iteration", row_height=1.75) as (figure, axes):
        for step, ax in enumerate(axes):
            curves.over_training(ds, ax, summary.at(inner_step=step), num_diverged=num_diverged)
            adapted = f"adapted (after {step} step{'s' * (step != 1)})"
            ax.set_title(adapted if 0 < step == last else f"step {step}")
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


def caption(ds: xr.Dataset) -> str:
    """Return the caption, which also says what the means and bands are, and how many units diverged.

    A unit is one task of one seed at one checkpoint.
    """
    drawn = selection.for_lines(with_alpha(ds))
    return legend.caption_of(
        drawn,
        measured(drawn, "alpha_rho"),
        "The curvature of the support loss along the gradient times the inner learning rate, alpha rho = alpha g'Hg / "
        "g'g, at each point of the inner loop, against the meta-iteration.",
        "A gradient step lowers the quadratic model of the loss if and only if alpha rho is below 2.",
        "The last panel shows the adapted network, from which no further step is taken.",
        legend.no_alpha_sentence(ds),
        selection.shown_sentence(with_alpha(ds), learner_names(drawn)),
    )
