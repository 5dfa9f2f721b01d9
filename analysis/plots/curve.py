"""One summary as a line: the mean over seeds, its band, and each seed while they are few."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from analysis.plots.summary import MOST_SEEDS_SHOWN, Summary
from analysis.style import MethodStyle

BAND_ALPHA = 0.16
SEED_ALPHA = 0.45


def curve(summary: Summary, ax: Axes, *, x: np.ndarray, style: MethodStyle, name: str, filled: bool = True) -> Axes:
    """The mean (thick), the band, and thin lines for up to four seeds; points without a value are left out.

    Lines carry gids, ``mean:<name>`` and ``seed:<name>:<seed>``, by which a test or an editor finds them.
    """
    positions = np.asarray(x, dtype=float)
    if summary.num_seeds > 1:
        inside = np.isfinite(summary.low.values)
        ax.fill_between(
            positions[inside],
            summary.low.values[inside],
            summary.high.values[inside],
            color=style.color,
            alpha=BAND_ALPHA,
            linewidth=0,
            gid=f"band:{name}",
        )
    if 1 < summary.num_seeds <= MOST_SEEDS_SHOWN:
        for seed in summary.per_seed["seed"].values:
            values = summary.per_seed.sel(seed=seed).values
            there = np.isfinite(values)
            ax.plot(
                positions[there],
                values[there],
                color=style.color,
                alpha=SEED_ALPHA,
                linewidth=0.5,
                gid=f"seed:{name}:{seed}",
            )
    there = np.isfinite(summary.mean.values)
    ax.plot(
        positions[there],
        summary.mean.values[there],
        color=style.color,
        linestyle=style.linestyle,
        marker=style.marker,
        markerfacecolor=style.color if filled else "white",
        gid=f"mean:{name}",
        zorder=3,
    )
    return ax


def level(summary: Summary, ax: Axes, *, style: MethodStyle, name: str) -> Axes:
    """A quantity that does not change along x: a horizontal line at the mean, with the band behind it."""
    mean = float(summary.mean)
    if not np.isfinite(mean):
        return ax
    if np.isfinite(float(summary.low)):
        low, high = float(summary.low), float(summary.high)
        ax.axhspan(low, high, color=style.color, alpha=BAND_ALPHA, linewidth=0, gid=f"band:{name}")
    ax.axhline(mean, color=style.color, linestyle=style.linestyle, gid=f"mean:{name}", zorder=2.5)
    return ax


def error_bars(
    ax: Axes, *, x: np.ndarray, y: np.ndarray, error: np.ndarray, color: str, name: str
) -> ErrorbarContainer | None:
    """Vertical bars of one error each way, behind the markers; nothing where there is no value or error."""
    there = np.isfinite(y) & np.isfinite(error)
    if not there.any():
        return None
    bars = ax.errorbar(
        np.asarray(x, dtype=float)[there],
        y[there],
        yerr=error[there],
        fmt="none",
        ecolor=color,
        elinewidth=0.8,
        capsize=1.5,
        zorder=2.8,
    )
    for part in bars[2]:
        part.set_gid(f"error:{name}")
    return bars
