"""The Hessian's eigenvalues at both ends of its spectrum, compared with the step size and the gradient's curvature."""

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable
from hessian_tools.curvature import curvature_along


def measure(points: Points) -> Values:
    """The eigenvalues of largest magnitude, the largest and the smallest algebraic one, a product and a ratio.

    Each eigenvalue has its residual |Hv - lambda v|: at least one exact eigenvalue is this near (Paige 1972). All come
    from a single Lanczos run at each parameter vector. The product ``alpha_lambda_max`` is the inner step size alpha
    times the largest algebraic eigenvalue. The ratio ``rho_over_lambda_max`` is rho / |lambda|, where rho = g'Hg / g'g
    is the curvature along the gradient g and lambda the eigenvalue of largest magnitude, which may be negative. The
    error of the ratio is only the part that follows from the residual of lambda, to first order.
    """
    # points.level holds the settings of the measurement, which is full or light. Where another quantity needs one,
    # points.extremes has one eigenpair of largest magnitude more than these settings ask for.
    extremes, count = points.extremes, points.level.eigenvalues
    values = {
        "eigenvalue": extremes.magnitude.values[..., :count],
        "eigenvalue_residual": extremes.magnitude.residuals[..., :count],
        "eigenvalue_max": extremes.largest.values[..., 0],
        "eigenvalue_max_residual": extremes.largest.residuals[..., 0],
        "eigenvalue_min": extremes.smallest.values[..., 0],
        "eigenvalue_min_residual": extremes.smallest.residuals[..., 0],
    }
    values = {name: points.unflatten(value) for name, value in values.items()}
    largest_magnitude, residual = values["eigenvalue"][..., 0].abs(), values["eigenvalue_residual"][..., 0]
    ratio = curvature_along(points.gradients, points.products.hg).rho / largest_magnitude
    return values | {
        "alpha_lambda_max": points.step_size * values["eigenvalue_max"],
        "alpha_lambda_max_error": points.step_size * values["eigenvalue_max_residual"],
        "rho_over_lambda_max": ratio,
        "rho_over_lambda_max_error": ratio.abs() * residual / largest_magnitude,
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
    cost="products with the Hessian, at most max_matvecs of measure.full or measure.light",
    reference="Lanczos 1950; Paige 1972; Cohen 2021 (edge of stability), Lewkowycz 2020 (catapult)",
)
