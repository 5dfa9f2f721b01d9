"""The quantities that a study measures along inner loops, one in each file of this package.

A study's YAML names the quantities that it wants under ``measure.quantities``, and may name some of the user's own
there; see ``docs/quantities.md``.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache

from analysis.quantities import (
    adaptation,
    alpha_sweep,
    blocks,
    eigenvalues,
    gauss_newton,
    gradient_alignment,
    gradient_curvature,
    inner_loop,
    layer_norms,
    linearisation,
    loss_surface,
    meta_gradient,
    normalised_spectrum,
    path,
    prototypes,
    rotated_gradient,
    shot_direction,
    shot_distances,
    spectral_density,
    top_eigenspace,
    trace,
    unit_filter_norm,
)
from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.quantities.variants import VARIANTS, variant_quantities
from analysis.schema import RUN_VARIABLES

# In the order in which a study measures them.
QUANTITIES: Mapping[str, Quantity] = {
    module.QUANTITY.name: module.QUANTITY
    for module in (
        inner_loop,
        layer_norms,
        gradient_alignment,
        gradient_curvature,
        eigenvalues,
        trace,
        rotated_gradient,
        blocks,
        unit_filter_norm,
        gauss_newton,
        top_eigenspace,
        normalised_spectrum,
        spectral_density,
        path,
        linearisation,
        shot_distances,
        shot_direction,
        meta_gradient,
        adaptation,
        prototypes,
        alpha_sweep,
        loss_surface,
    )
}
# Measured in every study, because the claims read them. STANDARD is what "standard" stands for in a study's YAML.
REQUIRED = ("inner_loop", "gradient_alignment", "gradient_curvature")
STANDARD = (*REQUIRED, "layer_norms", "eigenvalues", "trace")


@cache
def bundled_variables() -> frozenset[str]:
    """The names of all variables that the package itself can measure."""
    variables = list(RUN_VARIABLES)
    for quantity in (*QUANTITIES.values(), *(each for loss in VARIANTS for each in variant_quantities(loss))):
        variables += quantity.variables
    return frozenset(variable.name for variable in variables)


def chosen_quantities(names: Iterable[str], losses: Iterable[str], load: Callable[[str], object]) -> list[Quantity]:
    """The quantities that a study measures: the required ones, and those that it names; in the order of measuring.

    names: names of ``QUANTITIES``, "standard", "all", or import paths of the user's own quantities.
    losses: names of ``VARIANTS``, which are the same quantities on another loss or along another direction.
    load: a function that returns the object that an import path names.

    Raises ValueError for a name that is not known, and for an object that is not a Quantity or repeats a name.
    """
    chosen, own = set(REQUIRED), []
    for name in names:
        if name in ("standard", "all"):
            chosen |= set(STANDARD if name == "standard" else QUANTITIES)
        elif name in QUANTITIES:
            chosen.add(name)
        elif ":" in name:
            loaded = load(name)
            if not isinstance(loaded, Quantity):
                raise ValueError(f"{name} is a {type(loaded).__name__}, not an analysis.quantities.Quantity")
            own.append(loaded)
        else:
            known = ", ".join(QUANTITIES)
            raise ValueError(
                f"{name!r} is none of {known}, standard and all; a quantity of your own is an import path or a file,"
                " such as my_quantities.py:SHARPNESS"
            )
    quantities = [quantity for name, quantity in QUANTITIES.items() if name in chosen]
    quantities += [quantity for loss in losses for quantity in variant_quantities(loss)] + own
    used: set[str] = set()
    for quantity in quantities:
        repeated = used & {variable.name for variable in quantity.variables}
        if repeated:
            raise ValueError(f"the variable {min(repeated)} of {quantity.name} exists already; rename it")
        used |= {variable.name for variable in quantity.variables}
    return quantities


__all__ = ["QUANTITIES", "REQUIRED", "STANDARD", "VARIANTS", "Points", "Quantity", "Values"]
__all__ += ["bundled_variables", "chosen_quantities"]
