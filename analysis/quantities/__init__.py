"""The quantities that are measured along inner loops.

Each quantity is a function. It takes ``Points`` and returns the values of one or several variables of
``analysis.schema``, in arrays [task, step, ...] or [task, ...].
"""

from collections.abc import Callable

from analysis.quantities.curvature import along_gradient, eigenvalues, random_directions
from analysis.quantities.points import Points, Values
from analysis.quantities.trajectory import gradient_alignment, recorded_values

# Quantities that are computed from the recorded inner loop alone.
TRAJECTORY_QUANTITIES: tuple[Callable[[Points], Values], ...] = (recorded_values, gradient_alignment)
# Quantities that take products with the Hessian; their values are NaN for a task whose inner loop diverged.
CURVATURE_QUANTITIES: tuple[Callable[[Points], Values], ...] = (along_gradient, eigenvalues, random_directions)

__all__ = ["CURVATURE_QUANTITIES", "TRAJECTORY_QUANTITIES", "Points"]
