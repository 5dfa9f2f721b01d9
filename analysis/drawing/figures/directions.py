"""Curvature along the gradient, random directions and the sharpest one, before and after meta-training."""

from functools import partial

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice, Numbers
from analysis.drawing.summary import (
    Summary,
    diverged_units,
    measured,
    probe_error,
    summarise,
    tasks_per_seed,
)
from analysis.schema import learner_names, only_with_alpha
from hessian_tools.curvature import DESCENT_THRESHOLD

# The looks of the three directions: the sharpest one, that of the gradient, and random ones.
LOOKS = {
    "top": curves.QuantityLook("^", "-.", r"$\alpha\lambda_{\max}$: sharpest direction"),
    "gradient": curves.QuantityLook("o", "-", r"$\alpha\rho$: along the gradient"),
    "random": curves.QuantityLook("s", "--", r"$\alpha\rho_{\mathrm{random}}$: random directions"),
}

HAS_STEPS = True


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "alpha_rho", "eigenvalue_max", "rho_random")


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default."""
    return learner_names(selection.for_panels(only_with_alpha(ds)))


def numbers(ds: xr.Dataset, choice: Choice) -> Numbers:
    """The curvatures times alpha of each learner along the inner loop, at its first and its last checkpoint."""
    ds = choice.part(ds)
    drawn = curves.state_mask(ds, measured(ds, "alpha_rho"))
    names = {"top": "alpha lambda_max", "gradient": "alpha rho", "random": "alpha rho_random"}
    means = {names[name]: summary.where(drawn) for name, summary in _curvatures(ds).items()}
    return means | {"standard error of alpha rho_random": _random_error(ds).where(drawn)}


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw one panel for each learner: its first checkpoint in grey, its last one in the learner's colour."""
    ds = choice.part(ds)
    values = measured(ds, "alpha_rho")
    names, xlabel = curves.panel_learners(ds), "point of the inner loop (step)"
    with panels.grid(len(names), xlabel=xlabel, width=choice.width) as (figure, axes):
        curves.draw_states(ds, axes, values, partial(_draw_curvatures, _curvatures(ds), _random_error(ds)))
        linear, low, high = _axis_limits(ds)
        axes[0].set_yscale("symlog", linthresh=linear, linscale=0.5)
        # All values have a margin to the ends of the axis, and the threshold is always on it.
        axes[0].set_ylim(1.6 * low if low < 0 else -0.2 * linear, max(1.6 * high, 1.5 * DESCENT_THRESHOLD))
        references.decade_ticks(axes[0], linear)
        lines = [references.threshold(ax, label="threshold 2") for ax in axes]
        panels.left_labels(axes, r"$\alpha\,\times$ curvature" + f"\n(linear within ±{linear:g})")
        notes = [lines[0], *legend.notes(values, *diverged_units(ds), has_crosses=False)]
        panels.outside_legends(figure, [*legend.state_entries(ds, values), *legend.quantity_entries(LOOKS)], notes)
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also says what the means, bands and error bars are."""
    drawn = choice.part(ds)
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
        selection.shown_sentence(only_with_alpha(ds), choice.learners),
    )


def _curvatures(ds: xr.Dataset) -> dict[str, Summary]:
    """The inner learning rate times the curvature, in each of the three directions."""
    return {
        "top": summarise(ds["step_size"] * measured(ds, "eigenvalue_max")),
        "gradient": summarise(measured(ds, "alpha_rho")),
        "random": summarise(ds["step_size"] * measured(ds, "rho_random")),
    }


def _random_error(ds: xr.Dataset) -> xr.DataArray:
    """The standard error, from the random probes alone, of the means along random directions."""
    return probe_error(ds["step_size"] * measured(ds, "rho_random_stderr"))


def _draw_curvatures(
    curvatures: dict[str, Summary], random_error: xr.DataArray, ax: Axes, state: curves.LearnerState
) -> None:
    """Draw the curvatures of one state along the inner loop."""
    for name, summary in curvatures.items():
        error = random_error if name == "random" else None
        curves.along_steps(ax, state, summary, name=name, look=LOOKS[name], error=error)


def _axis_limits(ds: xr.Dataset) -> tuple[float, float, float]:
    """Return the value at which the y axis turns from linear to logarithmic, and the smallest and largest value drawn.

    The first value is a power of ten that lies below most means.
    """
    summaries = _curvatures(ds).values()
    magnitudes = np.abs(np.concatenate([summary.mean.values.ravel() for summary in summaries]))
    magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
    if magnitudes.size == 0:
        return 0.1, 0.0, DESCENT_THRESHOLD
    spans = np.array([summary.span for summary in summaries])
    # A few means that happen to be near 0 must not stretch the axis over many decades. So the smallest 5 % are ignored,
    # and the largest mean is at most six decades above the linear part.
    linear = 10 ** np.floor(np.log10(max(np.percentile(magnitudes, 5), 1e-5 * magnitudes.max())))
    return float(linear), float(np.nanmin(spans)), float(np.nanmax(spans))
