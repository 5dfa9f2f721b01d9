"""Draws several studies over each other: one panel for each quantity, one colour and marker for each study.

Alpha rho is the inner step size alpha times rho, the curvature of the support loss along its gradient.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels
from analysis.drawing.references import training_axis
from analysis.drawing.style import MethodStyle, method_label, shade
from analysis.drawing.summary import measured, summarise
from analysis.evaluation import evaluation_scores, has_accuracy

MARKERS = "o^sDvP"


def _mean_over_steps(ds: xr.Dataset, name: str, steps: slice) -> xr.DataArray:
    """The mean of a variable over some inner steps; NaN in a study that did not measure it."""
    values = measured(ds, name) if name in ds else measured(ds, "alpha_rho") * np.nan
    return values.isel(inner_step=steps).mean("inner_step")


# The quantities by their labels; each is a function of a study's Dataset with the dimensions learner, seed, checkpoint
# and, for a quantity along the inner loop, task. Step 0 and later steps are never averaged into one number.
QUANTITIES: Mapping[str, Callable[[xr.Dataset], xr.DataArray]] = {
    rf"{label}, {words}": partial(_mean_over_steps, name=name, steps=steps)
    for label, name in ((r"$\alpha\rho$", "alpha_rho"), (r"$\alpha\,|Hg|\,/\,|g|$", "alpha_hg_ratio"))
    for words, steps in (("step 0", slice(0, 1)), ("later steps", slice(1, None)))
} | {"query accuracy": evaluation_scores}


def styles(studies: Mapping[str, xr.Dataset]) -> dict[str, MethodStyle]:
    """A colour, from dark to light, and a marker for each study."""
    return {
        name: MethodStyle(shade(index, len(studies) - 1), MARKERS[index % len(MARKERS)], "-")
        for index, name in enumerate(studies)
    }


def draw(studies: Mapping[str, xr.Dataset], learner: str) -> Figure:
    """Draw the means of one learner over meta-training in every study, with a band over the seeds of each.

    studies: the Datasets by the names of the studies, each of which has the learner.
    The accuracy is left out if a study has none, because a loss has another scale. A quantity that no study has is
    left out too, such as alpha rho of a learner whose steps are not alpha times the gradient.
    """
    parts = [ds.sel(learner=[learner]) for ds in studies.values()]
    quantities = {
        label: quantity
        for label, quantity in QUANTITIES.items()
        if any(bool(quantity(part).notnull().any()) for part in parts)
    }
    if not all(has_accuracy(ds) for ds in studies.values()):
        quantities.pop("query accuracy", None)
    looks = styles(studies)
    with panels.grid(len(quantities), xlabel="meta-iteration", share_y=False) as (figure, axes):
        for (label, quantity), ax in zip(quantities.items(), axes, strict=True):
            for name, ds in studies.items():
                summary = summarise(quantity(ds.sel(learner=[learner]))).at(learner=0)
                curves.curve(ax, ds["checkpoint"].values, summary, style=looks[name], name=name)
            training_axis(ax, np.unique(np.concatenate([ds["checkpoint"].values for ds in studies.values()])))
            ax.set_title(label)
        entries = [legend.entry(name, color=look.color, marker=look.marker) for name, look in looks.items()]
        panels.outside_legends(figure, entries, [])
    return figure


def caption(studies: Mapping[str, xr.Dataset], learner: str) -> str:
    """The caption of a figure that ``draw`` made."""
    counts = {name: summarise(measured(ds.sel(learner=[learner]), "rho")).num_seeds for name, ds in studies.items()}
    return (
        f"{method_label(learner)} in each study, over meta-training: means over the tasks of each seed, then over the "
        "seeds. The bands are the range over the seeds, or with five or more seeds their 95 % Student t interval; thin "
        f"lines are single seeds. Seeds: {'; '.join(f'{name} {num}' for name, num in counts.items())}."
    )
