"""The figures of a study: each module draws one figure, from the study's Dataset alone.

The first line of a module's docstring is the title of its figure. Each module has:

- ``draw(ds, choice)`` and ``caption(ds, choice)``;
- ``numbers(ds, choice)``: the numbers that are drawn;
- ``learners(ds)``: the learners that are shown unless the user chooses others;
- ``HAS_STEPS = True``, if the user can choose which points of the inner loop are shown;
- ``needs(ds)``: the reason why a study's figure cannot be drawn, or None.

A ``StudyFigure`` makes a module callable and checks what the user chose. ``analysis.figures`` has these objects by
name.
"""

from collections.abc import Mapping
from importlib import import_module

import xarray as xr

from analysis.drawing.figures.study_figure import StudyFigure
from analysis.drawing.figures.variable import drawable_variables, over_training, own_variables
from analysis.drawing.panels import save
from hessian_tools.validation import did_you_mean, some_of

_NAMES = (
    *("alpha_rho", "eigenvalues", "alignment", "accuracy", "directions", "curvature_loss", "curvature_accuracy"),
    *("alpha_sweep", "dose_response", "meta_gradients", "edge_of_stability", "spectra", "layers", "layer_blocks"),
    "loss_surfaces",
)
_MODULES = {name: import_module(f"{__name__}.{name}") for name in _NAMES}
FIGURES: Mapping[str, StudyFigure] = {
    name: StudyFigure(name, module, str(module.__doc__).splitlines()[0]) for name, module in _MODULES.items()
}
"""The figures by their names, in the order of the report."""


def figures_of(ds: xr.Dataset) -> dict[str, StudyFigure]:
    """The figures for which a study has variables and learners.

    Those of ``FIGURES`` come first, and then one for each variable that a quantity of the user's own has measured.
    """
    drawable = {name: figure for name, figure in FIGURES.items() if figure.needs(ds) is None}
    own = {name: variable(ds, name) for name in own_variables(ds) if name not in FIGURES}
    return drawable | {name: figure for name, figure in own.items() if figure.needs(ds) is None}


def variable(ds: xr.Dataset, name: str) -> StudyFigure:
    """The figure of any variable over meta-training: ``variable(ds, "theta_norm")(ds, learners=["maml"])``.

    ds: the Dataset of ``analysis.open_study``.
    name: a variable with a number for every task of a checkpoint, or for every point of a task's inner loop. In the
        second case the figure has a panel for each point.
    Raises ValueError for another name.
    """
    if name not in ds.data_vars:
        raise ValueError(f"the study has no variable {name!r}{did_you_mean(name, drawable_variables(ds))}")
    if name not in drawable_variables(ds):
        dims = ", ".join(map(str, ds[name].dims))
        known = some_of(drawable_variables(ds), at_most=30)
        raise ValueError(f"{name} [{dims}] is not one number for each task or step; draw one of {known}")
    parts = over_training(ds, name)
    return StudyFigure(name, parts, f"{parts.meaning[:1].upper()}{parts.meaning[1:]}, over meta-training.")


def left_out(ds: xr.Dataset) -> dict[str, str]:
    """The figures that cannot be drawn of a study, and why."""
    return {name: reason for name, figure in FIGURES.items() if (reason := figure.needs(ds)) is not None}


__all__ = ["FIGURES", "StudyFigure", "figures_of", "left_out", "save", "variable"]
