"""Figure 5: curvature along the gradient against random directions and the sharpest one, before and after training."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from analysis import style
from analysis.figures import words
from analysis.figures.grid import left_labels, panels
from analysis.plots.legend import (
    band_handle,
    diverged_handles,
    outside_legends,
    quantity_handles,
    state_handles,
    threshold_handle,
)
from analysis.plots.look import learner_style
from analysis.plots.references import THRESHOLD, threshold
from analysis.plots.states import DIRECTIONS, curvatures, directions, panel_learners, states
from analysis.plots.summary import measured, seeds_with_values, summarise, tasks_per_seed
from analysis.schema import with_alpha
from analysis.style import method_label

NAME = "directions"


def draw(ds: xr.Dataset) -> Figure:
    """One panel a learner: its first checkpoint in grey, its last in the learner's colour."""
    ds = with_alpha(ds)
    learners = panel_learners(ds)
    values = measured(ds, "alpha_rho")
    with style.context(width="double"):
        figure, axes = panels(len(learners), xlabel="point of the inner loop (step)", row_height=2.1)
        for name, ax in zip(learners, axes, strict=True):
            for state in states(values, ds, name):
                directions(ds, ax, state=state)
            ax.set_title(method_label(name), color=learner_style(ds, name).color)
        smallest, low, high = magnitudes(ds)
        axes[0].set_yscale("symlog", linthresh=smallest, linscale=0.5)
        axes[0].set_ylim(1.6 * low if low < 0 else -0.2 * smallest, max(1.6 * high, 1.5 * THRESHOLD))
        for ax in axes:
            threshold(ax)
        left_labels(axes, r"$\alpha\,\times$ curvature" + f"\n(linear within ±{smallest:g})")
        notes = [threshold_handle("threshold 2"), band_handle(seeds_with_values(values))]
        notes += diverged_handles(ds, crossed=False)
        outside_legends(figure, [*state_handles(ds, values), *quantity_handles(DIRECTIONS)], notes)
    return figure


def caption(ds: xr.Dataset) -> str:
    """What is drawn, over how many seeds and tasks, what bands and error bars are."""
    whole, ds = ds, with_alpha(ds)
    values = measured(ds, "alpha_rho")
    tops = tasks_per_seed(measured(ds, "eigenvalue_max"))
    return (
        "Curvature of the support loss times the inner learning rate, along the inner loop, at the first (grey, open) "
        "and last (colour, filled) checkpoint: in the sharpest direction (alpha lambda_max), along the gradient "
        "(alpha rho), and along random directions (its bars: the standard error from the random probes alone). The y "
        f"axis is linear near 0 and logarithmic beyond. {words.sample(values)} lambda_max is over {tops} tasks a seed. "
        f"{words.band(values)} {words.diverged(ds)}{words.begun(ds)}{words.no_alpha(whole)}"
    )


def magnitudes(ds: xr.Dataset) -> tuple[float, float, float]:
    """Where the axis turns from linear to logarithmic (a power of ten below most means), and its data limits."""
    summaries = [summarise(values) for values in curvatures(ds).values()]
    sizes = np.abs(np.concatenate([summary.mean.values.ravel() for summary in summaries]))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if sizes.size == 0:
        return 0.1, 0.0, THRESHOLD
    spans = np.array([summary.span for summary in summaries])
    turn = 10 ** np.floor(np.log10(max(np.percentile(sizes, 5), 1e-5 * sizes.max())))
    return float(turn), float(np.nanmin(spans)), float(np.nanmax(spans))
