"""The largest eigenvalue against 2 / alpha and the curvature along the gradient, by inner step and checkpoint."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice
from analysis.drawing.style import DARK, method_label, shade
from analysis.drawing.summary import Summary, diverged_units, measured, seeds_with_values, summarise, tasks_per_seed
from analysis.schema import only_with_alpha
from hessian_tools.curvature import DESCENT_THRESHOLD

MAX_LEARNERS = 4
"""The largest number of learners, each with a panel, that are shown by default."""
STEP_MARKERS = "os^Dv<>ph*"
"""The marker of each inner step; further steps begin with the first one again."""

HAS_STEPS = True


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "alpha_rho", "eigenvalue_max")


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default."""
    return selection.main_learners(only_with_alpha(ds), MAX_LEARNERS)


def numbers(ds: xr.Dataset, choice: Choice) -> dict[str, Summary]:
    """Alpha rho and alpha lambda_max of each learner at each checkpoint and inner step."""
    ds = choice.part(ds)
    top = ds["step_size"] * measured(ds, "eigenvalue_max")
    return {"alpha rho": summarise(measured(ds, "alpha_rho")), "alpha lambda_max": summarise(top)}


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw a panel for each learner, with a path over the checkpoints for each inner step.

    x is alpha rho, the inner learning rate times the curvature along the gradient, and y is alpha times the largest
    eigenvalue. The open marker at a path's beginning is its first checkpoint, and the filled marker at its end the last
    one.
    """
    alpha_rho, alpha_lambda = numbers(ds, choice).values()
    last = int(ds["inner_step"].max())
    ds, names = choice.part(ds), choice.learners
    steps = [int(step) for step in ds["inner_step"].values]
    colors = {step: shade(step, last) for step in steps}
    xlabel = r"along the gradient, $\alpha\rho$"
    with panels.grid(len(names), xlabel=xlabel, width=choice.width) as (figure, axes):
        for name, ax in zip(names, axes, strict=True):
            for step in steps:
                _path(ax, alpha_rho, alpha_lambda, name, step, colors[step])
            ax.set_title(method_label(name), color=curves.learner_style(ds, name).color)
        # Both axes show the threshold. All panels share the y axis of the first one.
        low, high = alpha_lambda.span
        references.symlog_axis(axes[0].yaxis, low, max(high, 1.2 * DESCENT_THRESHOLD))
        low, high = alpha_rho.span
        for ax in axes:
            references.symlog_axis(ax.xaxis, low, max(high, 1.2 * DESCENT_THRESHOLD))
            lines = references.stability_lines(ax)  # alike in all panels; those of the last one are legend entries
        panels.left_labels(axes, r"sharpest direction, $\alpha\lambda_{\max}$")
        entries = [
            legend.entry(f"step {step}" if step < last else "adapted", color=colors[step], marker=_marker(step))
            for step in steps
        ]
        open_marker: dict[str, Any] = {"color": DARK, "linestyle": "none", "marker": "o"}
        ends = [
            legend.entry("first checkpoint", markerfacecolor="white", **open_marker),
            legend.entry("last checkpoint", **open_marker),
        ]
        notes = legend.diverged_notes(*diverged_units(ds), has_crosses=False)
        panels.outside_legends(figure, [*entries, *ends], [*lines, *notes])
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also says over what the means are."""
    drawn = choice.part(ds)
    values = measured(drawn, "alpha_rho")
    return legend.joined(
        "The edge of stability: alpha times the largest eigenvalue (y) against alpha rho (x), for each inner step, as "
        "paths from the first checkpoint (open marker) to the last one (filled).",
        "Above the horizontal line the largest eigenvalue exceeds 2 / alpha, and gradient descent is unstable in its "
        "direction. Right of the vertical line alpha rho exceeds 2, and a step raises the quadratic model of the loss. "
        "On the diagonal the gradient lies in the sharpest direction; no point can be below it.",
        "The eigenvalue is that of the whole Hessian, also for learners whose inner loop moves only some parameters; "
        "for these it does not say that their steps are unstable.",
        "Both axes are linear within ±0.1 and logarithmic beyond.",
        f"Means are over {tasks_per_seed(values)} held-out tasks within each of {seeds_with_values(values)} seeds, "
        "then over the seeds.",
        legend.diverged_sentence(drawn),
        legend.no_alpha_sentence(ds),
        selection.shown_sentence(only_with_alpha(ds), choice.learners),
    )


def _path(ax: Axes, alpha_rho: Summary, alpha_lambda: Summary, name: str, step: int, color: str) -> None:
    """Draw the path of a learner at one inner step over the checkpoints."""
    place = {"learner": name, "inner_step": step}
    x, y = alpha_rho.mean.sel(place).values, alpha_lambda.mean.sel(place).values
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    marker = _marker(step)
    ax.plot(x, y, color=color, linewidth=0.8, marker=".", markersize=2.5, gid=f"path:{name}:{step}")
    if len(x):
        ax.plot(x[:1], y[:1], color=color, marker=marker, markerfacecolor="white", gid=f"first:{name}:{step}")
    if len(x) > 1:
        ax.plot(x[-1:], y[-1:], color=color, marker=marker, gid=f"last:{name}:{step}")


def _marker(step: int) -> str:
    """The marker of an inner step."""
    return STEP_MARKERS[step % len(STEP_MARKERS)]
