"""The figures of a study: one module draws one figure, from the study's Dataset and nothing else."""

from collections.abc import Mapping
from types import ModuleType

from analysis.figures import accuracy, alignment, alpha_rho, directions, eigenvalues
from analysis.figures.saving import save

FIGURES: Mapping[str, ModuleType] = {
    module.NAME: module for module in (alpha_rho, eigenvalues, alignment, accuracy, directions)
}
"""Name to module, in the order of the report; each has ``NAME``, ``draw(ds)`` and ``caption(ds)``."""

__all__ = ["FIGURES", "save"]
