"""Extreme eigenvalues, each with the residual that bounds its error."""

from analysis.quantities.points import Points
from analysis.quantities.quantity import Quantity, Values
from hessian_tools.curvature import extremal_eigenpairs


def measure(points: Points) -> Values:
    """One Lanczos run a point serves the largest by magnitude and both algebraic ends."""
    level = points.level
    found = extremal_eigenpairs(
        points.hessian,
        magnitude=level.eigenvalues,
        ends=1,
        rtol=level.tolerance,
        seed=points.seed,
        max_matvecs=level.max_matvecs,
    )
    largest, smallest = found.largest, found.smallest
    values = {
        "eigenvalue": found.magnitude.values,
        "eigenvalue_residual": found.magnitude.residuals,
        "eigenvalue_max": largest.values[..., 0],
        "eigenvalue_max_residual": largest.residuals[..., 0],
        "eigenvalue_min": smallest.values[..., 0],
        "eigenvalue_min_residual": smallest.residuals[..., 0],
    }
    return {name: points.unflatten(value) for name, value in values.items()}


EIGENVALUES = Quantity(
    "eigenvalues",
    (
        "eigenvalue",
        "eigenvalue_residual",
        "eigenvalue_max",
        "eigenvalue_max_residual",
        "eigenvalue_min",
        "eigenvalue_min_residual",
    ),
    "Lanczos 1950; Paige 1972 on residuals",
    measure,
)
