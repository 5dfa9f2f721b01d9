"""Figures of the kept results, from the JSON alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.drawing.panels import outside_legends
from analysis.drawing.style import CONTROL, DARK, MethodStyle, context, method_style
from benchmarks.learning.settings import EPOCH

Results = Mapping[str, Any]
TITLES = {
    "maml": "MAML",
    "fomaml": "first-order MAML",
    "anil": "ANIL",
    "boil": "BOIL",
    "meta-sgd": "Meta-SGD",
    "reptile": "Reptile",
    "leo": "LEO",
    "supervised": "supervised",
    "untrained": "untrained",
}
NEAR = (2.3, 2.8)  # what the authors' regression is known to reach
GOAL = 93.0
COLUMNS = 4


def draw_all(held: Mapping[str, Results], folder: Path) -> list[Path]:
    """A PNG for each experiment that has results."""
    drawers = {"quickdraw": small_multiples, "cifar-fs": small_multiples, "omniglot": one_run, "regression": errors}
    drawn = []
    for name in [name for name in drawers if name in held]:
        drawn.append(folder / f"{name}.png")
        drawers[name](held[name], drawn[-1])
    return drawn


def small_multiples(results: Results, path: Path) -> None:
    """Validation accuracy against meta-iteration: a panel a learner, with and without SHOT, the seeds as thin lines."""
    learners = [name for name in results["setting"]["learners"] if name not in ("untrained", "supervised")]
    rows = -(-len(learners) // COLUMNS)
    with context(width="double", height=0.55 + 1.5 * rows):
        figure = Figure()
        grid = figure.subplots(rows, min(COLUMNS, len(learners)), sharex=True, sharey=True, squeeze=False)
        axes: list[Axes] = grid.ravel().tolist()
        for ax, name in zip(axes, learners, strict=False):
            _panel(ax, results, name)
        for ax in axes[len(learners) :]:
            ax.set_axis_off()
            axes[axes.index(ax) - COLUMNS].tick_params(labelbottom=True)  # the panel above is the last of its column
        figure.supxlabel("meta-iteration")
        figure.supylabel("validation accuracy (%)")
        outside_legends(figure, _curve_handles(results), [])
        figure.savefig(path)


def one_run(results: Results, path: Path) -> None:
    """Validation accuracy against the processor time of training, and the test."""
    with context(width="single"):
        figure = Figure()
        ax = figure.subplots()
        for seed in results["seeds"]:
            _parts(ax, results, [trial for trial in results["trials"] if trial["seed"] == seed])
        ax.axhline(GOAL, color=DARK, linestyle=(0, (4, 2)), linewidth=0.8, label=f"{GOAL:g} %")
        ax.set(xlabel="processor time of training (min)", ylabel="accuracy (%)", ylim=(70, 100))
        ax.legend(loc="lower right")
        figure.savefig(path)


def errors(results: Results, path: Path) -> None:
    """Query squared error after the inner steps against epochs, with and without SHOT."""
    with context(width="single"):
        figure = Figure()
        ax = figure.subplots()
        for name in ("fomaml", "fomaml-shot"):
            _curves(ax, results, name, method_style(name), per=EPOCH, what="loss", scale=1.0)
        ax.axhspan(*NEAR, color=CONTROL.color, alpha=0.18, linewidth=0)
        ax.set(xlabel=f"epoch ({EPOCH} outer steps)", ylabel="query squared error", yscale="log")
        ticks = [2, 3, 4, 6, 10, 15]
        ax.set_yticks(ticks, [str(tick) for tick in ticks])
        ax.yaxis.set_minor_locator(mpl.ticker.NullLocator())
        known = mpl.patches.Patch(color=CONTROL.color, alpha=0.18, linewidth=0, label="authors' recipe, epoch 100")
        ax.legend(handles=[*(_handle(n, method_style(n)) for n in ("fomaml", "fomaml-shot")), known])
        figure.savefig(path)


def rows_of(results: Results, trial: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The curve of a trial as mappings."""
    return [dict(zip(results["columns"], row, strict=True)) for row in trial["curve"]]


def trials_of(results: Results, name: str) -> list[Mapping[str, Any]]:
    """Those of one learner, seed by seed."""
    return [trial for trial in results["trials"] if trial["name"] == name]


def _parts(ax: Axes, results: Results, parts: Sequence[Mapping[str, Any]]) -> None:
    """One training, its parts one behind the other, and the test at the end."""
    style, spent = method_style("maml"), 0.0
    for trial, look_of_part in zip(parts, (style, method_style("fomaml")), strict=False):
        rows = rows_of(results, trial)
        minutes = [spent + row["cpu_seconds"] / 60 for row in rows]
        values, halves = ([100 * row[name] for row in rows] for name in ("accuracy", "accuracy_half"))
        outer = f"validation, Adam {trial['optimiser'][1]:g}, {trial['meta_batch']} tasks"
        color = look_of_part.color
        ax.errorbar(minutes, values, yerr=halves, color=color, elinewidth=0.6, marker="o", markersize=2, label=outer)
        spent = minutes[-1]
    test = parts[-1]["test"]
    look: dict[str, Any] = {"color": DARK, "marker": "s", "linestyle": "none", "capsize": 2}
    value, half = 100 * test["accuracy"], 100 * test["accuracy_half"]
    ax.errorbar(spent * 1.04, value, yerr=half, label="test: evaluation characters", **look)


def _panel(ax: Axes, results: Results, name: str) -> None:
    ax.set_title(f"{TITLES[name]}, $\\alpha$ = {results['step_sizes'][name]['step_size']:g}")
    lost = [t for each in (name, f"{name}-shot") for t in trials_of(results, each) if t["diverged_at"] is not None]
    words = [
        f"{'with' if t['shot'] else 'without'} SHOT, seed {t['seed']}\ndiverged at {t['diverged_at']}" for t in lost
    ]
    ax.text(0.97, 0.04, "\n".join(words), transform=ax.transAxes, ha="right", va="bottom", fontsize="small")
    for each, style in (("supervised", method_style("supervised")), (name, PLAIN), (f"{name}-shot", WITH_SHOT)):
        _curves(ax, results, each, style)
    untrained = trials_of(results, "untrained")
    if untrained:
        level = sum(rows_of(results, t)[0]["accuracy"] for t in untrained) / len(untrained)
        ax.axhline(100 * level, color=CONTROL.color, linestyle=CONTROL.linestyle)


PLAIN, WITH_SHOT = method_style("maml"), method_style("maml-shot")


def _curves(
    ax: Axes,
    results: Results,
    name: str,
    style: MethodStyle,
    *,
    per: int = 1,
    what: str = "accuracy",
    scale: float = 100.0,
) -> None:
    """Each seed thin, their mean thick."""
    found = [rows_of(results, trial) for trial in trials_of(results, name) if trial["diverged_at"] is None]
    if not found:
        return
    lines = [[scale * row[what] for row in rows if row[what] is not None] for rows in found]
    steps = [row["meta_step"] / per for row in found[0]]
    for line in lines if len(lines) > 1 else []:
        ax.plot(steps[: len(line)], line, color=style.color, linewidth=0.5, alpha=0.6)
    mean = [sum(values) / len(values) for values in zip(*lines, strict=False)]
    ax.plot(steps[: len(mean)], mean, color=style.color, linestyle=style.linestyle)


def _curve_handles(results: Results) -> Sequence[Line2D]:
    named = [("without SHOT", PLAIN), ("with SHOT", WITH_SHOT)]
    if trials_of(results, "supervised"):
        named.append(("supervised (control)", method_style("supervised")))
    if trials_of(results, "untrained"):
        named.append(("untrained (control)", CONTROL))
    handles = [Line2D([], [], color=s.color, linestyle=s.linestyle, label=label) for label, s in named]
    if len(results["seeds"]) > 1:
        handles.append(Line2D([], [], color=DARK, linewidth=0.5, label="single seeds"))
    return handles


def _handle(name: str, style: MethodStyle) -> Line2D:
    label = TITLES[name.removesuffix("-shot")] + (" + SHOT" if name.endswith("-shot") else "")
    return Line2D([], [], color=style.color, linestyle=style.linestyle, label=label)
