"""Eigenvalues of the support loss's Hessian along the inner loop, before and after meta-training."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice, Numbers
from analysis.drawing.summary import Summary, diverged_units, measured, summarise, tasks_per_seed
from analysis.schema import learner_names

LOOKS = {
    "max": curves.QuantityLook("^", "-", "largest eigenvalue"),
    "min": curves.QuantityLook("v", "--", "smallest eigenvalue"),
}
DOTS: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 1.8, "markeredgewidth": 0}
_MARKER_SHARE = 0.012  # half the size of a marker as a share of the y axis: 1.75 pt of about 145 pt

HAS_STEPS = True


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "eigenvalue_max")


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default."""
    return learner_names(selection.for_panels(ds))


def numbers(ds: xr.Dataset, choice: Choice) -> Numbers:
    """The eigenvalues of each learner along the inner loop, at its first and its last checkpoint."""
    ds = choice.part(ds)
    drawn = curves.state_mask(ds, measured(ds, "eigenvalue_max"))
    parts: dict[str, Summary | xr.DataArray] = {}
    for end, (summary, residual) in _ends(ds).items():
        parts[LOOKS[end].label] = summary.where(drawn)
        parts[f"mean residual of the {LOOKS[end].label}"] = residual.where(drawn)
    return parts | {"eigenvalue": _full_spectra(measured(ds, "eigenvalue")).where(drawn)}


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw one panel for each learner: its first checkpoint in grey, its last one in the learner's colour."""
    ds = choice.part(ds)
    values = measured(ds, "eigenvalue_max")
    names, xlabel = curves.panel_learners(ds), "point of the inner loop (step)"
    with panels.grid(len(names), xlabel=xlabel, width=choice.width) as (figure, axes):
        curves.draw_states(ds, axes, values, partial(_draw_eigenvalues, ds, _ends(ds)))
        for ax in axes:
            references.zero(ax)
        references.decade_axis(axes[0], _linear_width(ds))
        panels.left_labels(axes, f"eigenvalue of the Hessian\n(linear within ±{_linear_width(ds):.2g})")
        dots = legend.entry(f"{ds.sizes['eigen_index']} largest by magnitude, each task", color="black", **DOTS)
        edges = [line for name, ax in zip(names, axes, strict=True) for line in _edge(ds, ax, name)]
        notes = [dots, *edges[:1], *legend.notes(values, *diverged_units(ds), has_crosses=False)]
        panels.outside_legends(figure, [*legend.state_entries(ds, values), *legend.quantity_entries(LOOKS)], notes)
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also says what the means and bands are and how large the residuals are."""
    study, ds = ds, choice.part(ds)
    full_spectra = _full_spectra(measured(ds, "eigenvalue")).isel(eigen_index=0)
    return legend.caption_of(
        ds,
        measured(ds, "eigenvalue_max"),
        "The largest and smallest algebraic eigenvalue of the support loss's Hessian along the inner loop (triangles: "
        "means), at the first (grey, open) and last (colour, filled) checkpoint.",
        f"The axis is linear up to about {_linear_width(ds):.2g} and logarithmic beyond.",
        f"Dots are the {ds.sizes['eigen_index']} largest eigenvalues by magnitude of each single task measured in full "
        f"({tasks_per_seed(full_spectra)} for each seed); they are not averaged, because their signs differ from task "
        "to task.",
        residuals(ds),
        selection.shown_sentence(study, choice.learners),
    )


def residuals(ds: xr.Dataset) -> str:
    """The sentence on how large the residuals are, and whether their error bars can be seen beside the markers."""
    means, errors = (
        np.concatenate([summarise(measured(ds, f"eigenvalue_{end}{kind}")).mean.values.ravel() for end in LOOKS])
        for kind in ("", "_residual")
    )
    known = np.isfinite(errors)
    if not known.any():
        return "No eigenvalue was measured."
    means, errors = means[known], errors[known]
    # Where the lower ends, the means and the upper ends lie along the axis, whose scale is asinh.
    positions = np.arcsinh(np.stack([means - errors, means, means + errors]) / _linear_width(ds))
    longest = np.max(np.abs(np.diff(positions, axis=0)))
    hidden = longest < _MARKER_SHARE * np.ptp(positions)
    size = "smaller than the markers" if hidden else "in places larger than the markers"
    return f"Error bars are mean residuals |Hv - lambda v|, which are at most {np.max(errors):.2g} and {size}."


def _draw_eigenvalues(
    ds: xr.Dataset, ends: dict[str, tuple[Summary, xr.DataArray]], ax: Axes, state: curves.LearnerState
) -> None:
    """Draw the spectrum of one state.

    The means of the largest and smallest eigenvalues have mean residuals as error bars; the largest eigenvalues by
    magnitude of single tasks are dots.
    """
    for end, (summary, residual) in ends.items():
        curves.along_steps(ax, state, summary, name=end, look=LOOKS[end], error=residual)
    spectra = _full_spectra(measured(ds, "eigenvalue").isel(state.position))
    table = spectra.transpose("inner_step", ...).values.reshape(spectra.sizes["inner_step"], -1)
    # ``shift`` moves the markers of the means; the dots of single tasks are moved farther, so that both can be seen.
    x = np.repeat(spectra["inner_step"].values + 2.2 * state.shift, table.shape[1])
    many = np.isfinite(table).sum() > 4000  # thousands of dots as vectors make a slow PDF
    dots = DOTS | {"color": state.color, "alpha": 0.35, "zorder": 2, "rasterized": many}
    curves.plot_finite(ax, x, table.ravel(), gid=f"tasks:{state.label}", **dots)


def _ends(ds: xr.Dataset) -> dict[str, tuple[Summary, xr.DataArray]]:
    """The largest ("max") and the smallest ("min") eigenvalue, each with its mean residual.

    Each residual bounds the error of its eigenvalue, so the mean residual bounds the error of the mean eigenvalue.
    """
    names = {end: f"eigenvalue_{end}" for end in LOOKS}
    return {
        end: (summarise(measured(ds, name)), summarise(measured(ds, f"{name}_residual")).mean)
        for end, name in names.items()
    }


def _full_spectra(eigenvalues: xr.DataArray) -> xr.DataArray:
    """The eigenvalues of the tasks that have all of them; NaN for tasks of which fewer were measured."""
    return eigenvalues.where(eigenvalues.notnull().all("eigen_index"))


def _linear_width(ds: xr.Dataset) -> float:
    """The magnitude at which the y axis turns from linear to logarithmic: a hundredth of the largest eigenvalue.

    It is 1 if no eigenvalue is known.

    A linear axis would hide most eigenvalues, because they fall by orders of magnitude along the inner loop.
    """
    values = np.abs(measured(ds, "eigenvalue_max").values)
    largest = np.max(values[np.isfinite(values)], initial=0.0)
    return float(largest) / 100 or 1.0


def _edge(ds: xr.Dataset, ax: Axes, name: str) -> list[Line2D]:
    """Draw the edge of stability, 2 / alpha, in a learner's panel; returns its line as a legend entry.

    No line is drawn if it would lie above the y axis.

    Gradient steps of size alpha are unstable in a direction whose eigenvalue is above 2 / alpha.
    """
    alphas = ds["step_size"].isel(learner=learner_names(ds).index(name)).values
    alphas = np.unique(alphas[np.isfinite(alphas)])
    # If seeds have different values of alpha, they have different lines, and none is drawn.
    if alphas.size != 1 or 2 / alphas[0] >= ax.get_ylim()[1]:
        return []
    return [references.threshold(ax, 2 / alphas[0], label=r"$2/\alpha$")]
