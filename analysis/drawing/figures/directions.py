"""Curvature along the gradient, random directions and the sharpest one, before and after meta-training."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.summary import (
    diverged_units,
    measured,
    probe_error,
    summarise,
    tasks_per_seed,
)
from analysis.schema import learner_names, with_alpha
from hessian_tools.curvature import DESCENT_THRESHOLD

LOOKS = {
    "top": curves.QuantityLook("^", "-.", r"$\alpha\lambda_{\max}$: sharpest direction"),
    "gradient": curves.QuantityLook("o", "-", r"$\alpha\rho$: along the gradient"),
    "random": curves.QuantityLook("s", "--", r"$\alpha\rho_{\mathrm{random}}$: random directions"),
}


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "alpha_rho", "eigenvalue_max", "rho_random")


def draw(ds: xr.Dataset) -> Figure:
    """Draw one panel for each learner: its first checkpoint in grey, its last one in the learner's colour."""
    ds = selection.for_panels(with_alpha(ds))
    values = measured(ds, "alpha_rho")
    with panels.grid(len(curves.panel_learners(ds)), xlabel="point of the inner loop (step)") as (figure, axes):
        curves.draw_states(ds, axes, values, _draw_curvatures)
        linear, low, high = _axis_limits(ds)
        axes[0].set_yscale("symlog", linthresh=linear, linscale=0.5)
        axes[0].set_ylim(1.6 * low if low < 0 else -0.2 * linear, max(1.6 * high, 1.5 * DESCENT_THRESHOLD))
        lines = [references.threshold(ax, label="threshold 2") for ax in axes]
        panels.left_labels(axes, r"$\alpha\,\times$ curvature" + f"\n(linear within ±{linear:g})")
        notes = [lines[0], *legend.notes(values, *diverged_units(ds), crossed=False)]
        panels.outside_legends(figure, [*legend.state_entries(ds, values), *legend.quantity_entries(LOOKS)], notes)
    return figure


def caption(ds: xr.Dataset) -> str:
    """Return the caption, which also says what the means, bands and error bars are."""
    drawn = selection.for_panels(with_alpha(ds))
    return legend.caption_of(
        drawn,
        measured(drawn, "alpha_rho"),
        "The curvature of the support loss times the inner learning rate, along the inner loop, at the first (grey, "
        "open) and last (colour, filled) checkpoint: in the sharpest direction (alpha lambda_max), along the gradient "
        "(alpha rho), and along random directions, whose error bars are the standard error from the random probes "
        "alone.",
        "The y axis is linear near 0 and logarithmic beyond.",
        f"Means of lambda_max are over {tasks_per_seed(measured(drawn, 'eigenvalue_max'))} tasks of each seed.",
        legend.no_alpha_sentence(ds),
        selection.shown_sentence(with_alpha(ds), learner_names(drawn)),
    )


def _curvatures(ds: xr.Dataset) -> dict[str, xr.DataArray]:
    """The inner learning rate times the curvature, in each of the three directions."""
    return {
        "top": ds["step_size"] * measured(ds, "eigenvalue_max"),
        "gradient": measured(ds, "alpha_rho"),
        "random": ds["step_size"] * measured(ds, "rho_random"),
    }


def _draw_curvatures(ds: xr.Dataset, ax: Axes, state: curves.LearnerState) -> None:
    for name, values in _curvatures(ds).items():
        error = probe_error(ds["step_size"] * measured(ds, "rho_random_stderr")) if name == "random" else None
        curves.along_steps(ax, state, values, name=name, look=LOOKS[name], error=error)


def _axis_limits(ds: xr.Dataset) -> tuple[float, float, float]:
    """Return the value at which the y axis turns from linear to logarithmic, and the smallest and largest value drawn.

    The first value is a power of ten that lies below most means.
    """
    summaries = [summarise(values) for values in _curvatures(ds).values()]
    sizes = np.abs(np.concatenate([summary.mean.values.ravel() for summary in summaries]))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if sizes.size == 0:
        return 0.1, 0.0, DESCENT_THRESHOLD
    spans = np.array([summary.span for summary in summaries])
    # A few means that happen to be near 0 must not stretch the axis over many decades, so the smallest 5 % are ignored.
    linear = 10 ** np.floor(np.log10(max(np.percentile(sizes, 5), 1e-5 * sizes.max())))
    return float(linear), float(np.nanmin(spans)), float(np.nanmax(spans))
