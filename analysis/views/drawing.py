"""``plot``: the picture that belongs to a result."""

from collections.abc import Callable
from functools import partial
from typing import Any

import xarray as xr
from matplotlib.axes import Axes

from analysis import style
from analysis.views.along import along
from analysis.views.density import density
from analysis.views.eigenvalues import eigenvalues
from analysis.views.estimates import estimate
from analysis.views.findings import findings
from analysis.views.gram import gram
from analysis.views.labelled import to_xarray
from analysis.views.trajectory import trajectory

PLOTS: dict[str, Callable[..., Axes]] = {
    "AlongGradient": along,
    "Check": findings,
    "Density": density,
    "EigenPairs": eigenvalues,
    "Estimate": estimate,
    "Extremes": eigenvalues,
    "Moments": partial(estimate, name="trace"),
    "Spectrum": gram,
    "Trajectory": trajectory,
}


def plot(result: Any, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw a result, or the Dataset that ``to_xarray`` made of it, with its errors; returns the axes.

    ax: None makes a figure one column wide in the house style, which a notebook shows. options: of the plot of its
    kind, such as ``names=["displacement"]`` for a Trajectory or ``name="frobenius_squared"`` for Moments. Labels of
    points: ``plot(to_xarray(result, dims=["inner_step"]))``. Raises TypeError for a kind that has no plot.
    """
    ds = result if isinstance(result, xr.Dataset) else to_xarray(result)
    kind = ds.attrs.get("kind")
    if kind not in PLOTS:
        raise TypeError(f"no plot for {kind or 'a Dataset that to_xarray did not make'}; there are {', '.join(PLOTS)}")
    if ax is None:
        import matplotlib.pyplot as plt  # here: it chooses a backend, and only a figure of our own needs one

        with style.context():
            return PLOTS[kind](ds, plt.subplots()[1], **options)
    return PLOTS[kind](ds, ax, **options)
