"""The table of scale: does curvature fall because weights grow, or also in coordinates where they do not?"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from analysis.drawing.legend import warm_start_sentence
from analysis.drawing.style import method_label
from analysis.drawing.summary import measured
from analysis.report.page import DASH, TIMES, Child, Html, element, number, row, table
from analysis.schema import alpha_steps, learner_names, trained_learners
from analysis.statistics import seed_means

_WHY = (
    "With batch normalisation growing weights alone lower H and g: doubled filters compute the same function with half "
    "the gradient and a quarter of the Hessian. A fall that remains at unit filter norm is not that. The reverse does "
    "not hold: at unit norm directions are also weighted otherwise, filters against the head, so a fall that shrinks "
    "there is growth only as far as the norms below have grown."
)
_CAPTION = (
    "Untrained \u2192 trained (meta-iteration {last}), and trained over untrained: means over steps and tasks within a "
    "seed, then over seeds, of tasks that did not diverge on either side."
)


@dataclass(frozen=True)
class Change:
    """The means of a quantity before and after meta-training; NaN where nothing is on both sides."""

    untrained: float
    trained: float

    @property
    def ratio(self) -> float:
        """Trained over untrained; NaN where the untrained value is not positive, as a ratio says nothing there."""
        return self.trained / self.untrained if self.untrained > 0 else float("nan")


def change(values: xr.DataArray, steps: slice) -> Change:
    """From the first to the last checkpoint of [seed, checkpoint, task, inner_step], task by task as verdicts do."""
    ends = values.isel(checkpoint=[0, -1], inner_step=steps).transpose("checkpoint", "seed", "task", "inner_step")
    keep = np.isfinite(ends.values).all(axis=(0, 3))
    per_seed = [seed_means(np.where(keep, side.mean(axis=-1), np.nan)) for side in ends.values]
    finite = np.isfinite(per_seed[0])
    untrained, trained = (float(side[finite].mean()) if finite.any() else float("nan") for side in per_seed)
    return Change(untrained, trained)


def scale_section(ds: xr.Dataset) -> list[Html]:
    """Heading, the reason in a sentence, and the table; nothing in a study without training to speak of."""
    learners = trained_learners(ds)
    if not learners or ds.sizes["checkpoint"] < 2 or int(ds["checkpoint"][0]) != 0:
        return []
    header = ("Learner", "Quantity", "Step 0", "Ratio", "Later steps", "Ratio")
    rows = [line for name in learners for line in _learner_rows(ds, name)]
    caption = _CAPTION.format(last=int(ds["checkpoint"][-1]))
    return [
        element("h2", "Scale"),
        element("p", _WHY),
        table(header, rows, caption=f"{caption} {warm_start_sentence(ds)}".rstrip()),
    ]


def quantities(ds: xr.Dataset, learner: str) -> dict[str, xr.DataArray]:
    """What the table shows of a learner, by the words of its rows; without alpha where its steps have none."""
    if alpha_steps(ds, learner):
        scaled, times = ds["step_size"] * measured(ds, "rho_normalised"), f"alpha {TIMES} "
        along = {"alpha rho": measured(ds, "alpha_rho")}
    else:
        scaled, times, along = measured(ds, "rho_normalised"), "", {"rho": measured(ds, "rho")}
    return along | {
        f"{times}rho normalised (filters at unit norm)": scaled,
        "|Hg| / |g|": measured(ds, "hg_ratio"),
        "|theta|": measured(ds, "theta_norm"),
    }


def largest_growth(ds: xr.Dataset, learner: int) -> tuple[str, Change]:
    """The weight whose norm at step 0 has the largest ratio, with its name; biases, which start at 0, do not count."""
    names = ds["layer"].attrs["flag_meanings"].split()
    weights = [index for index, name in enumerate(names) if name.endswith("weight")] or list(range(len(names)))
    norms = measured(ds, "layer_norm").isel(learner=learner)
    found = {names[index]: change(norms.isel(layer=index), slice(0, 1)) for index in weights}
    known = {name: one for name, one in found.items() if np.isfinite(one.ratio)}
    if not known:
        return "", Change(float("nan"), float("nan"))
    name = max(known, key=lambda layer: known[layer].ratio)
    return name, known[name]


def _learner_rows(ds: xr.Dataset, name: str) -> list[Html]:
    learner = learner_names(ds).index(name)
    label = method_label(name)
    rows = []
    for what, values in quantities(ds, name).items():
        changes = [change(values.isel(learner=learner), steps) for steps in (slice(0, 1), slice(1, None))]
        rows.append(row((label, what, *(cell for one in changes for cell in _cells(one)))))
    layer, growth = largest_growth(ds, learner)
    what = f"largest ratio of a layer's norm: {layer}" if layer else "norms of the layers"
    rows.append(row((label, what, *_cells(growth), DASH, DASH), css="last"))
    return rows


def _cells(one: Change) -> tuple[Child, Child]:
    levels = f"{number(one.untrained)} \u2192 {number(one.trained)}" if np.isfinite(one.untrained) else DASH
    return element("span", levels, css="num"), number(one.ratio)
