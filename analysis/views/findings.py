"""A self-check: each finding's error in units of what is allowed."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from analysis.style import DARK, GREY

# Where an error of exactly 0 is drawn, and the ends of the axis.
LEAST = 1e-6


def findings(ds: xr.Dataset, ax: Axes) -> Axes:
    """Error over allowed error of each finding of a Check: left of 1 it passes. What was not judged has no marker."""
    names = ds["finding"].attrs["flag_meanings"].split()
    value, allowed, passed = (ds[name].values for name in ("value", "allowed", "passed"))
    for row, name in enumerate(names):
        judged, right = passed[row] != 1, passed[row] == 2
        share = value[row] / allowed[row] if allowed[row] > 0 else 0.0
        share = share if np.isfinite(share) else 1e3
        if judged:
            x = max(share, LEAST) if right else max(share, 3.0)
            marker, text = ("o", "passed") if right else ("X", "wrong")
            ax.plot(x, row, marker=marker, color=DARK if right else "#b2182b", linestyle="none", gid=f"{text}:{name}")
        else:
            ax.text(1e-3, row, "not judged", color=GREY, va="center", ha="center", gid=f"open:{name}")
    ax.axvline(1.0, color="black", linestyle=(0, (4, 2)), linewidth=0.8, gid="allowed")
    ax.set_xscale("log")
    ax.set_xlim(left=LEAST / 2, right=max(10.0, ax.get_xlim()[1]))
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("error / allowed error")
    return ax
