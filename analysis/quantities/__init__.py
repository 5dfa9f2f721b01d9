"""The quantities that are measured along inner loops, from the recorded trajectory or by products with the Hessian."""

from analysis.quantities.curvature import EIGENVALUES, GRADIENT, RANDOM_DIRECTIONS
from analysis.quantities.points import Points, Quantity
from analysis.quantities.trajectory import ALIGNMENT, PATH

QUANTITIES: tuple[Quantity, ...] = (PATH, ALIGNMENT, GRADIENT, EIGENVALUES, RANDOM_DIRECTIONS)

__all__ = ["QUANTITIES", "Points", "Quantity"]
