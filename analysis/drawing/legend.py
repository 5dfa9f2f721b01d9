"""The words of a figure: its legend entries, and the sentences that captions have in common.

A task unit is one task of one seed, for one learner at one checkpoint. A state is a learner at the first or the last
checkpoint at which it was measured (``curves.LearnerState``). ``seeds_with_values`` counts all seeds of a quantity;
``seed_counts`` is a text such as "5-10", because learners may have different numbers of seeds.
"""

from collections.abc import Collection, Sequence
from typing import Any

import xarray as xr
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.drawing.curves import (
    BAND_ALPHA,
    QuantityLook,
    first_and_last_states,
    learner_style,
    panel_learners,
    untrained_learners,
)
from analysis.drawing.style import CONTROL_STYLE, DARK, GREY, method_label
from analysis.drawing.summary import MAX_SEEDS_SHOWN, diverged_units, seed_counts, seeds_with_values, tasks_per_seed
from analysis.schema import begun_elsewhere, learner_names, why_no_alpha

# ---- legend entries


def entry(label: str, **look: Any) -> Line2D:
    """A legend entry for a line or marker; ``look`` holds its properties, as matplotlib's ``Line2D`` takes them."""
    return Line2D([], [], label=label, **look)


def learner_entries(ds: xr.Dataset, *, with_lines: Collection[str] | None = None) -> list[Artist]:
    """One entry for each learner.

    with_lines: the learners that have a line in the panels, in a figure where every learner has a marker. None for a
        figure in which every learner has a line, with markers on it unless the learner is an untrained control.
    """
    entries: list[Artist] = []
    for name in learner_names(ds):
        style = learner_style(ds, name)
        is_line = with_lines is None or name in with_lines
        is_marker = with_lines is not None or name not in untrained_learners(ds)
        look = {"linestyle": style.linestyle if is_line else "none", "marker": style.marker if is_marker else ""}
        entries.append(entry(method_label(name), color=style.color, **look))
    return entries


def training_entries(ds: xr.Dataset, untrained_lines: Sequence[Line2D]) -> list[Artist]:
    """The entries of a figure over meta-training: the untrained networks of all panels, then the learners.

    Each label is shown once.
    """
    return list({str(artist.get_label()): artist for artist in (*untrained_lines, *learner_entries(ds))}.values())


def state_entries(ds: xr.Dataset, values: xr.DataArray) -> list[Artist]:
    """The legend entries of the first and the last states that are drawn.

    The marker of the first states is grey and open, as in the panels. That of the last states is filled and dark, which
    stands for the colours of all learners.
    """
    drawn = [state for name in panel_learners(ds) for state in first_and_last_states(ds, values, name)]
    entries: list[Artist] = []
    for is_first in (True, False):
        iterations = {int(ds["checkpoint"][state.checkpoint]) for state in drawn if state.is_first is is_first}
        if not iterations:
            continue
        which = "first" if is_first else "last"
        label = f"meta-iteration {min(iterations)}" if len(iterations) == 1 else f"each learner's {which} checkpoint"
        look: dict[str, Any]
        if is_first:
            look = {"color": GREY, "linestyle": CONTROL_STYLE.linestyle, "markerfacecolor": "white"}
            # A learner that begins from another learner's checkpoint is not untrained at meta-iteration 0.
            if iterations == {0} and not set(begun_elsewhere(ds)) & set(panel_learners(ds)):
                label = "untrained"
        else:
            look = {"color": DARK, "linestyle": "none"}
            label += " (in the learner's colour)"
        entries.append(entry(label, marker="o", markersize=4.5, **look))
    return entries


def quantity_entries(looks: dict[str, QuantityLook]) -> list[Artist]:
    """The legend entries of the quantities that share a panel; they are black, because colours stand for methods."""
    return [entry(look.label, color="black", marker=look.marker, linestyle=look.linestyle) for look in looks.values()]


def notes(
    values: xr.DataArray,
    num_diverged: xr.DataArray,
    num_tried: int,
    *,
    what: str = "task units",
    has_crosses: bool = True,
) -> list[Artist]:
    """The legend entries that explain the bands over the seeds of ``values`` and, if any unit diverged, how many did.

    The other arguments are those of :func:`diverged_notes`.
    """
    band = Patch(color="black", alpha=BAND_ALPHA, linewidth=0, label=band_label(values))
    return [band, *diverged_notes(num_diverged, num_tried, what=what, has_crosses=has_crosses)]


def diverged_notes(
    num_diverged: xr.DataArray, num_tried: int, *, what: str = "task units", has_crosses: bool = True
) -> list[Artist]:
    """The legend entry that says how many units diverged; none if no unit did.

    num_diverged: the number of diverged units for each learner and checkpoint. num_tried: the number of all units.
    what: the word for units. has_crosses: True if the figure has a cross at each mean from which diverged units are
        missing.
    """
    if not int(num_diverged.sum()):
        return []
    label = f"{int(num_diverged.sum())} of {num_tried} {what} diverged: not in the means"
    look: dict[str, Any] = {"linestyle": "none", "markersize": 6, "markeredgewidth": 1.1}
    return [entry(label, color=GREY, marker="x" if has_crosses else "", **look)]


def band_label(values: xr.DataArray) -> str:
    """The legend text that explains the band and the thin lines of a summary over the seeds of ``values``."""
    num_seeds = seeds_with_values(values)
    if num_seeds < 2:
        return "one seed: no band"
    if num_seeds > MAX_SEEDS_SHOWN:
        return f"band: 95% t interval over {seed_counts(values)} seeds"
    return f"band: range over {seed_counts(values)} seeds; thin lines: each seed"


# ---- sentences of captions


def caption_of(ds: xr.Dataset, values: xr.DataArray, *sentences: str, diverged: str | None = None) -> str:
    """A caption: the given sentences, followed by those that every caption needs.

    The latter say over how many seeds and tasks the means of ``values`` are taken, what the bands are, how many task
    units diverged, and which learners start from another learner's network. ``diverged`` replaces the sentence on
    diverged units in a figure that does not draw task units.
    """
    on_divergence = diverged_sentence(ds) if diverged is None else diverged
    return joined(*sentences, _sample_sentence(values), _band_sentence(values), on_divergence, warm_start_sentence(ds))


def joined(*sentences: str) -> str:
    """The sentences as one text, without those that are empty."""
    return " ".join(sentence for sentence in sentences if sentence)


def diverged_sentence(ds: xr.Dataset) -> str:
    """The sentence that says how many task units diverged."""
    num_diverged, num_tried = diverged_units(ds)
    total = int(num_diverged.sum())
    if total == 0:
        return f"None of the {num_tried} task units (learner x seed x checkpoint x task) diverged."
    verb = "is" if total == 1 else "are"
    units = f"{num_tried} task units (learner x seed x checkpoint x task)"
    return f"{total} of {units} diverged and {verb} not in the means."


def warm_start_sentence(ds: xr.Dataset) -> str:
    """The sentence that names the learners which start from another learner's trained network; "" if none does."""
    names = ", ".join(map(method_label, begun_elsewhere(ds)))
    return f"The start of {names} is not the untrained network but the trained one of another learner." if names else ""


def no_alpha_sentence(ds: xr.Dataset) -> str:
    """The sentence on the learners that are not drawn because no single step size alpha scales all their inner steps.

    "" if there are none.
    """
    reasons = "; ".join(f"{method_label(name)}, {reason}" for name, reason in why_no_alpha(ds).items())
    return f"Learners whose inner steps are not alpha times the gradient are not drawn: {reasons}." if reasons else ""


def _sample_sentence(values: xr.DataArray) -> str:
    """The sentence on means: 'Means are over 16 held-out tasks within each of 3 seeds, then over the seeds.'"""
    seeds, tasks = seeds_with_values(values), tasks_per_seed(values)
    if seeds < 2:
        return f"Means are over {tasks} held-out tasks of one seed."
    return f"Means are over {tasks} held-out tasks within each of {seed_counts(values)} seeds, then over the seeds."


def _band_sentence(values: xr.DataArray) -> str:
    """The sentence on bands over seeds, whose kind depends on the number of seeds."""
    seeds, counts = seeds_with_values(values), seed_counts(values)
    if seeds < 2:
        return "There is one seed, so there is no band, and nothing in this figure shows how seeds differ."
    if seeds > MAX_SEEDS_SHOWN:
        return f"Bands are 95 % Student t intervals of the mean over {counts} seeds, point by point."
    return f"Bands are the range over the {counts} seeds, not a confidence interval; thin lines are single seeds."
