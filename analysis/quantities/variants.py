"""The same curvature on another loss or along another direction, which a study asks for under ``measure.losses``.

* query: the loss on the query set, along its own gradient, at the points of the inner loop.
* across: the Hessian of the query loss along the gradient of the support loss. It says whether the directions that
  adaptation takes are flat for the examples that judge it.
* other_task: the Hessian of another task's support loss along this task's gradient, at this task's points.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from analysis.quantities import eigenvalues, gradient_curvature, trace
from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import Variable

# For each variant, the words that are added to a variable's meaning, and the quantities that are measured.
VARIANTS: Mapping[str, tuple[str, tuple[Quantity, ...]]] = {
    "query": ("of the query loss", (gradient_curvature.QUANTITY, eigenvalues.QUANTITY, trace.QUANTITY)),
    "across": ("with H of the query loss and g of the support loss", (gradient_curvature.QUANTITY,)),
    "other_task": ("with H of another task's support loss", (gradient_curvature.QUANTITY,)),
}


def variant_quantities(loss: str) -> list[Quantity]:
    """The quantities of a variant. The names of their variables end in the variant's name, such as rho_query."""
    words, quantities = VARIANTS[loss]
    return [_variant(quantity, loss, words) for quantity in quantities]


def _variant(quantity: Quantity, loss: str, words: str) -> Quantity:
    variables = tuple(_renamed(variable, loss, words) for variable in quantity.variables)
    return replace(
        quantity,
        name=f"{quantity.name}_{loss}",
        title=f"{quantity.title}, {words}",
        variables=variables,
        measure=_Measure(quantity, loss),
    )


def _renamed(variable: Variable, loss: str, words: str) -> Variable:
    error = variable.error and f"{variable.error}_{loss}"
    return replace(variable, name=f"{variable.name}_{loss}", long_name=f"{variable.long_name} ({words})", error=error)


@dataclass(frozen=True)
class _Measure:
    """Measures a quantity on the variant's loss; it is a class because jobs for worker processes are pickled."""

    quantity: Quantity
    loss: str

    def __call__(self, points: Points) -> Values:
        values = self.quantity.measure(points.on(self.loss))
        return {f"{name}_{self.loss}": value for name, value in values.items()}
