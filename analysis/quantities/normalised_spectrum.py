"""The eigenvalues at both ends, the trace and the Frobenius norm in coordinates in which filters have unit norm."""

from analysis.quantities.blocks import trace_variables, traces_of_blocks
from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.quantities.trace import trace_and_frobenius
from analysis.schema import point_variable
from hessian_tools.curvature import extremal_eigenpairs


def measure(points: Points) -> Values:
    """The largest and the smallest eigenvalue, the traces and the Frobenius norm of D H D, each with its error.

    H is the Hessian, and D is the diagonal matrix of filter norms, ``products.scale``. D H D does not change when a
    filter that is followed by a normalisation is rescaled, so weights that grow do not lower these numbers. The random
    probes are those of the quantity ``trace``, and the traces of blocks come from the same products as that of the
    whole matrix. The settings of the measurement, ``points.level``, give the tolerance of the eigenvalues and the
    largest number of products that they may take.
    """
    scaled = points.hessian.scaled(points.products.scale.flatten(0, 1))
    ends = extremal_eigenpairs(
        scaled,
        magnitude=1,
        ends=1,
        rtol=points.level.tolerance,
        seed=points.seed,
        max_matvecs=points.level.max_matvecs,
    )
    z = points.probes.unsqueeze(1).expand_as(points.products.hz)
    products = points.unflatten(scaled @ z.flatten(0, 1))
    trace, frobenius, frobenius_stderr = trace_and_frobenius(z, products)
    values = {
        "lambda_max_normalised": points.unflatten(ends.largest.values[..., 0]),
        "lambda_max_normalised_residual": points.unflatten(ends.largest.residuals[..., 0]),
        "lambda_min_normalised": points.unflatten(ends.smallest.values[..., 0]),
        "lambda_min_normalised_residual": points.unflatten(ends.smallest.residuals[..., 0]),
        "trace_normalised": trace.value,
        "trace_normalised_stderr": trace.stderr,
        "frobenius_normalised": frobenius,
        "frobenius_normalised_stderr": frobenius_stderr,
    }
    return values | {f"{name}_normalised": value for name, value in traces_of_blocks(points, z * products).items()}


QUANTITY = Quantity(
    name="normalised_spectrum",
    title="eigenvalues at both ends, traces and Frobenius norm at unit filter norm",
    formula="D H D v = lambda v; tr D H D; tr (D H D)_bb of the block of each tensor, of the head and of the body; "
    "|D H D|_F; D holds the filters' norms where a normalisation follows, else 1",
    variables=(
        point_variable(
            "lambda_max_normalised",
            "largest algebraic eigenvalue of D H D, in coordinates in which filters have unit norm",
            error="lambda_max_normalised_residual",
        ),
        point_variable("lambda_max_normalised_residual", "|DHDv - lambda v| of the largest eigenvalue of D H D"),
        point_variable(
            "lambda_min_normalised",
            "smallest algebraic eigenvalue of D H D, in coordinates in which filters have unit norm",
            error="lambda_min_normalised_residual",
        ),
        point_variable("lambda_min_normalised_residual", "|DHDv - lambda v| of the smallest eigenvalue of D H D"),
        point_variable(
            "trace_normalised", "trace of D H D, mean over Rademacher probes", error="trace_normalised_stderr"
        ),
        point_variable("trace_normalised_stderr", "standard error of the trace of D H D"),
        point_variable(
            "frobenius_normalised",
            "Frobenius norm |D H D|_F, from the Rademacher probes",
            error="frobenius_normalised_stderr",
        ),
        point_variable("frobenius_normalised_stderr", "standard error of the Frobenius norm of D H D"),
        *trace_variables("_normalised", " of D H D"),
    ),
    measure=measure,
    library="hessian_tools.Operator.scaled, hessian_tools.extremal_eigenpairs",
    cost="products with the Hessian, at most measure.full.max_matvecs and one for each probe",
    reference="Dinh 2017 (rescaled weights); Li et al. 2018 (filter normalisation)",
    level="full",
)
