"""Figure 2: eigenvalues of the support loss's Hessian along the inner loop, before and after meta-training."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import style
from analysis.figures import words
from analysis.figures.grid import left_labels, panels
from analysis.plots.legend import (
    band_handle,
    diverged_handles,
    dots_handle,
    outside_legends,
    quantity_handles,
    state_handles,
    threshold_handle,
)
from analysis.plots.look import learner_style
from analysis.plots.references import decade_ticks, threshold, zero
from analysis.plots.states import EXTREMES, extremes, full_spectra, panel_learners, states
from analysis.plots.summary import measured, seeds_with_values, summarise, tasks_per_seed
from analysis.schema import learner_names
from analysis.style import method_label

NAME = "eigenvalues"
_MARKER_SHARE = 0.012  # half a marker as a share of the axis: 1.75 pt of about 145 pt


def draw(ds: xr.Dataset) -> Figure:
    """One panel a learner: its first checkpoint in grey, its last in the learner's colour."""
    learners = panel_learners(ds)
    values = measured(ds, "eigenvalue_max")
    with style.context(width="double"):
        figure, axes = panels(len(learners), xlabel="point of the inner loop (step)", row_height=2.1)
        for name, ax in zip(learners, axes, strict=True):
            for state in states(values, ds, name):
                extremes(ds, ax, state=state)
            zero(ax).set_title(method_label(name), color=learner_style(ds, name).color)
        linear = _linear_width(ds)
        axes[0].set_yscale("asinh", linear_width=linear)
        decade_ticks(axes[0], linear)
        left_labels(axes, f"eigenvalue of the Hessian\n(linear within ±{linear:.2g})")
        notes = [dots_handle(f"{ds.sizes['eigen_index']} largest by magnitude, each task")]
        if _edge(ds, dict(zip(learners, axes, strict=True))):
            notes.append(threshold_handle(r"$2/\alpha$"))
        notes += [band_handle(seeds_with_values(values)), *diverged_handles(ds, crossed=False)]
        outside_legends(figure, [*state_handles(ds, values), *quantity_handles(EXTREMES)], notes)
    return figure


def caption(ds: xr.Dataset) -> str:
    """What is drawn, over how many seeds and tasks, what the bands are, and how large residuals are."""
    values = measured(ds, "eigenvalue_max")
    spectra = full_spectra(measured(ds, "eigenvalue"))
    return (
        "Largest and smallest algebraic eigenvalue of the support loss's Hessian along the inner loop (triangles: "
        "means), at the first (grey, open) and last (colour, filled) checkpoint; the axis is linear up to about "
        f"{_linear_width(ds):.2g} and logarithmic beyond. {words.sample(values)} Dots are the "
        f"{ds.sizes['eigen_index']} largest eigenvalues by magnitude of each single task measured in full "
        f"({tasks_per_seed(spectra.isel(eigen_index=0))} a seed); they are not averaged, as their signs differ from "
        f"task to task. {residuals(ds)} {words.band(values)} {words.diverged(ds)}{words.begun(ds)}"
    )


def residuals(ds: xr.Dataset) -> str:
    """How large the residuals are, and whether they, drawn as error bars on the means, can be seen."""
    means, errors = (np.concatenate([_means(ds, end + kind) for end in ("max", "min")]) for kind in ("", "_residual"))
    if not np.isfinite(errors).any():
        return "No eigenvalue was measured."
    means, errors = means[np.isfinite(errors)], errors[np.isfinite(errors)]
    drawn = np.arcsinh(np.stack([means - errors, means, means + errors]) / _linear_width(ds))
    extent = np.ptp(drawn)
    bars = np.max(np.abs(np.diff(drawn, axis=0)))
    seen = "smaller than the markers" if bars < _MARKER_SHARE * extent else "in places larger than the markers"
    return f"Error bars are mean residuals |Hv - lambda v|, at most {np.max(errors):.2g}: {seen}."


def _means(ds: xr.Dataset, name: str) -> np.ndarray:
    return summarise(measured(ds, f"eigenvalue_{name}")).mean.values.ravel()


def _linear_width(ds: xr.Dataset) -> float:
    """Below it the axis is linear, beyond it logarithmic: eigenvalues fall by orders of magnitude along the loop."""
    values = np.abs(measured(ds, "eigenvalue_max").values)
    largest = np.max(values[np.isfinite(values)], initial=0.0)
    return float(largest) / 100 or 1.0


def _edge(ds: xr.Dataset, axes: dict[str, Axes]) -> bool:
    """The line 2/alpha in each panel where it falls on the axis; True when it does in any."""
    shown = False
    for name, ax in axes.items():
        alphas = ds["step_size"].isel(learner=learner_names(ds).index(name)).values
        alphas = np.unique(alphas[np.isfinite(alphas)])
        # Seeds that differ in alpha have no common edge.
        if alphas.size == 1 and 2 / alphas[0] < ax.get_ylim()[1]:
            threshold(ax, 2 / alphas[0])
            shown = True
    return shown
