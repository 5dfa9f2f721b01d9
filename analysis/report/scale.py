"""The table of scale in a report: does curvature fall only because weights grow, or also with filters at unit norm?

g is the gradient of the support loss, H its Hessian, and rho = g'Hg / g'g the curvature along the gradient. "rho
normalised" is rho after each filter has been scaled to norm 1, and alpha is the inner step size.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from analysis.drawing.legend import warm_start_sentence
from analysis.drawing.style import method_label
from analysis.drawing.summary import measured
from analysis.report.page import DASH, TIMES, Child, Html, element, number, row, section, table
from analysis.schema import alpha_steps, shows_training, trained_learners
from analysis.statistics import seed_means

_WHY = (
    "With batch normalisation, growing weights lower H and g by themselves: doubled filters compute the same function "
    "with half the gradient and a quarter of the Hessian. A fall in curvature that remains at unit filter norm is not "
    "due to growing weights. The reverse does not hold, because scaling the filters to unit norm also changes how much "
    "filters and head (the last layer) contribute to the gradient. So a fall that is smaller at unit filter norm is "
    "due to growing weights only as far as the norms in this table have grown."
)
_HEADER = ("Learner", "Quantity", "Step 0", "Ratio", "Later steps", "Ratio")
_FIRST, _LATER = slice(0, 1), slice(1, None)  # inner steps


@dataclass(frozen=True)
class Change:
    """The means of a quantity before and after meta-training; NaN if no task has values at both checkpoints."""

    untrained: float
    trained: float

    @property
    def ratio(self) -> float:
        """Trained over untrained; NaN if the untrained value is not positive, because the ratio would mean nothing."""
        return self.trained / self.untrained if self.untrained > 0 else float("nan")


def change(values: xr.DataArray, steps: slice) -> Change:
    """The change of a quantity from the first checkpoint to the last, averaged over some inner steps.

    values: [seed, checkpoint, task, inner_step], or without tasks for a variable that holds means over tasks.
    steps: the inner steps.

    Both means are taken over the tasks that have finite values at both checkpoints, as for the verdicts, and then over
    the seeds.
    """
    ends = seed_ends(values, steps)
    untrained, trained = (float(side.mean()) if side.size else float("nan") for side in ends)
    return Change(untrained, trained)


def seed_ends(values: xr.DataArray, steps: slice) -> tuple[np.ndarray, np.ndarray]:
    """The means over tasks at the first and at the last checkpoint [seed], of the seeds that have both.

    The arguments are those of ``change``. A task without finite values at both checkpoints is left out of both means.
    """
    values = values if "task" in values.dims else values.expand_dims("task")
    ends = values.isel(checkpoint=[0, -1], inner_step=steps).transpose("checkpoint", "seed", "task", "inner_step")
    # For each seed and task, True if the task has finite values at both checkpoints and at all of the steps.
    on_both_sides = np.isfinite(ends.values).all(axis=(0, 3))
    untrained, trained = (seed_means(np.where(on_both_sides, side.mean(axis=-1), np.nan)) for side in ends.values)
    finite = np.isfinite(untrained)  # the same seeds on both sides, because they have the same tasks
    return untrained[finite], trained[finite]


def scale_section(ds: xr.Dataset) -> list[Html]:
    """The heading, an explanation and the table; empty without a trained learner or without checkpoint 0."""
    if not shows_training(ds):
        return []
    caption = (
        f"Each pair of columns shows untrained \u2192 trained (meta-iteration {int(ds['checkpoint'][-1])}), and the "
        "ratio of trained to untrained. Means are over the steps and tasks of each seed, then over the seeds; tasks "
        "that diverged before or after training are left out. "
        f"{warm_start_sentence(ds)}"
    )
    rows = [line for name in trained_learners(ds) for line in _learner_rows(ds, name)]
    return [section("Scale"), element("p", _WHY), table(_HEADER, rows, caption=caption.rstrip())]


def quantities(ds: xr.Dataset, name: str) -> dict[str, xr.DataArray]:
    """The quantities of a learner in the table, by the names of their rows; without alpha if the learner has none."""
    normalised = measured(ds, "rho_normalised")
    if alpha_steps(ds, name):
        rho = {"alpha rho": measured(ds, "alpha_rho")}
        rho[f"alpha {TIMES} rho normalised (filters at unit norm)"] = ds["step_size"] * normalised
    else:
        rho = {"rho": measured(ds, "rho"), "rho normalised (filters at unit norm)": normalised}
    return rho | {"|Hg| / |g|": measured(ds, "hg_ratio"), "|theta|": measured(ds, "theta_norm")}


def largest_growth(ds: xr.Dataset, learner: str) -> tuple[str, Change]:
    """The weight tensor whose norm at step 0 grew by the largest ratio in meta-training: its name and its change.

    The name is "" if no ratio exists, or if the norms are not measured. Biases are not considered, because they start
    at 0.
    """
    unknown = Change(float("nan"), float("nan"))
    if "layer_norm" not in ds:
        return "", unknown
    layers = ds["layer"].attrs["flag_meanings"].split()
    weights = [index for index, layer in enumerate(layers) if layer.endswith("weight")] or range(len(layers))
    norms = measured(ds, "layer_norm").sel(learner=learner)
    changes = {layers[index]: change(norms.isel(layer=index), _FIRST) for index in weights}
    growths = {layer: growth for layer, growth in changes.items() if np.isfinite(growth.ratio)}
    return max(growths.items(), key=lambda item: item[1].ratio, default=("", unknown))


def _learner_rows(ds: xr.Dataset, name: str) -> list[Html]:
    """The rows of one learner: its quantities, and then the weight tensor that grew most."""
    rows = []
    for quantity, values in quantities(ds, name).items():
        first, later = (change(values.sel(learner=name), steps) for steps in (_FIRST, _LATER))
        rows.append(row((method_label(name), quantity, *_cells(first), *_cells(later))))
    layer, growth = largest_growth(ds, name)
    quantity = f"norm of the layer that grew most: {layer}" if layer else "norms of the layers"
    return [*rows, row((method_label(name), quantity, *_cells(growth), DASH, DASH), css="learner-end")]


def _cells(means: Change) -> tuple[Child, Child]:
    """The cells of a change: both means, and their ratio."""
    levels = f"{number(means.untrained)} \u2192 {number(means.trained)}" if np.isfinite(means.untrained) else DASH
    return element("span", levels, css="num"), number(means.ratio)
