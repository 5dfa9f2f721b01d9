"""Sentences that captions share: how many seeds and tasks, what the band is, what diverged."""

import xarray as xr

from analysis.plots.summary import MOST_SEEDS_SHOWN, diverged_units, seeds_with_values, tasks_per_seed
from analysis.schema import begun_elsewhere, why_no_alpha
from analysis.style import method_label


def sample(values: xr.DataArray) -> str:
    """'Means over 16 held-out tasks within each of 3 seeds, then over the seeds.'"""
    seeds = seeds_with_values(values)
    tasks = tasks_per_seed(values)
    if seeds < 2:
        return f"Means over {tasks} held-out tasks of one seed."
    return f"Means over {tasks} held-out tasks within each of {seeds} seeds, then over the seeds."


def band(values: xr.DataArray) -> str:
    """What the bands are, as a sentence."""
    seeds = seeds_with_values(values)
    if seeds < 2:
        return "There is one seed, so there is no band: nothing here shows how seeds differ."
    if seeds > MOST_SEEDS_SHOWN:
        return f"Bands are 95 % Student t intervals of the mean over {seeds} seeds, point by point."
    return f"Bands are the range over the {seeds} seeds, not a confidence interval; thin lines are single seeds."


def begun(ds: xr.Dataset) -> str:
    """Whose start is not the untrained network; starts with a space, empty where there is no such learner."""
    names = ", ".join(map(method_label, begun_elsewhere(ds)))
    said = f" Of {names} the start is not the untrained network but the trained one of another learner."
    return said if names else ""


def no_alpha(ds: xr.Dataset) -> str:
    """Which learners are not drawn, as they have no alpha; starts with a space, empty where all have one."""
    why = why_no_alpha(ds)
    if not why:
        return ""
    told = "; ".join(f"{method_label(name)}, {words}" for name, words in why.items())
    return f" Not drawn, as their inner steps are not alpha times the gradient: {told}."


def diverged(ds: xr.Dataset) -> str:
    """How many task units (learner x seed x checkpoint x task) diverged."""
    counts, tried = diverged_units(ds)
    lost = int(counts.sum())
    if lost == 0:
        return f"None of the {tried} task units (learner x seed x checkpoint x task) diverged."
    verb = "is" if lost == 1 else "are"
    return f"{lost} of {tried} task units (learner x seed x checkpoint x task) diverged and {verb} not in the means."
