"""What the browser receives of a study: a header that describes it, and all numbers as float32, one after another.

Every view is computed in the browser from these numbers, so moving a slider needs neither a kernel nor a server.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.colors import to_hex

from analysis.drawing.curves import learner_style
from analysis.drawing.selection import for_lines, is_control
from analysis.drawing.style import method_label, method_style
from analysis.drawing.summary import MAX_SEEDS_SHOWN, TASK_DIMS, measured
from analysis.explorer.code import TEMPLATES
from analysis.schema import learner_names
from analysis.statistics import student_half_width
from hessian_tools.validation import check_choice

LEADING_DIMS = ("learner", "seed", "checkpoint")
"""The dimensions that every quantity has; after them may come a task dimension and ``inner_step``."""
SPECTRUM, SURFACES = ("eigenvalue", "density"), ("loss_surface", "loss_surface_normalised")
"""The variables of the views of the spectrum and of the loss surface."""
FIRST = (
    *("alpha_rho", "rho", "eigenvalue_max", "alpha_lambda_max", "trace", "support_loss", "query_loss"),
    *("query_accuracy", "evaluation_accuracy", "alignment"),
)
"""The quantities that the menu names first, and that are taken first where not all fit."""
MAX_BYTES = 16_000_000
"""The size of the float32 numbers above which quantities are left out, unless the user names them."""
CURVE_DIMS = ("grid", "surface_x", "surface_y")
"""A variable along one of these is a curve or a surface and not a quantity of the menu."""
MAX_LEARNERS_AT_FIRST = 4
"""The largest number of learners that are shown before the user chooses."""


def quantities(ds: xr.Dataset) -> list[str]:
    """The variables that the explorer can show, the most asked for first."""
    for dim in LEADING_DIMS:
        if dim not in ds.dims:
            raise ValueError(f"the Dataset has no dimension {dim!r}; give a study's folder, or all of its Dataset")
    errors = {variable.attrs.get("error_variable") for variable in ds.data_vars.values()}
    names = [str(name) for name in ds.data_vars if name not in errors and _is_quantity(ds[name])]
    if not names:
        raise ValueError("the Dataset has no measured quantity; wait until the study has measured one")
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def _is_quantity(values: xr.DataArray) -> bool:
    """True for real numbers along the leading dimensions, of which one at least is finite."""
    has_dims = all(dim in values.dims for dim in LEADING_DIMS)
    # The names become part of the code that the explorer writes and runs, and a study's files may come from a stranger.
    is_plain = all(str(name).isidentifier() for name in (values.name, *values.dims))
    return has_dims and is_plain and values.dtype.kind == "f" and bool(np.isfinite(values).any())


def export(ds: xr.Dataset, *, variables: Sequence[str] | None = None) -> tuple[dict[str, Any], bytes]:
    """The header, which is JSON, and the float32 numbers of a study.

    variables: the quantities to take; their errors come with them. None takes all, in the order of ``quantities``, as
        long as they stay below ``MAX_BYTES`` together.
    Raises ValueError where the Dataset is no study's, or has no quantity of that name.
    """
    known = quantities(ds)
    for name in variables or ():
        check_choice("variables", name, known)
    if variables is not None and not variables:
        raise ValueError("variables is empty; give one or more names, such as ['alpha_rho']")
    names, left_out = (list(dict.fromkeys(variables)), []) if variables else _those_that_fit(ds, known)
    menu = [name for name in known if name in names and not set(CURVE_DIMS) & set(ds[name].dims)]
    if not menu:
        raise ValueError("variables names no quantity of the menu; add one, such as 'alpha_rho'")
    described, values = _numbers(ds, names)
    dims = {dim for description in described.values() for dim in description["dims"]}
    header = {
        "study": str(ds.attrs.get("study", "")),
        "menu": menu,
        "left_out": left_out,
        "variables": described,
        "coords": {dim: _labels(ds, dim) for dim in sorted(dims)},
        "learners": [_learner(ds, name) for name in learner_names(ds)],
        "shown": _shown(ds),
        "start": _start(ds, menu[0]),
        "step_size": _step_sizes(ds),
        "max_seeds_shown": MAX_SEEDS_SHOWN,
        # Half the width of a 95 % interval over 0, 1, 2, ... seeds whose standard deviation is 1.
        "half_widths": [_finite(student_half_width(1.0, num)) for num in range(ds.sizes["seed"] + 1)],
        "has_status": "status" in ds,
        # The colours of the loss surface, from dark to light.
        "cividis": [to_hex(color) for color in mpl.colormaps["cividis"](np.linspace(0, 1, 16))],
        "code": TEMPLATES,
    }
    return header, values


def _those_that_fit(ds: xr.Dataset, known: Sequence[str]) -> tuple[list[str], list[str]]:
    """The quantities that stay below ``MAX_BYTES`` together with their errors, and those that are left out."""
    # The spectrum and the surface have views of their own, so they come right after the first quantity.
    first = [known[0], *(name for name in (*SPECTRUM, *SURFACES) if name in known)]
    taken: list[str] = []
    left_out: list[str] = []
    size = 0
    for name in dict.fromkeys([*first, *known]):
        # A float32 number takes 4 bytes.
        more = sum(4 * ds[each].size for each in (name, _error(ds, name)) if each is not None)
        if taken and size + more > MAX_BYTES:
            left_out.append(name)
        else:
            taken.append(name)
            size += more
    return taken, left_out


def _numbers(ds: xr.Dataset, names: Sequence[str]) -> tuple[dict[str, dict[str, Any]], bytes]:
    """The description of each of the variables and of their errors, and their float32 numbers one after another."""
    described: dict[str, dict[str, Any]] = {}
    parts: list[bytes] = []
    offset = 0
    with_errors = dict.fromkeys(each for name in names for each in (name, _error(ds, name)) if each is not None)
    for name in with_errors:
        values = _ordered(measured(ds, name) if "status" in ds else ds[name])
        described[name] = {
            "dims": list(values.dims),
            "shape": list(values.shape),
            "offset": offset,
            "long_name": str(values.attrs.get("long_name", name)),
            "error": error if (error := _error(ds, name)) in with_errors else None,
        }
        parts.append(np.ascontiguousarray(values.values, dtype="<f4").tobytes())
        offset += values.size
    return described, b"".join(parts)


def _error(ds: xr.Dataset, name: str) -> str | None:
    """The variable that holds the error of a variable; None if there is none, or if its name is no plain identifier.

    ``_is_quantity`` gives the reason for the second condition.
    """
    error = ds[name].attrs.get("error_variable")
    return error if error in ds and str(error).isidentifier() else None


def _ordered(values: xr.DataArray) -> xr.DataArray:
    """The values with the leading dimensions first, then the task, the inner step and all others."""
    first = [dim for dim in (*LEADING_DIMS, *TASK_DIMS, "inner_step") if dim in values.dims]
    return values.transpose(*first, ...)


def _labels(ds: xr.Dataset, dim: str) -> list[Any]:
    """The labels along a dimension. Layers are numbered in the Dataset; their names are the labels."""
    values = ds[dim].values
    meanings = str(ds[dim].attrs.get("flag_meanings", "")).split()
    if len(meanings) == len(values):
        return meanings
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _learner(ds: xr.Dataset, name: str) -> dict[str, Any]:
    """The name, the label and the line of a learner; without the study's coordinates its name alone decides them."""
    style = learner_style(ds, name) if "trained" in ds.coords else method_style(name)
    return {"name": name, "label": method_label(name), "color": style.color, "line": style.linestyle}


def _shown(ds: xr.Dataset) -> list[str]:
    """The learners that are shown at first: some of those whose lines share a panel in the figures."""
    if "trained" not in ds.coords:
        return learner_names(ds)[:MAX_LEARNERS_AT_FIRST]
    names = learner_names(for_lines(ds))
    return ([name for name in names if not is_control(ds, name)] or names)[:MAX_LEARNERS_AT_FIRST]


def _start(ds: xr.Dataset, name: str) -> int:
    """The position of the last checkpoint at which the first quantity has a value."""
    has_value = np.isfinite(_ordered(ds[name]).transpose("checkpoint", ...).values)
    return int(np.flatnonzero(has_value.reshape(len(has_value), -1).any(axis=1))[-1])


def _step_sizes(ds: xr.Dataset) -> list[list[float | None]] | None:
    """alpha [learner][seed], by which eigenvalues are scaled if the study has densities, which are of alpha times H.

    None if it has no densities, or no single alpha for each learner and seed.
    """
    if "density" not in ds or "step_size" not in ds or set(ds["step_size"].dims) != {"learner", "seed"}:
        return None
    return [[_finite(float(value)) for value in row] for row in ds["step_size"].transpose("learner", "seed").values]


def _finite(value: float) -> float | None:
    """The value, or None where it is not finite, which JSON cannot hold."""
    return value if np.isfinite(value) else None
