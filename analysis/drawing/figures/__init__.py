"""The figures of a study: each module draws one figure, from the study's Dataset alone."""

from collections.abc import Mapping
from types import ModuleType

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
from analysis.drawing.panels import save

FIGURES: Mapping[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
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
}
"""The modules by the names of their figures, in the order of the report.

Each has ``draw(ds)``, ``caption(ds)`` and ``needs(ds)``: the reason why a study's figure cannot be drawn, or None.
"""


def figures_of(ds: xr.Dataset) -> dict[str, ModuleType]:
    """The figures for which a study has variables and learners."""
    return {name: module for name, module in FIGURES.items() if module.needs(ds) is None}


def left_out(ds: xr.Dataset) -> dict[str, str]:
    """The figures that cannot be drawn of a study, and why."""
    return {name: str(module.needs(ds)) for name, module in FIGURES.items() if module.needs(ds) is not None}


__all__ = ["FIGURES", "figures_of", "left_out", "save"]
