"""The figures of a study: one module draws one figure, from the study's Dataset and nothing else."""

from analysis.drawing.figures import accuracy, alignment, alpha_rho, directions, eigenvalues
from analysis.drawing.panels import save

FIGURES = {
    module.__name__.rpartition(".")[2]: module for module in (alpha_rho, eigenvalues, alignment, accuracy, directions)
}
"""Name to module, in the order of the report; each module has ``draw(ds)`` and ``caption(ds)``."""

__all__ = ["FIGURES", "save"]
