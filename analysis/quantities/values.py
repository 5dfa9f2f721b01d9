"""Calls the function of a quantity, and checks what it returns, because it may be the user's own."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from analysis.errors import UserError
from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from hessian_tools.importing import one_line, place_in_file_of
from hessian_tools.loss import HiddenStateError


def values_of(quantity: Quantity, points: Points) -> Values:
    """The values of a quantity's variables at the points, as new tensors in float64.

    Raises UserError where a function of the user's own fails, or returns anything but a tensor for each variable.
    """
    try:
        returned = quantity.measure(points)
    except (UserError, HiddenStateError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_bundled(quantity):  # a fault of this package, whose traceback is needed
            raise
        place = place_in_file_of(quantity.measure, error)
        raise UserError(f"the quantity {quantity.name} fails{place}: {one_line(error)}") from error
    declared = {variable.name: variable.dims for variable in quantity.variables}
    if not isinstance(returned, Mapping) or set(returned) != set(declared):
        got = f"a {type(returned).__name__}"
        got = f"{got} with {', '.join(map(str, returned)) or 'nothing'}" if isinstance(returned, Mapping) else got
        raise UserError(
            f"the quantity {quantity.name} returns {got}; its measure() must return a dict with a tensor for each of"
            f" its variables: {', '.join(declared)}"
        )
    return {name: _checked(quantity, name, returned[name], declared[name], points) for name in returned}


def is_bundled(quantity: Quantity) -> bool:
    """Whether a quantity is one of the package."""
    return str(quantity.measure.__module__).startswith("analysis.quantities.")


def _checked(quantity: Quantity, name: str, value: object, dims: tuple[str, ...], points: Points) -> Tensor:
    """The value of a variable as a new tensor in float64. Raises UserError unless its axes are those of ``dims``."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":  # floats, signed and unsigned integers, booleans
        value = torch.from_numpy(value)
    leading = ["task", *(["step"] if "inner_step" in dims else [])]  # the axes whose lengths are known here
    others = [dim for dim in dims if dim not in ("checkpoint", "task", "inner_step")]
    lengths = points.thetas.shape[: len(leading)]
    num_axes = len(leading) + len(others)
    if not isinstance(value, Tensor) or value.ndim != num_axes or value.shape[: len(leading)] != lengths:
        got = f"the shape {list(value.shape)}" if isinstance(value, Tensor) else f"the type {type(value).__name__}"
        sizes = ", ".join([*map(str, lengths), *others])
        raise UserError(
            f"the quantity {quantity.name} returns {name} with {got}; give a tensor [{', '.join(leading + others)}],"
            f" here [{sizes}]"
        )
    return value.detach().to(torch.float64, copy=True)
