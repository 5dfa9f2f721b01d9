"""How the curvature and the norm of each parameter tensor change over meta-training."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analysis.drawing import legend, panels, selection
from analysis.drawing.figures.study_figure import Choice, Numbers
from analysis.drawing.style import method_label
from analysis.drawing.summary import mean_over, measured, seeds_with_values, summarise
from analysis.schema import learner_names, trained_learners, untrained_start

LARGEST_CHANGE = 4.0
"""The factor at which the colours end. The numbers in the cells show larger changes."""

OPACITY = 0.75
"""The opacity of the colours."""

MIN_CELL = 0.35
"""The figure's width per column, in inches, below which cells have no numbers, because the numbers would overlap."""

MAX_HEIGHT = 10.0
"""The height in inches above which the last maps are left out, so that the figure still fits a printed page."""

Maps = Mapping[str, str]
"""The variables of a figure, each with the words for it in the titles of its maps."""

SHOWN: Maps = {
    "rho_layer": "curvature rho of each tensor",
    "layer_norm": "norm of each tensor",
    "rho_layer_normalised": "rho at unit filter norm",
}


def needs(ds: xr.Dataset, shown: Maps = SHOWN) -> str | None:
    """The reason why the figure cannot be drawn; None if it can. It needs one of the variables that it shows."""
    if int(ds["checkpoint"][0]) != 0 or not trained_learners(ds):
        return "no learner has an untrained start with which it could be compared"
    reasons = [selection.lacks(ds, name) for name in shown]
    if None not in reasons:
        return reasons[0]
    if not any(np.isfinite(ratios).any() for ratios in _all_maps(ds, learners(ds), shown).values()):
        return "no tensor has a value both at the untrained start and at the last checkpoint"
    return None


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default: the trained ones that have an untrained start in the study."""
    names = trained_learners(selection.for_panels(ds))
    return [name for name in names if untrained_start(ds, name) in learner_names(ds)]


def numbers(ds: xr.Dataset, choice: Choice, shown: Maps = SHOWN) -> Numbers:
    """For each quantity, the ratio of trained to untrained [learner, layer] of each parameter tensor."""
    axes = {"learner": choice.learners, "layer": ds["layer"].attrs["flag_meanings"].split()}
    maps = _maps(ds, choice.learners, shown).items()
    return {f"trained / untrained, {title}": xr.DataArray(ratios, axes) for title, ratios in maps}


def draw(ds: xr.Dataset, choice: Choice, shown: Maps = SHOWN) -> Figure:
    """Draw a map of learners and tensors for each quantity, with the ratio of trained to untrained in each cell."""
    maps, names = _maps(ds, choice.learners, shown), choice.learners
    # A tensor that starts at zero, such as a bias, has no ratio of norms. It has no column if it has no ratio at all.
    has_ratio = np.isfinite(np.stack(list(maps.values()))).any(axis=(0, 1))
    layers = np.array(ds["layer"].attrs["flag_meanings"].split())[has_ratio]
    options: dict[str, Any] = {"columns": 1, "default": "double", "width": choice.width}
    options["row_height"] = _map_height(names)
    options["margin"] = 2.0  # inches for the names of the learners and for the colour bar
    with panels.grid(len(maps), xlabel="", **options) as (figure, axes):
        for (title, ratios), ax in zip(maps.items(), axes, strict=True):
            picture = _map(ax, ratios[:, has_ratio], figure.get_figwidth())
            ax.set_title(title)
            ax.set_yticks(range(len(names)), [method_label(name) for name in names])
            ax.set_xticks(range(len(layers)), [] if ax is not axes[-1] else list(layers), rotation=40, ha="right")
        # ``aspect`` is the length of the bar over its width, which is then the same for figures of any height.
        bar = figure.colorbar(
            picture, ax=axes, label="trained / untrained", pad=0.01, extend="both", aspect=6 * figure.get_figheight()
        )
        ticks = [1 / LARGEST_CHANGE, 0.5, 1, 2, LARGEST_CHANGE]
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        bar.minorticks_off()
    return figure


def caption(ds: xr.Dataset, choice: Choice, shown: Maps = SHOWN) -> str:
    """Return the caption, which also says what an empty cell means."""
    values = measured(ds, next(name for name in shown if selection.lacks(ds, name) is None))
    maps = _all_maps(ds, choice.learners, shown)
    empty = [title for title in maps if title not in _filled(maps)]
    left_out = len(maps) - len(empty) - len(_maps(ds, choice.learners, shown))
    return legend.joined(
        f"The change of each parameter tensor from the learner's own untrained start to meta-iteration "
        f"{int(ds['checkpoint'][-1])}, as the ratio of trained to untrained, for these quantities: "
        f"{'; '.join(_maps(ds, choice.learners, shown))}.",
        "rho of a tensor is g'Hg / g'g for the tensor's part of the gradient alone." if "rho_layer" in shown else "",
        "A ratio is that of means over "
        f"tasks and {seeds_with_values(values)} seeds. A cell is empty where the untrained mean is not positive, "
        "because the ratio would mean nothing. A negative number means that the curvature has changed its sign.",
        f"Maps that would be mostly empty are left out: {'; '.join(empty)}." if empty else "",
        f"Colours end at a factor of {LARGEST_CHANGE:g}.",
        f"With so many learners, {left_out} further maps are left out; choose fewer learners to see them."
        if left_out
        else "",
        selection.shown_sentence(ds, choice.learners),
    )


def _map_height(names: list[str]) -> float:
    """The height in inches of a map's title and of its rows, one for each learner."""
    return 0.45 + 0.19 * len(names)


def _maps(ds: xr.Dataset, names: list[str], shown: Maps) -> dict[str, np.ndarray]:
    """The maps that are drawn: those that are not mostly empty, as many as fit a page."""
    fitting = max(1, int(MAX_HEIGHT / _map_height(names)))
    return dict(list(_filled(_all_maps(ds, names, shown)).items())[:fitting])


def _filled(maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The maps in which at least half of the cells have a ratio; all, if none has.

    Those of norms are always among them: a tensor that starts at zero, such as a bias, has no ratio of norms.
    """
    filled = {
        title: ratios
        for title, ratios in maps.items()
        if np.isfinite(ratios).mean() >= 0.5 or title.startswith(SHOWN["layer_norm"])
    }
    return filled or maps


def _all_maps(ds: xr.Dataset, names: list[str], shown: Maps) -> dict[str, np.ndarray]:
    """The ratio of trained to untrained [learner, layer] of each quantity that the study has, by its title.

    The norms of tensors hardly change in an inner loop, so they are shown at step 0 alone.
    """
    maps = {}
    for name, words in shown.items():
        if selection.lacks(ds, name) is not None:
            continue
        values = measured(ds, name)
        maps[f"{words}, step 0"] = _ratios(ds, names, values.isel(inner_step=0))
        if name != "layer_norm":
            later = mean_over(values.isel(inner_step=slice(1, None)), "inner_step")
            maps[f"{words}, mean of the later steps"] = _ratios(ds, names, later)
    return maps


def _ratios(ds: xr.Dataset, names: list[str], values: xr.DataArray) -> np.ndarray:
    """The ratio of trained to untrained [learner, layer]; NaN where the untrained mean is not positive."""
    means = summarise(values).mean.transpose("learner", "checkpoint", "layer")
    # A learner whose untrained start the study lacks is compared with its own checkpoint 0. The row of an untrained
    # learner is empty, because it has no values at the last checkpoint.
    starts = [untrained_start(ds, name) or name for name in names]
    start = means.sel(learner=starts).isel(checkpoint=0).values
    end = means.sel(learner=names).isel(checkpoint=-1).values
    return np.where(start > 0, end / np.where(start > 0, start, 1.0), np.nan)


def _map(ax: Axes, ratios: np.ndarray, inches: float) -> Any:
    """Draw a map of the ratios [learner, layer] in a figure of the width ``inches``; returns the image."""
    norm = LogNorm(1 / LARGEST_CHANGE, LARGEST_CHANGE)
    # In grey both ends are dark, and the numbers in the cells tell them apart.
    colored = np.ma.masked_invalid(np.clip(ratios, 1 / LARGEST_CHANGE, LARGEST_CHANGE))
    picture = ax.imshow(colored, cmap=mpl.colormaps["RdBu_r"], norm=norm, aspect="auto", alpha=OPACITY)
    column_width = inches / ratios.shape[1]
    # Columns narrower than 0.4 inches have smaller numbers; sizes are in points.
    size = 7 if column_width > 0.4 else 5.5
    for (row, column), ratio in np.ndenumerate(ratios):
        if np.isfinite(ratio) and column_width > MIN_CELL:
            look: dict[str, Any] = {"fontsize": size, "color": _text_color(picture.to_rgba(colored[row, column]))}
            ax.text(column, row, _short(ratio), ha="center", va="center", gid=f"{row}:{column}", **look)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    return picture


def _text_color(rgba: Any) -> str:
    """Black or white, whichever has the larger contrast with the colour of a cell on a white page.

    rgba: the red, green and blue of the cell, each from 0 to 1, and an opacity, in whose place ``OPACITY`` is taken.
    The contrast is that of the Web Content Accessibility Guidelines, which is equal for both at a luminance of 0.179.
    """
    srgb = OPACITY * np.array(rgba[:3]) + (1 - OPACITY)
    # sRGB values are not linear in the intensity of light; the luminance is a weighted sum of the linear values.
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return "white" if linear @ [0.2126, 0.7152, 0.0722] < 0.179 else "black"


def _short(ratio: float) -> str:
    """A ratio in few characters, such as 0.25, 120 or 2e+04."""
    text = f"{ratio:.2f}" if abs(ratio) < 10 else f"{ratio:.0f}" if abs(ratio) < 1e4 else f"{ratio:.0e}"
    return text.replace("-", "\u2212")
