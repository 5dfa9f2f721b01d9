"""What tests of drawings share: a study to draw, and finding a line by its name."""

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from simulated_studies import planted_study


def study_to_draw() -> xr.Dataset:
    """Planted, with two units diverged, each of another learner and seed."""
    study = planted_study(tasks=6, evaluation_tasks=8, diverged=[("maml", 0, 3), ("fomaml", 1, 2)])
    study.attrs["ways"] = 5
    return study


def line(ax: Axes, gid: str) -> Line2D:
    """The one line of this name."""
    found = [one for one in ax.lines if one.get_gid() == gid]
    assert len(found) == 1, f"{gid}: {len(found)} lines"
    return found[0]


def axes() -> Axes:
    return Figure(layout="constrained").subplots()
