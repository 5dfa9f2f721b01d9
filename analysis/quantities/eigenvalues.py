"""The eigenvalues at both ends of the Hessian's spectrum, also beside the step size and the curvature along g."""

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable
from hessian_tools.curvature import curvature_along


def measure(points: Points) -> Values:
    """The eigenvalues of largest magnitude, the largest and the smallest algebraic one, and two ratios.

    Each eigenvalue has its residual |Hv - lambda v|: at least one exact eigenvalue is this near (Paige 1972). All come
    from a single Lanczos run at each parameter vector. One ratio is alpha lambda_max, where alpha is the inner step
    size. The other is rho / |lambda|, where rho = g'Hg / g'g is the curvature along the gradient and |lambda| the
    largest magnitude. Its error is only the part that follows from the residual of lambda, to first order.
    """
    extremes, count = points.extremes, points.level.eigenvalues
    # ``extremes`` may hold one eigenpair of largest magnitude more than the level asks for.
    values = {
        "eigenvalue": extremes.magnitude.values[..., :count],
        "eigenvalue_residual": extremes.magnitude.residuals[..., :count],
        "eigenvalue_max": extremes.largest.values[..., 0],
        "eigenvalue_max_residual": extremes.largest.residuals[..., 0],
        "eigenvalue_min": extremes.smallest.values[..., 0],
        "eigenvalue_min_residual": extremes.smallest.residuals[..., 0],
    }
    values = {name: points.unflatten(value) for name, value in values.items()}
    largest, residual = values["eigenvalue"][..., 0].abs(), values["eigenvalue_residual"][..., 0]
    ratio = curvature_along(points.gradients, points.products.hg).rho / largest
    return values | {
        "alpha_lambda_max": points.step_size * values["eigenvalue_max"],
        "alpha_lambda_max_error": points.step_size * values["eigenvalue_max_residual"],
        "rho_over_lambda_max": ratio,
        "rho_over_lambda_max_error": ratio.abs() * residual / largest,
    }


QUANTITY = Quantity(
    name="eigenvalues",
    title="eigenvalues at the ends of the spectrum",
    formula="H v = lambda v; alpha lambda_max against 2 (edge of stability, catapult); rho / max |lambda|",
    variables=(
        point_variable("eigenvalue", "eigenvalues of largest magnitude", "eigen_index", error="eigenvalue_residual"),
        point_variable(
            "eigenvalue_residual", "|Hv - lambda v|: at least one exact eigenvalue is this near", "eigen_index"
        ),
        point_variable("eigenvalue_max", "largest algebraic eigenvalue", error="eigenvalue_max_residual"),
        point_variable("eigenvalue_max_residual", "|Hv - lambda v| of the largest algebraic eigenvalue"),
        point_variable("eigenvalue_min", "smallest algebraic eigenvalue", error="eigenvalue_min_residual"),
        point_variable("eigenvalue_min_residual", "|Hv - lambda v| of the smallest algebraic eigenvalue"),
        point_variable(
            "alpha_lambda_max",
            "alpha times the largest eigenvalue; above 2, gradient descent is unstable along its eigenvector",
            error="alpha_lambda_max_error",
        ),
        point_variable("alpha_lambda_max_error", "alpha |Hv - lambda v| of the largest algebraic eigenvalue"),
        point_variable(
            "rho_over_lambda_max",
            "rho divided by the largest magnitude of an eigenvalue; between -1 and 1",
            error="rho_over_lambda_max_error",
        ),
        point_variable("rho_over_lambda_max_error", "error of that ratio which follows from the eigenvalue's residual"),
    ),
    measure=measure,
    library="hessian_tools.extremal_eigenpairs",
    cost="at most as many products with the Hessian as the level's max_matvecs",
    reference="Lanczos 1950; Paige 1972; Cohen 2021 (edge of stability), Lewkowycz 2020 (catapult)",
)
