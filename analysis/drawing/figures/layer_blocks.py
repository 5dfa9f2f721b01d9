"""How |Hg| / |g| and the trace of each parameter tensor's block of the Hessian change over meta-training."""

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing.figures import layers as maps
from analysis.drawing.figures.study_figure import Choice, Numbers

SHOWN: maps.Maps = {
    "hg_ratio_layer": "|Hg| / |g| of each tensor",
    "trace_layer": "trace of each tensor",
    "hg_ratio_layer_normalised": "|Hg| / |g| at unit filter norm",
    "trace_layer_normalised": "trace at unit filter norm",
}

learners = maps.learners


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return maps.needs(ds, SHOWN)


def numbers(ds: xr.Dataset, choice: Choice) -> Numbers:
    """For each quantity, the ratio of trained to untrained [learner, layer] of each parameter tensor."""
    return maps.numbers(ds, choice, SHOWN)


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw a map of learners and tensors for each quantity, with the ratio of trained to untrained in each cell."""
    return maps.draw(ds, choice, SHOWN)


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also says what H and g of a tensor are."""
    block = "H and g of a tensor are its diagonal block of the Hessian and its part of the gradient."
    return f"{maps.caption(ds, choice, SHOWN)} {block}"
