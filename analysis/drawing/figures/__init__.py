"""The figures of a study: each module draws one figure, from the study's Dataset alone."""

from analysis.drawing.figures import accuracy, alignment, alpha_rho, directions, eigenvalues
from analysis.drawing.panels import save

FIGURES = {
    module.__name__.rpartition(".")[2]: module for module in (alpha_rho, eigenvalues, alignment, accuracy, directions)
}
"""The modules by the names of their figures, in the order of the report; each has ``draw(ds)`` and ``caption(ds)``."""

__all__ = ["FIGURES", "save"]
