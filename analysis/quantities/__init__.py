"""The quantities that are measured along inner loops.

Each is a function from ``Points`` to the values of one or several variables of ``analysis.schema``, which are
[task, step, ...] or [task, ...].
"""

from collections.abc import Callable

from analysis.quantities.curvature import along_gradient, eigenvalues, random_directions
from analysis.quantities.points import Points, Values
from analysis.quantities.trajectory import gradient_alignment, path

# From the recorded inner loop alone.
OF_TRAJECTORY: tuple[Callable[[Points], Values], ...] = (path, gradient_alignment)
# By products with the Hessian; these values are NaN for a task whose inner loop diverged.
OF_CURVATURE: tuple[Callable[[Points], Values], ...] = (along_gradient, eigenvalues, random_directions)

__all__ = ["OF_CURVATURE", "OF_TRAJECTORY", "Points"]
