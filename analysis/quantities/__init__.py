"""The registry of measured quantities: read off the trajectory, or measured by products with the Hessian."""

from analysis.quantities.curvature import EIGENVALUES, GRADIENT, RANDOM_DIRECTIONS
from analysis.quantities.points import Points, Quantity
from analysis.quantities.trajectory import ALIGNMENT, PATH

QUANTITIES: tuple[Quantity, ...] = (PATH, ALIGNMENT, GRADIENT, EIGENVALUES, RANDOM_DIRECTIONS)

__all__ = ["QUANTITIES", "Points", "Quantity"]
