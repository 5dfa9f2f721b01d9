"""The figures of a study: each module draws one figure, from the study's Dataset alone.

A module has ``draw(ds, choice)``, ``caption(ds, choice)`` and ``numbers(ds, choice)``, what is drawn; ``learners(ds)``,
the learners that are shown unless the user chooses others; ``HAS_STEPS``, whether points of the inner loop can be
chosen; and ``needs(ds)``: the reason why a study's figure cannot be drawn, or None. ``study_figure`` makes a function
of each module, which checks what the user chose; ``analysis.figures`` has these functions by name.
"""

from collections.abc import Mapping

import xarray as xr

from analysis.drawing.figures import (
    accuracy,
    alignment,
    alpha_rho,
    curvature_accuracy,
    directions,
    dose_response,
    edge_of_stability,
    eigenvalues,
    layers,
    loss_surfaces,
    meta_gradients,
    spectra,
)
from analysis.drawing.figures.study_figure import StudyFigure
from analysis.drawing.panels import save

FIGURES: Mapping[str, StudyFigure] = {
    name: StudyFigure(name, module)
    for module in (
        alpha_rho,
        eigenvalues,
        alignment,
        accuracy,
        directions,
        curvature_accuracy,
        dose_response,
        meta_gradients,
        edge_of_stability,
        spectra,
        layers,
        loss_surfaces,
    )
    for name in (module.__name__.rpartition(".")[2],)
}
"""The figures by their names, in the order of the report."""


def figures_of(ds: xr.Dataset) -> dict[str, StudyFigure]:
    """The figures for which a study has variables and learners."""
    return {name: figure for name, figure in FIGURES.items() if figure.needs(ds) is None}


def left_out(ds: xr.Dataset) -> dict[str, str]:
    """The figures that cannot be drawn of a study, and why."""
    return {name: reason for name, figure in FIGURES.items() if (reason := figure.needs(ds)) is not None}


__all__ = ["FIGURES", "StudyFigure", "figures_of", "left_out", "save"]
