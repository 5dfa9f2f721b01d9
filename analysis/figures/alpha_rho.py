"""Figure 1: curvature along the gradient, at each point of the inner loop, over meta-training."""

import xarray as xr
from matplotlib.figure import Figure

from analysis import style
from analysis.figures import words
from analysis.figures.grid import left_labels, panels, step_title
from analysis.plots.legend import band_handle, diverged_handles, learner_handles, outside_legends, threshold_handle
from analysis.plots.over_training import over_training
from analysis.plots.references import THRESHOLD, curvature_axis, threshold
from analysis.plots.summary import diverged_units, measured, summarise
from analysis.schema import with_alpha

NAME = "alpha_rho"


def draw(ds: xr.Dataset) -> Figure:
    """One panel a point of the inner loop: step 0 and later steps tell different stories and are never averaged."""
    ds = with_alpha(ds)
    summary = summarise(measured(ds, "alpha_rho"))
    missing, _ = diverged_units(ds)
    points = ds.sizes["inner_step"]
    with style.context(width="double"):
        figure, axes = panels(points, xlabel="meta-iteration")
        for step, ax in enumerate(axes):
            over_training(ds, ax, summary=summary.at(inner_step=step), incomplete=missing)
            ax.set_title(step_title(step, points))
        remark = curvature_axis(axes[0], *summary.span)
        for ax in axes:
            threshold(ax)
        scale = f"\n({remark})" if remark else ""
        left_labels(axes, r"$\alpha\rho=\alpha\,g^{\mathsf{T}}Hg\,/\,g^{\mathsf{T}}g$" + scale)
        label = r"threshold $\alpha\rho = 2$"
        if axes[0].get_ylim()[1] < THRESHOLD:
            label += " (above the axis)"
        notes = [threshold_handle(label), band_handle(summary.num_seeds), *diverged_handles(ds)]
        outside_legends(figure, learner_handles(ds), notes)
    return figure


def caption(ds: xr.Dataset) -> str:
    """What is drawn, over how many seeds and tasks, what the bands are, and what diverged."""
    whole, ds = ds, with_alpha(ds)
    values = measured(ds, "alpha_rho")
    return (
        "Curvature of the support loss along the gradient times the inner learning rate, alpha rho = alpha g'Hg / g'g,"
        " at each point of the inner loop, against the meta-iteration. A gradient step lowers the quadratic model of "
        "the loss if and only if alpha rho is below 2. The last panel is the adapted network, from which no step is "
        f"taken. {words.sample(values)} {words.band(values)} {words.diverged(ds)}"
        f"{words.begun(ds)}{words.no_alpha(whole)}"
    )
