"""What a figure shows: whether a study has the figure's variables, and which of its learners are drawn.

A study of twenty learners would fill a panel with lines that cannot be told apart. The rules here leave learners out by
their settings, and ``shown_sentence`` says in the caption which ones are drawn.

SHOT is the penalty on the distance between the ends of few large and of many small inner steps (Lee, Yoo, Kwak 2023);
the coordinate ``dose`` of a study holds its weight. "The penalty" below is another one, on the curvature along the
inner loop; the coordinate ``penalty`` holds its weight. The variants of a learner have the same settings with the
penalty, or with SHOT in further weights.
"""

from collections import Counter

import numpy as np
import xarray as xr

from analysis.drawing.style import method_label
from analysis.schema import learner_names, setting, trained_learners

MAX_LEARNERS = 8
"""The largest number of learners that share a panel as lines, or have panels of their own, before some are left out."""


def lacks(ds: xr.Dataset, *variables: str) -> str | None:
    """The reason why a figure of these variables cannot be drawn; None if each of them has at least one value."""
    for name in variables:
        if name not in ds:
            return f"the study does not measure {name}"
        if not bool(np.isfinite(ds[name]).any()):
            return f"{name} has no value in this study"
    return None


def family(ds: xr.Dataset, name: str) -> str:
    """The label that learners share which differ only in SHOT, the penalty and ``first_order``.

    A Dataset of an earlier version has no such labels. There, the label is the learner's ``base``.
    """
    return str(setting(ds, "family", name) if "family" in ds.coords else base(ds, name))


def base(ds: xr.Dataset, name: str) -> str:
    """The learner with the same settings but without SHOT and without the penalty: itself, if it has neither."""
    return str(setting(ds, "without_intervention", name)) or name


def is_control(ds: xr.Dataset, name: str) -> bool:
    """True for an untrained, supervised or label-shuffled control."""
    return name not in trained_learners(ds) or bool(setting(ds, "control", name))


def without_variants(ds: xr.Dataset) -> list[str]:
    """The learners without those that have the penalty, and with at most one learner with SHOT for each ``base``.

    Of the learners with SHOT that have the same base, the one whose weight is the most common in the study is chosen.
    """
    doses = {name: float(setting(ds, "dose", name)) for name in learner_names(ds)}
    counts = Counter(dose for dose in doses.values() if dose)
    chosen: dict[str, str] = {}  # the learner with SHOT, by its base
    for name, dose in doses.items():
        if dose == 0.0:
            continue
        # Of equally common weights, a positive one goes before a negative one. Of equal ranks, the first learner stays.
        rank = (counts[dose], dose > 0)
        best = chosen.setdefault(base(ds, name), name)
        if rank > (counts[doses[best]], doses[best] > 0):
            chosen[base(ds, name)] = name
    shown = {name for name in doses if doses[name] == 0.0} | set(chosen.values())
    return [name for name in doses if name in shown and not setting(ds, "penalty", name)]


def for_lines(ds: xr.Dataset) -> xr.Dataset:
    """The study with the learners whose lines share a panel: all of them, if they are at most ``MAX_LEARNERS``.

    Otherwise variants are left out, and then, if the rest is still too many, every learner that is neither a control
    nor of the first family.
    """
    names = learner_names(ds)
    if len(names) > MAX_LEARNERS:
        names = without_variants(ds)
    if len(names) > MAX_LEARNERS:
        first = next((name for name in names if not is_control(ds, name)), names[0])
        first_family = family(ds, first)
        names = [name for name in names if is_control(ds, name) or family(ds, name) == first_family]
    return ds.sel(learner=names[:MAX_LEARNERS])


def families(ds: xr.Dataset) -> list[xr.Dataset]:
    """The study in parts whose lines share a panel: the whole study, if its learners are at most ``MAX_LEARNERS``.

    Otherwise there is a part for each family, without variants; all controls are in the first part.
    """
    if ds.sizes["learner"] <= MAX_LEARNERS:
        return [ds]
    names = without_variants(ds)
    parts: dict[str, list[str]] = {}
    for name in names:
        if not is_control(ds, name):
            parts.setdefault(family(ds, name), []).append(name)
    groups = list(parts.values()) or [[]]
    groups[0] = [name for name in names if name in groups[0] or is_control(ds, name)]
    return [ds.sel(learner=group) for group in groups]


def for_panels(ds: xr.Dataset) -> xr.Dataset:
    """The study with the learners that have panels or rows of their own: without variants, if there are many."""
    return ds if ds.sizes["learner"] <= MAX_LEARNERS else ds.sel(learner=without_variants(ds))


def main_learners(ds: xr.Dataset, at_most: int) -> list[str]:
    """The first ``at_most`` trained learners that are no control, from those whose lines share a panel.

    If there are none, they are the first trained ones or, without these, the first ones.
    """
    shown = for_lines(ds)
    names = [name for name in trained_learners(shown) if not is_control(shown, name)]
    return (names or trained_learners(shown) or learner_names(shown))[:at_most]


def shown_sentence(ds: xr.Dataset, shown: list[str]) -> str:
    """The sentence that names the drawn learners of a study; "" if all of its trained learners are drawn."""
    if set(trained_learners(ds) or learner_names(ds)) <= set(shown):
        return ""
    names = ", ".join(map(method_label, shown))
    return f"Of the study's {ds.sizes['learner']} learners this figure shows {names}."
