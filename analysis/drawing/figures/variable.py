"""A variable of a study over meta-training, for variables that have no figure of their own.

``analysis.figures.variable`` makes a figure of a variable, and the report has one for each variable that a quantity of
the user's own has measured.
"""

from dataclasses import dataclass
from textwrap import wrap

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, selection
from analysis.drawing.figures.study_figure import Choice, Numbers
from analysis.drawing.summary import Summary, diverged_units, measured, summarise
from analysis.quantities import bundled_variables
from analysis.schema import learner_names

DIMS = ("learner", "seed", "checkpoint", "task", "inner_step")
"""The dimensions that a variable may have; the last one may be missing."""
LABEL_WIDTH = 32
"""The number of characters after which the label of the y axis is broken into lines."""
WIDE = 30.0
"""The ratio of the largest value to the smallest positive one from which the y axis is logarithmic."""


def drawable_variables(ds: xr.Dataset) -> list[str]:
    """The variables with one number for every task, or for every point of a task's inner loop.

    Variables that hold the error of another variable are left out.
    """
    errors = {variable.attrs.get("error_variable") for variable in ds.data_vars.values()}
    return [
        str(name)
        for name, variable in ds.data_vars.items()
        if set(variable.dims) in (set(DIMS), set(DIMS[:-1])) and variable.dtype.kind == "f" and name not in errors
    ]


def own_variables(ds: xr.Dataset) -> list[str]:
    """The drawable variables that no quantity of the package measures."""
    return [name for name in drawable_variables(ds) if name not in bundled_variables()]


@dataclass(frozen=True)
class OverTraining:
    """The figure of one variable, with the same functions as the modules that draw the other figures.

    meaning: what the variable is, in words.
    HAS_STEPS: whether the variable has a value at each point of the inner loop, so that points can be chosen.
    """

    variable: str
    meaning: str
    HAS_STEPS: bool

    def needs(self, ds: xr.Dataset) -> str | None:
        """The reason why the figure cannot be drawn; None if it can."""
        return selection.lacks(ds, self.variable)

    def learners(self, ds: xr.Dataset) -> list[str]:
        """The learners that are shown by default: all of a small study, or as many as share a panel legibly."""
        return learner_names(selection.for_lines(ds))

    def numbers(self, ds: xr.Dataset, choice: Choice) -> Numbers:
        """The variable's means of each learner at each checkpoint and inner step."""
        return {self.variable: self._summary(choice.part(ds))}

    def draw(self, ds: xr.Dataset, choice: Choice) -> Figure:
        """Draw one panel, or one for each point of the inner loop."""
        last = int(ds["inner_step"].max())
        ds = choice.part(ds)
        summary = self._summary(ds)
        num_diverged, num_tried = diverged_units(ds)
        num_panels = ds.sizes["inner_step"] if self.HAS_STEPS else 1
        with panels.grid(num_panels, xlabel="meta-iteration", row_height=1.75, width=choice.width) as (figure, axes):
            if self.HAS_STEPS:
                curves.over_training_by_step(ds, axes, summary, num_diverged=num_diverged, last=last)
            else:
                curves.over_training(ds, axes[0], summary, num_diverged=num_diverged)
            _scale(axes, summary)
            panels.left_labels(axes, "\n".join(wrap(self.meaning, LABEL_WIDTH)))
            notes = legend.notes(summary.per_seed, num_diverged, num_tried)
            panels.outside_legends(figure, legend.learner_entries(ds), notes)
        return figure

    def caption(self, ds: xr.Dataset, choice: Choice) -> str:
        """Return the caption, which also says what the means and bands are, and how many units diverged."""
        drawn = choice.part(ds)
        where = ", at each point of the inner loop," if self.HAS_STEPS else ""
        return legend.caption_of(
            drawn,
            measured(drawn, self.variable),
            f"{self.meaning[:1].upper()}{self.meaning[1:]} ({self.variable}){where} against the meta-iteration.",
            selection.shown_sentence(ds, choice.learners),
        )

    def _summary(self, ds: xr.Dataset) -> Summary:
        """The means of the variable over the tasks of each seed and over the seeds."""
        return summarise(measured(ds, self.variable))


def over_training(ds: xr.Dataset, name: str) -> OverTraining:
    """The figure of the variable ``name``, which is one of ``drawable_variables``."""
    variable = ds[name]
    return OverTraining(name, str(variable.attrs.get("long_name", name)), "inner_step" in variable.dims)


def _scale(axes: list[Axes], summary: Summary) -> None:
    """Make the y axis logarithmic if all numbers drawn are positive and span more than a factor of ``WIDE``."""
    low, high = summary.span
    if np.isfinite([low, high]).all() and low > 0 and high / low > WIDE:
        for ax in axes:
            ax.set_yscale("log")
