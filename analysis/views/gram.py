"""A whole spectrum: the magnitudes of the eigenvalues by rank on a logarithmic axis, and where rounding begins."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from analysis.views.series import leading, legend, split
from analysis.views.units import label


def gram(ds: xr.Dataset, ax: Axes) -> Axes:
    """Magnitudes of the eigenvalues of a Spectrum; a dotted line of the same colour marks the error of each point.

    What lies below its error means nothing and is not drawn.
    """
    errors = []
    for one in split(ds, leading(ds, "eigenvalue", "eigen_index")):
        values, error = abs(one.ds["eigenvalue"].values), float(one.ds["eigenvalue_error"])
        if not np.isfinite(error):
            continue
        errors.append(error)
        rank, shown = one.ds["eigen_index"].values + 1, np.where(values > error, values, np.nan)
        ax.plot(rank, shown, color=one.color, marker="o", label=one.label or None, gid=f"eigenvalue:{one.label}")
        ax.axhline(error, color=one.color, linestyle=":", linewidth=0.8, gid=f"error:{one.label}")
    ax.set_yscale("log")
    if errors and max(errors) > 0:
        ax.set_ylim(bottom=min(error for error in errors if error > 0) / 3)
        ax.plot([], [], color="black", linestyle=":", linewidth=0.8, label="rounding error")
    ax.set_xlabel("rank")
    ax.set_ylabel(label("magnitude of the eigenvalue", ds["eigenvalue"].attrs["units"]))
    return legend(ax)
