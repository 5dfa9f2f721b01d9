"""An inner loop: any of its numbers over the inner steps, each task a line."""

from collections.abc import Sequence
from typing import Any

import xarray as xr
from matplotlib.axes import Axes

from analysis.plots.along_steps import step_axis
from analysis.style import DARK, GREY, Line
from analysis.views.series import legend
from analysis.views.units import label

LOOKS: tuple[tuple[str, Line], ...] = ((DARK, "-"), (GREY, "--"))


def trajectory(ds: xr.Dataset, ax: Axes, *, names: Sequence[str] = ("support_loss", "query_loss")) -> Axes:
    """One or two variables of a Trajectory over the inner steps, of one unit; every task is drawn, thin if many."""
    if not 1 <= len(names) <= len(LOOKS):
        raise ValueError(f"names={list(names)}: give one or two variables, such as 'support_loss'")
    for name, (color, linestyle) in zip(names, LOOKS, strict=False):
        tasks = ds[name].transpose(..., "inner_step").values.reshape(-1, ds.sizes["inner_step"])
        look: dict[str, Any] = {"color": color, "linestyle": linestyle, "linewidth": 1.2 if len(tasks) < 5 else 0.6}
        for place, values in enumerate(tasks):
            text = name.replace("_", " ") if place == 0 else None
            ax.plot(ds["inner_step"].values, values, label=text, gid=f"{name}:{place}", marker="o", **look)
    units = {ds[name].attrs["units"] for name in names}
    ax.set_xlabel("inner step")
    ax.set_ylabel(label(" and ".join(name.replace("_", " ") for name in names), units.pop()))
    step_axis(ax, ds.sizes["inner_step"])
    return legend(ax)
