"""Trace, and curvature along random directions: one set of Rademacher probes gives both."""

from analysis.quantities.points import Points
from analysis.quantities.quantity import Quantity, Values
from hessian_tools.curvature import estimate_of


def measure(points: Points) -> Values:
    """z'Hz of each probe estimates the trace; over |z|^2, the number of parameters, it is rho along z."""
    samples = (points.probes.unsqueeze(1) * points.products.hz).sum(-2)
    trace, params = estimate_of(samples), points.thetas.shape[-1]
    return {
        "trace": trace.value,
        "trace_stderr": trace.stderr,
        "trace_sample": samples,
        "rho_random": trace.value / params,
        "rho_random_stderr": trace.stderr / params,
    }


RANDOM_DIRECTIONS = Quantity(
    "random directions",
    ("trace", "trace_stderr", "trace_sample", "rho_random", "rho_random_stderr"),
    "Girard 1989; Hutchinson 1990",
    measure,
)
