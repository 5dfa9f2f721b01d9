"""``plot``: draw a result of the library, from the Dataset that ``to_xarray`` makes of it.

The points of a result are the parameter vectors at which a quantity was computed. The leading axes of a result, such as
task and inner step, tell its points apart and are called its axes of points. The last of them is along x, and each
combination of labels of the others is a series, which has its own colour.
"""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from math import floor, log10
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from analysis.drawing import style
from analysis.drawing.curves import BAND_ALPHA, error_bars
from analysis.drawing.labelled import VERDICTS, axis_label, to_xarray
from analysis.drawing.references import step_axis, zero
from analysis.drawing.series import Series, name_axes, over_points, point_dims, split
from analysis.drawing.style import DARK, GREY
from hessian_tools.validation import check_choice


def plot(
    result: Any, ax: Axes | None = None, *, label: str | None = None, color: str | None = None, **options: Any
) -> Axes:
    """Draw a result, or the Dataset that ``to_xarray`` made of it, with its errors; returns the axes.

    ax: the axes to draw in. None makes a new figure, one column of a paper wide, in the style of
        ``analysis.drawing.style``; a notebook shows it.
    label, color: the name of this result in the legend and its colour, so that several results can be drawn into the
        same axes. A result with several series has the label before each of theirs, and keeps its own colours.
    options: those of the function that plots this kind of result, such as ``names=["displacement"]`` for a Trajectory
        or ``name="frobenius_squared"`` for Moments.
    Raises TypeError for a kind of result that has no plot, and for any option if the plot of this kind has none.
    Raises ValueError for an option that the plot of this kind does not have.

    A legend or a text that is added later has the fonts of the plot if it is added inside
    ``with analysis.drawing.style.context():``. To name the axis of points, call
    ``plot(to_xarray(result, dims=["inner_step"]))``.
    """
    if isinstance(result, xr.DataArray | xr.Dataset) and "learner" in result.dims:
        name = getattr(result, "name", None) or "alpha_rho"
        raise TypeError(f"a study is drawn by analysis.figures; for a variable, variable(ds, {name!r})(ds)")
    ds = result if isinstance(result, xr.Dataset) else to_xarray(result)
    kind = ds.attrs.get("kind")
    if kind not in PLOTS:
        what = kind or "a Dataset that to_xarray did not make"
        raise TypeError(f"plot cannot draw {what}; give a result of one of the kinds {', '.join(PLOTS)}")
    allowed = list(signature(PLOTS[kind]).parameters)[2:]  # the first two are the Dataset and the axes
    for name in options:
        if not allowed:
            raise TypeError(
                f"{name}={options[name]!r}: a plot of {kind} has no options; draw on the axes that it returns"
            )
        check_choice("option", name, allowed)
    ds = ds.assign_attrs({name: word for name, word in (("label", label), ("color", color)) if word is not None})
    if ax is not None:
        return PLOTS[kind](ds, ax, **options)
    # pyplot chooses a backend on import, which drawing into given axes does not need.
    import matplotlib.pyplot as plt

    with style.context():
        return PLOTS[kind](ds, plt.subplots()[1], **options)


# ---- eigenvalues

MANY_POINTS = 40
"""The number of points above which markers of the usual size would merge."""
# The marker and the label of the eigenvalues at the two ends of the spectrum, by variable.
_ENDS = {"eigenvalue_max": ("^", "largest algebraic"), "eigenvalue_min": ("v", "smallest algebraic")}


def eigenvalues(ds: xr.Dataset, ax: Axes) -> Axes:
    """Draw every eigenvalue of an EigenPairs or Extremes, with its residual as an error bar.

    The markers of eigenvalues that did not converge are open. For a single point, x is the rank of the eigenvalue; for
    several, x is the last axis of points. Triangles are the largest and the smallest algebraic eigenvalues.
    """
    ends = {name: end for name, end in _ENDS.items() if name in ds}
    dim, series = over_points(ds, "eigenvalue", "eigen_index")
    along_x = () if dim is None else (dim,)
    # One eigenvalue at each point makes a curve. Several are not joined by lines, because the i-th by magnitude changes
    # its sign from point to point.
    is_curve = dim is not None and ds.sizes["eigen_index"] == 1
    for one in series:
        _eigenvalue_markers(ax, one, "eigenvalue", (*along_x, "eigen_index"), "o")
        if is_curve:
            ax.plot(one.ds[dim], one.ds["eigenvalue"].squeeze(), color=one.color, gid=f"curve:{one.label}")
        for name, (marker, _) in ends.items():
            _eigenvalue_markers(ax, one, name, (*along_x, "end_index"), marker, shift=0.12)
        if one.label:
            linestyle = "-" if is_curve else "none"
            ax.plot([], [], color=one.color, marker="o", linestyle=linestyle, label=one.label)
    for marker, label in ends.values():
        ax.plot([], [], color="black", marker=marker, linestyle="none", label=label)
    if not all(ds[name].values.all() for name in ds.data_vars if str(name).endswith("_converged")):
        ax.plot([], [], color="black", marker="o", markerfacecolor="white", linestyle="none", label="not converged")
    zero(ax)
    return name_axes(ax, ds["eigenvalue"], name="eigenvalue", dim=dim, x="rank")


def _eigenvalue_markers(
    ax: Axes, one: Series, name: str, dims: tuple[str, ...], marker: str, *, shift: float = 0.0
) -> None:
    """Draw the eigenvalues in the variable ``name`` of a series, with markers and error bars.

    dims: the dimensions of the variable; the first one is along x.
    shift: the distance by which markers are moved along x, as a fraction of the distance between points. The largest
        and smallest algebraic eigenvalues are drawn beside the largest by magnitude, because they are mostly the same
        numbers and their markers would hide each other.
    """
    parts = (name, f"{name}_residual", f"{name}_converged")
    y, error, converged = (one.ds[part].transpose(*dims).values for part in parts)
    places = one.ds[dims[0]].values
    places = places + shift * np.min(np.diff(places), initial=1.0)
    # All eigenvalues at a point have the same x.
    x = np.broadcast_to(places.reshape(-1, *[1] * (y.ndim - 1)), y.shape)
    error_bars(ax, x.ravel(), y.ravel(), error.ravel(), color=one.color, name=name)
    size = 1.5 if len(places) > MANY_POINTS else None
    look: dict[str, Any] = {"marker": marker, "markersize": size, "linestyle": "none", "color": one.color, "zorder": 3}
    for is_converged, fill, suffix in ((True, one.color, ""), (False, "white", ":open")):
        chosen = np.isfinite(y) & (converged == is_converged)
        ax.plot(x[chosen], y[chosen], markerfacecolor=fill, gid=f"{name}:{one.label}{suffix}", **look)


def spectrum(ds: xr.Dataset, ax: Axes) -> Axes:
    """Draw the magnitudes of a Spectrum's eigenvalues; a dotted line of the same colour marks the error at each point.

    An eigenvalue whose magnitude is below the error cannot be told from 0 and is not drawn.
    """
    errors = []
    for one in split(ds, point_dims(ds, "eigenvalue", "eigen_index")):
        values, error = abs(one.ds["eigenvalue"].values), float(one.ds["eigenvalue_error"])
        if not np.isfinite(error):
            continue
        errors.append(error)
        rank, shown = one.ds["eigen_index"].values + 1, np.where(values > error, values, np.nan)
        ax.plot(rank, shown, color=one.color, marker="o", label=one.label or None, gid=f"eigenvalue:{one.label}")
        ax.axhline(error, color=one.color, linestyle=":", linewidth=0.8, gid=f"error:{one.label}")
    ax.set_yscale("log")
    if errors and max(errors) > 0:
        ax.set_ylim(bottom=min(error for error in errors if error > 0) / 3)  # a little below the lowest dotted line
        ax.plot([], [], color="black", linestyle=":", linewidth=0.8, label="rounding error")
    return name_axes(ax, ds["eigenvalue"], name="magnitude of the eigenvalue", x="rank")


# ---- the spectral density


def density(ds: xr.Dataset, ax: Axes) -> Axes:
    """Draw the share of eigenvalues per unit of curvature of a Density, with its band over the probes.

    A thin vertical line with a dot marks each isolated node: an eigenvalue, or a cluster of eigenvalues narrower than
    the kernel, with no other eigenvalue within two widths of the kernel. A point whose density is not finite is not
    drawn. Artists have the gids ``density:<point>``, ``band:<point>`` and ``isolated:<point>``.
    """
    series = split(ds, point_dims(ds, "density", "grid"))
    series = [one for one in series if np.isfinite(one.ds["density"].values).all()]
    (low, high), is_empty = ax.get_ylim(), not ax.has_data()  # the limits of densities that were drawn before
    # An outlier is a single eigenvalue among many, so its peak is low. The axis is logarithmic and starts at a fifth of
    # the height that the kernel of a single eigenvalue has, so that outliers can be seen.
    peaks = [1 / (one.ds.attrs["num_params"] * float(one.ds["width"]) * np.sqrt(2 * np.pi)) for one in series]
    bottom = min((0.2 * peak for peak in peaks), default=1e-3)
    ax.set_yscale("log", nonpositive="clip")
    for one in series:
        _density_curve(ax, one, bottom)
    if series:
        label = f"{100 * ds.attrs['confidence']:g}% band over probes"
        ax.fill_between([], [], color="black", alpha=BAND_ALPHA, linewidth=0, label=label)
    if any(one.ds["node_isolated"].values.any() for one in series):
        ax.plot([], [], color="black", linewidth=0.8, marker="o", markersize=2.5, label="isolated eigenvalue")
    top = 2 * max((float(one.ds["density_high"].max()) for one in series), default=1.0)
    ax.set_ylim(*(bottom, top) if is_empty else (min(low, bottom), max(high, top)))
    remark = _density_scale(ax, [float(np.abs(one.ds["node_value"]).max()) for one in series])
    unit = axis_label("eigenvalue", ds["curvature"].attrs["units"])
    return name_axes(ax, ds["density"], name="density", x=unit + remark)


def _density_curve(ax: Axes, one: Series, bottom: float) -> None:
    """Draw the density at one point, with its band and its isolated nodes. bottom: the lower end of the y axis."""
    x, y, low, high = (one.ds[name].values for name in ("curvature", "density", "density_low", "density_high"))
    ax.fill_between(x, low, high, color=one.color, alpha=BAND_ALPHA, linewidth=0, gid=f"band:{one.label}")
    width = f"width {float(one.ds['width']):.2g}"
    label = f"{one.label} ({width})" if one.label else f"kernel {width}"
    if one.label and one.label == one.ds.attrs.get("label"):  # the user's own label stands alone
        label = one.label
    ax.plot(x, y, color=one.color, label=label, gid=f"density:{one.label}")
    nodes = np.unique(one.ds["node_value"].values[one.ds["node_isolated"].values.astype(bool)])
    heights = np.interp(nodes, x, y)
    # The lines begin below the axis, so that they reach its end.
    ax.vlines(nodes, bottom / 10, heights, color=one.color, linewidth=0.8, gid=f"stems:{one.label}")
    ax.plot(nodes, heights, linestyle="none", marker="o", markersize=2.5, color=one.color, gid=f"isolated:{one.label}")


def _density_scale(ax: Axes, magnitudes: list[float]) -> str:
    """Set the scale of x; returns a remark on the scale for the axis label, or "".

    magnitudes: for each point, the largest magnitude of an eigenvalue. The axis is linear, unless the largest of these
        numbers is more than four times the smallest: then the narrowest spectrum would hardly be seen on a linear axis.
        In that case the axis is linear up to the smallest number and logarithmic beyond.
    """
    if not magnitudes or max(magnitudes) <= 4.0 * min(magnitudes) or min(magnitudes) == 0:
        return ""
    narrowest, widest = min(magnitudes), max(magnitudes)
    ax.set_xscale("asinh", linear_width=narrowest)
    # The tick of a decade far below the narrowest spectrum would lie on the tick of 0.
    decades = [10.0**power for power in range(floor(log10(3 * narrowest)), floor(log10(widest)) + 1)]
    ticks = [*(-value for value in reversed(decades)), 0.0, *decades]
    ax.set_xticks(ticks, [f"{value:g}".replace("-", "\N{MINUS SIGN}") for value in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    return f"\n(linear within ±{narrowest:.2g}, logarithmic beyond)"


# ---- estimates, directions, checks, trajectories


def estimate(ds: xr.Dataset, ax: Axes, *, name: str = "estimate") -> Axes:
    """Draw a variable of an Estimate or Moments, which ``name`` chooses ("trace", "frobenius_squared").

    For a single point, each probe is a dot, the mean over probes is a line, and the band extends one standard error to
    either side of the mean. For several points, the means are drawn against the last axis of points, with error bars of
    one standard error to either side.
    """
    dim, series = over_points(ds, name)
    for one in series:
        value, error = one.ds[name].values, one.ds[f"{name}_stderr"].values
        if dim is not None:
            x = one.ds[dim].values
            error_bars(ax, x, value, error, color=one.color, name=one.label)
            ax.plot(x, value, color=one.color, marker="o", label=one.label or None, gid=f"{name}:{one.label}")
            continue
        samples = one.ds[f"{name}_sample"].values
        dots: dict[str, Any] = {"marker": "o", "markersize": 2.0, "linestyle": "none", "alpha": 0.5}
        ax.plot(np.arange(len(samples)), samples, color=one.color, label="each probe", gid=f"samples:{name}", **dots)
        ax.axhspan(value - error, value + error, color=one.color, alpha=BAND_ALPHA, linewidth=0, gid=f"band:{name}")
        # Two nested formats: the inner one rounds, and the outer one writes 140 instead of 1.4e+02.
        mean_text, error_text = (
            f"{float(f'{float(number):.{digits}g}'):.12g}" for number, digits in ((value, 4), (error, 2))
        )
        ax.axhline(
            float(value), color=one.color, label=f"{one.label or 'mean'}, {mean_text} ± {error_text}", gid=f"{name}:"
        )
    low, high = ax.get_ylim()
    if low <= 0 <= high:
        zero(ax)
    words = "squared Frobenius norm" if name == "frobenius_squared" else name
    return name_axes(ax, ds[name], name=words, dim=dim, x="probe")


def gradient_curvature(ds: xr.Dataset, ax: Axes) -> Axes:
    """Draw rho of a GradientCurvature against the last axis of points, in the band where |rho| <= |Hg| / |g|."""
    dim, series = over_points(ds, "rho")
    for one in series:
        part = one.ds if dim is not None else one.ds.expand_dims("point")
        x, rho, bound = (part[name].values for name in (dim or "point", "rho", "hg_ratio"))
        ax.fill_between(x, -bound, bound, color=one.color, alpha=BAND_ALPHA / 2, linewidth=0, gid=f"bound:{one.label}")
        ax.plot(x, bound, color=one.color, linestyle="--", linewidth=0.8, gid=f"hg_ratio:{one.label}")
        ax.plot(x, rho, color=one.color, marker="o", label=one.label or None, gid=f"rho:{one.label}")
    ax.plot([], [], color="black", marker="o", label=r"$\rho$")
    ax.plot([], [], color="black", linestyle="--", linewidth=0.8, label=r"$|Hg|\,/\,|g|$")
    if dim is None:
        ax.set_xticks([])
    zero(ax)
    return name_axes(ax, ds["rho"], name=r"curvature along the gradient $\rho$", dim=dim)


def findings(ds: xr.Dataset, ax: Axes) -> Axes:
    """Draw each finding of a Check (a test of one property of an operator, such as symmetry) as a marker.

    A marker's place is the finding's error divided by the allowed error, so that a finding left of 1 has passed. A
    finding that was not judged has the words "not judged" in place of a marker.
    """
    least = 1e-6  # errors of exactly 0 are drawn here, because a logarithmic axis has no 0
    names = ds["finding"].attrs["flag_meanings"].split()
    for row, name in enumerate(names):
        value, allowed, verdict = (ds[part].values[row] for part in ("value", "allowed", "passed"))
        ratio = value / allowed if allowed > 0 else 0.0  # where no error is allowed, ``passed`` alone decides
        ratio = ratio if np.isfinite(ratio) else 1e3  # an error that is not finite is drawn at 1000
        if verdict == VERDICTS[None]:
            ax.text(1e-3, row, "not judged", color=GREY, va="center", ha="center", gid=f"open:{name}")
        elif verdict == VERDICTS[True]:
            ax.plot(max(ratio, least), row, marker="o", color=DARK, linestyle="none", gid=f"passed:{name}")
        else:
            # A finding can fail although its error is small, so the marker is always drawn to the right of 1.
            ax.plot(max(ratio, 3.0), row, marker="X", color="#b2182b", linestyle="none", gid=f"wrong:{name}")
    ax.axvline(1.0, color="black", linestyle=(0, (4, 2)), linewidth=0.8, gid="allowed")
    ax.set_xscale("log")
    ax.set_xlim(left=least / 2, right=max(10.0, ax.get_xlim()[1]))
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("error / allowed error")
    return ax


def trajectory(ds: xr.Dataset, ax: Axes, *, names: Sequence[str] | None = None) -> Axes:
    """Draw one or two variables of a Trajectory over the inner steps; every task is a line.

    names: the variables; two of them must have the same unit, because they share the y axis. None stands for the
        support loss and, where it was recorded, the query loss.
    """
    if names is None:
        names = [name for name in ("support_loss", "query_loss") if name in ds]
    for name in names:
        check_choice("names", name, [str(known) for known in ds.data_vars if _is_of_points(ds[known])])
    if not 1 <= len(names) <= 2:
        raise ValueError(f"names={list(names)} has {len(names)} variables; give one or two, such as 'support_loss'")
    steps, whose = ds["inner_step"].values, f"{ds.attrs['label']}, " if "label" in ds.attrs else ""
    looks = ((ds.attrs.get("color", DARK), "-"), (GREY, "--"))  # of the first and of the second variable
    for name, (color, linestyle) in zip(names, looks, strict=False):
        tasks = ds[name].transpose(..., "inner_step").values.reshape(-1, len(steps))
        look: dict[str, Any] = {"color": color, "linestyle": linestyle, "linewidth": 1.2 if len(tasks) < 5 else 0.6}
        look["marker"] = "o" if len(steps) <= MANY_POINTS else None
        for task, values in enumerate(tasks):
            label = whose + name.replace("_", " ") if task == 0 else None
            ax.plot(steps, values, label=label, gid=f"{name}:{task}", **look)
    step_axis(ax, steps)
    return name_axes(ax, ds[names[0]], name=" and ".join(names).replace("_", " "), x="inner step")


def _is_of_points(values: xr.DataArray) -> bool:
    """True if a variable of a Trajectory has one number at each point."""
    return "inner_step" in values.dims and not {"param", "step_i", "step_j"} & set(values.dims)


PLOTS: dict[str, Callable[..., Axes]] = {
    "GradientCurvature": gradient_curvature,
    "Check": findings,
    "Density": density,
    "EigenPairs": eigenvalues,
    "Estimate": estimate,
    "Extremes": eigenvalues,
    "Spectrum": spectrum,
    "Moments": partial(estimate, name="trace"),
    "Trajectory": trajectory,
}
"""Maps each kind of result to the function that draws it."""
