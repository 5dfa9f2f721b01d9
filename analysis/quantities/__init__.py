"""The registry of measured quantities, one concept a file."""

from analysis.quantities.alignment import ALIGNMENT
from analysis.quantities.eigenvalues import EIGENVALUES
from analysis.quantities.gradient import GRADIENT
from analysis.quantities.path import PATH
from analysis.quantities.points import Points
from analysis.quantities.quantity import Quantity
from analysis.quantities.random_directions import RANDOM_DIRECTIONS

QUANTITIES: tuple[Quantity, ...] = (PATH, ALIGNMENT, GRADIENT, EIGENVALUES, RANDOM_DIRECTIONS)

__all__ = ["QUANTITIES", "Points", "Quantity"]
