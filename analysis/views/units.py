"""Units of results: a loss has one (nat, say, or a squared error), a parameter has another; all else follows."""

NUMBER = "1"
LOSS = "loss"
PARAMETER = "parameter"
GRADIENT = "loss/parameter"
CURVATURE = "loss/parameter^2"
"""Of the Hessian, its eigenvalues and trace; also of 1 / step size, as a step size is parameter^2 / loss."""
PER_CURVATURE = "parameter^2/loss"
CURVATURE_SQUARED = "loss^2/parameter^4"


def label(name: str, units: str) -> str:
    """An axis label: the name, and the unit in brackets where there is one.

    >>> label("trace", CURVATURE), label("accuracy", NUMBER)
    ('trace [loss/parameter$^2$]', 'accuracy')
    """
    return name if units == NUMBER else f"{name} [{units.replace('^2', '$^2$').replace('^4', '$^4$')}]"
