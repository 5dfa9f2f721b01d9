"""The trace, the Frobenius norm and the curvature along random directions, from the same random probes."""

from torch import Tensor

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import point_variable
from hessian_tools.curvature import Estimate, estimate_of


def measure(points: Points) -> Values:
    """The trace, the Frobenius norm, and the curvature along random directions, from probes z of random signs.

    z'Hz of each probe estimates the trace. Divided by |z|^2, which is the number of parameters, it is the curvature
    along z.
    """
    hz, num_params = points.products.hz, points.thetas.shape[-1]
    trace, frobenius, frobenius_stderr = trace_and_frobenius(points.probes.unsqueeze(1), hz)
    return {
        "trace": trace.value,
        "trace_stderr": trace.stderr,
        "trace_sample": trace.samples,
        "rho_random": trace.value / num_params,
        "rho_random_stderr": trace.stderr / num_params,
        "frobenius": frobenius,
        "frobenius_stderr": frobenius_stderr,
    }


def trace_and_frobenius(z: Tensor, hz: Tensor) -> tuple[Estimate, Tensor, Tensor]:
    """The trace, the Frobenius norm and its standard error, from probes z and their products [..., param, probe].

    |Hz|^2 estimates |H|_F^2; the standard error of its root follows from that of the square, to first order.
    """
    square = estimate_of((hz * hz).sum(-2))
    frobenius = square.value.sqrt()
    return estimate_of((z * hz).sum(-2)), frobenius, square.stderr / (2 * frobenius)


QUANTITY = Quantity(
    name="trace",
    title="trace, Frobenius norm, curvature along random directions",
    formula="tr H, the mean of z'Hz; |H|_F, the root of the mean of |Hz|^2; z'Hz / z'z",
    variables=(
        point_variable("trace", "trace of the Hessian, mean over Rademacher probes", error="trace_stderr"),
        point_variable("trace_stderr", "standard error of the trace"),
        point_variable(
            "trace_sample", "z'Hz of each Rademacher probe; a task keeps its probes at all inner steps", "probe"
        ),
        point_variable("rho_random", "curvature along a random direction, mean over probes", error="rho_random_stderr"),
        point_variable("rho_random_stderr", "standard error of the mean of rho along random directions"),
        point_variable("frobenius", "Frobenius norm |H|_F, from the Rademacher probes", error="frobenius_stderr"),
        point_variable("frobenius_stderr", "standard error of the Frobenius norm"),
    ),
    measure=measure,
    library="hessian_tools.trace, hessian_tools.frobenius_squared",
    cost="one product with the Hessian for each probe",
    reference="Girard 1989; Hutchinson 1990",
)
