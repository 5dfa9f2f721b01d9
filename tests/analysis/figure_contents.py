"""Helpers that the tests of drawings share: a study to draw, axes to draw on, and access to a line by its gid."""

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from simulated_studies import simulated_study


def study_to_draw() -> xr.Dataset:
    """A simulated study of untrained, maml, maml-shot and fomaml, in this order, with seeds 0, 1 and 2.

    Two of its inner loops diverged: one of maml in seed 0, and one of fomaml in seed 1.
    """
    diverged = [("maml", 0, 3), ("fomaml", 1, 2)]  # (learner, seed, task)
    study = simulated_study(tasks=6, evaluation_tasks=8, diverged=diverged)
    study.attrs["ways"] = 5
    return study


def line(ax: Axes, gid: str) -> Line2D:
    """The line with this gid, the name that a drawing gave to it. Fails unless there is exactly one."""
    lines = [line for line in ax.lines if line.get_gid() == gid]
    assert len(lines) == 1, f"{len(lines)} lines have the gid {gid}, not 1"
    return lines[0]


def axes() -> Axes:
    """Axes of a new figure."""
    return Figure(layout="constrained").subplots()
