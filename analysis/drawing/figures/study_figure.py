"""A figure of a study as a function of the study's Dataset, with learners, steps and a width that the user chooses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing.panels import save_table
from analysis.drawing.style import Width, inches_of, labelled
from analysis.drawing.summary import Summary
from analysis.schema import learner_names
from hessian_tools.entries import checked
from hessian_tools.validation import check_choice

if TYPE_CHECKING:
    from analysis.drawing.figures.variable import OverTraining

Numbers = Mapping[str, Summary | xr.DataArray]
"""The numbers that a figure draws, by their names in plain words: means over seeds with bands, or plain numbers."""


@dataclass(frozen=True)
class Choice:
    """What a figure shows of a study.

    learners: their names, in the order in which they are drawn. steps: points of the inner loop; None for all of them.
    width: the width in print; None leaves it to the figure.
    """

    learners: list[str]
    steps: list[int] | None = None
    width: Width | None = None

    def part(self, ds: xr.Dataset) -> xr.Dataset:
        """The chosen part of a study."""
        ds = ds.sel(learner=self.learners)
        return ds if self.steps is None else ds.sel(inner_step=self.steps)


@dataclass(frozen=True, repr=False)
class StudyFigure:
    """A figure of a study; calling it with the Dataset of ``analysis.open_study`` draws it.

    name, title: the figure's name, and what it shows in one line. module: what draws the figure. It is a module of the
    package ``analysis.drawing.figures``, whose docstring lists what such a module has, or an ``OverTraining``, which
    has the same for a variable of the study.

    All methods take the same arguments, so that the same choice makes the picture, its caption and its numbers. Each
    method spells them out, because help and completion in a notebook show only what stands in its signature:
    ds: the study's Dataset.
    learners: the names of the learners that are shown. None takes the figure's own selection, which leaves learners out
        of a large study; the caption then says which are shown. Learners are drawn in the order in which they are
        given.
    steps: the points of the inner loop that are shown, counted from 0; None for all. Only some figures let the user
        choose them.
    labels: other names for learners in legends, titles and captions, such as {"fomaml": "first-order MAML"}. Colours,
        markers and the numbers keep the names of the study.
    width: the width in print: a number of inches, or a name such as "single" (a column), "double" (the full text),
        "icml", "icml-full", "neurips", "iclr" or "jmlr". None leaves it to the number of panels.

    Raises ValueError for a figure that the study has no data for, for an unknown learner, step or width, and for a
    learner of which the figure shows nothing.
    """

    name: str
    module: "ModuleType | OverTraining"
    title: str

    def __repr__(self) -> str:
        return f"<figure {self.name}: {self.title}>"

    def __call__(
        self,
        ds: xr.Dataset,
        *,
        learners: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
        width: Width | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Figure:
        """Draw the figure; it is not registered with pyplot, so it need not be closed."""
        choice = self.choice(ds, learners=learners, steps=steps, width=width, labels=labels)
        with labelled(labels):
            figure: Figure = self.module.draw(ds, choice)
        return figure

    def data(
        self,
        ds: xr.Dataset,
        *,
        learners: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
        width: Width | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> pd.DataFrame:
        """The numbers behind the figure, as a table.

        The column ``quantity`` says what the number is. Columns such as ``learner``, ``checkpoint`` and ``inner_step``
        say where it was measured. ``value`` is the number, for most quantities a mean over tasks and then
        over seeds; ``low`` and ``high`` are the ends of its band over the seeds, and ``seed 0``, ``seed 1``, ... the
        means of single seeds. Numbers that are drawn one by one, such as the eigenvalues of each task, stand in the
        columns of their seeds alone. Numbers that were not measured have no row.
        """
        choice = self.choice(ds, learners=learners, steps=steps, width=width, labels=labels)
        return tabulated(self.module.numbers(ds, choice))

    def save_data(
        self,
        ds: xr.Dataset,
        path_stem: Path | str,
        *,
        learners: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
        width: Width | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Path:
        """Write the numbers of ``data`` as CSV, to six digits; ``path_stem`` is the path without ".csv"."""
        return save_table(self.data(ds, learners=learners, steps=steps, width=width, labels=labels), path_stem)

    def caption(
        self,
        ds: xr.Dataset,
        *,
        learners: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
        width: Width | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """The caption, which says what is drawn, over what the means are, and what the bands and bars are."""
        choice = self.choice(ds, learners=learners, steps=steps, width=width, labels=labels)
        with labelled(labels):
            return str(self.module.caption(ds, choice))

    def needs(self, ds: xr.Dataset) -> str | None:
        """The reason why the figure cannot be drawn of a study; None if it can."""
        reason: str | None = self.module.needs(ds)
        return reason

    def choice(
        self,
        ds: xr.Dataset,
        *,
        learners: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
        width: Width | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Choice:
        """What the figure shows by these arguments; raises ValueError, as a call would, if it cannot be drawn."""
        if (reason := self.needs(ds)) is not None:
            raise ValueError(f"the figure {self.name} cannot be drawn: {reason}")
        if width is not None:
            inches_of(width)  # called for its error if no such width is known
        known = learner_names(ds)
        check_labels(ds, labels)
        choice = Choice(self.module.learners(ds), _steps(ds, self, steps), width)
        if learners is None:
            return choice
        if not learners:
            raise ValueError("learners is empty; give one or more names, such as ['maml']")
        for name in learners:
            check_choice("learner", name, known)
        choice = Choice(list(dict.fromkeys(learners)), choice.steps, width)  # each learner once, in the given order
        has_data = set(tabulated(self.module.numbers(ds, choice)).get("learner", []))
        for name in choice.learners:
            if name not in has_data:
                raise ValueError(f"the figure {self.name} shows nothing of the learner {name}; leave it out")
        return choice


# ``checked`` checks the arguments when a user calls the method, as it does for the library's functions.
for _method in ("__call__", "data", "save_data", "caption"):
    setattr(StudyFigure, _method, checked(vars(StudyFigure)[_method], module=__name__))


def check_labels(ds: xr.Dataset, labels: Mapping[str, str] | None) -> None:
    """Raise ValueError for a label of a learner that the study does not have, and for a label that is no text."""
    known = learner_names(ds)
    for name, label in (labels or {}).items():
        check_choice("labels", name, known)
        if not isinstance(label, str):
            raise ValueError(f"labels has {label!r} for {name}; give a str")


def _steps(ds: xr.Dataset, figure: StudyFigure, steps: Sequence[int] | None) -> list[int] | None:
    """The checked steps, in rising order."""
    if steps is None:
        return None
    if not getattr(figure.module, "HAS_STEPS", False):
        raise ValueError(f"steps={list(steps)}: the figure {figure.name} has no choice of steps; leave steps out")
    last = int(ds["inner_step"].max())
    wrong = [step for step in steps if step not in range(last + 1)]
    if wrong or not steps:
        raise ValueError(f"steps={list(steps)}: give some of the points 0 to {last} of the study's inner loop")
    return sorted({int(step) for step in steps})


def tabulated(numbers: Numbers) -> pd.DataFrame:
    """The table that ``StudyFigure.data`` describes."""
    frames = []
    for quantity, values in numbers.items():
        if isinstance(values, Summary):
            columns = {"value": values.mean, "low": values.low, "high": values.high}
            for seed in values.per_seed["seed"].values:
                columns[f"seed {seed}"] = values.per_seed.sel(seed=seed, drop=True)
        elif "seed" in values.dims:  # values that are drawn one by one
            columns = {f"seed {seed}": values.sel(seed=seed, drop=True) for seed in values["seed"].values}
        else:
            columns = {"value": values}
        # The coordinates that are dropped are the settings of the learners. A Dataset does not fix the order of its
        # dimensions, so without ``dim_order`` the order of rows and columns would differ from one call to the next.
        dataset = xr.Dataset(columns).reset_coords(drop=True)
        frame = dataset.to_dataframe(dim_order=list(next(iter(columns.values())).dims)).reset_index()
        frame = frame.dropna(subset=[name for name in columns if name not in ("low", "high")], how="all")
        frame.insert(0, "quantity", quantity)
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    last = [name for name in table.columns if name in ("value", "low", "high") or name.startswith("seed ")]
    return table[[name for name in table.columns if name not in last] + last]
