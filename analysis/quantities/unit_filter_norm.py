"""The curvature of blocks, and along rotations of the gradient, in coordinates in which filters have unit norm."""

from analysis.quantities.blocks import curvature_of_blocks, curvature_variables
from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.quantities.rotated_gradient import curvature_along_rotations
from analysis.schema import point_variable

_WORDS = ", in coordinates in which filters before a normalisation layer have unit norm"


def measure(points: Points) -> Values:
    """The quantities ``blocks`` (but for its traces) and ``rotated_gradient``, with D H D and D g in place of H and g.

    D is the diagonal matrix of filter norms, ``products.scale``. These numbers do not change when a filter that is
    followed by a normalisation is rescaled, so weights that grow do not lower them.
    """
    scale = points.products.scale
    values = {f"{name}_normalised": value for name, value in curvature_of_blocks(points, scale).items()}
    rho = curvature_along_rotations(points, scale)
    return values | {"rho_rotated_normalised": rho.value, "rho_rotated_normalised_stderr": rho.stderr}


QUANTITY = Quantity(
    name="unit_filter_norm",
    title="curvature of blocks and along rotated gradients at unit filter norm",
    formula="(Dg)_b'(DHD)(Dg)_b / |(Dg)_b|^2 and |(DHD)_bb (Dg)_b| / |(Dg)_b| for each block b; v'DHDv / v'v, mean "
    "over random v with |v_l| = |(Dg)_l| in each tensor l; D holds the filters' norms before a normalisation, else 1",
    variables=(
        *curvature_variables("_normalised", _WORDS),
        point_variable(
            "rho_rotated_normalised",
            f"curvature along random rotations of the gradient{_WORDS}",
            error="rho_rotated_normalised_stderr",
        ),
        point_variable(
            "rho_rotated_normalised_stderr",
            "standard error of the curvature along random rotations of the gradient at unit filter norm",
        ),
    ),
    measure=measure,
    library="hessian_tools.curvature.filter_scale, .tensor_parts, .random_rotations, .curvature_along",
    cost="one product with the Hessian for each parameter tensor and for each rotation, and one gradient",
    reference="Dinh 2017 (rescaled weights); Li et al. 2018 (filter normalisation)",
)
