"""The Python code that makes the plot of a view: what the explorer's button copies, and what makes its PDF.

The templates are sent to the browser, which fills them in the same way as ``code`` does, so that a static page needs
no kernel. A placeholder is a name in double braces; a line that holds only an empty placeholder is left out.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import style
from analysis.drawing.references import training_axis
from analysis.drawing.summary import TASK_DIMS, measured, summarise

State = Mapping[str, Any]
"""What is shown: quantity, learners, seed and task (None: the mean), checkpoint, inner_step, extra (the position along
each further dimension of the quantity), and log (True for a logarithmic axis)."""

VIEWS = ("training", "inner", "tasks", "spectrum", "surface")
# The templates: the beginning of the code, the computation of ``mean``, ``low`` and ``high`` by the kind of mean (see
# ``kind_of_mean``), the drawing of a view or of a part of one, and the figure with its axes.
_BEGIN = """\
import matplotlib.pyplot as plt
import numpy as np
{{open}}
{{axis}}
from analysis.drawing.summary import measured, summarise

{{study}}
colors = {{colors}}"""
_MEANS = {
    "seeds": """\
# means over tasks, then over seeds; the band is over seeds
summary = summarise({{values}})
mean, low, high = summary.mean, summary.low, summary.high""",
    "tasks": """\
values = {{values}}.sel(seed={{seed}})
mean, stderr = values.mean("{{task_dim}}"), values.std("{{task_dim}}", ddof=1) / values.count("{{task_dim}}") ** 0.5
low, high = mean - stderr, mean + stderr""",
    "point": """\
mean, error = {{values}}.sel({{point}}), {{error}}
low, high = mean - error, mean + error""",
}
_LINES = """\
for learner, color in colors.items():
    line, bottom, top = (part.sel(learner=learner) for part in (mean, low, high))
    ax.plot(line["{{x}}"], line, marker="o", color=color, label=learner)
    ax.fill_between(line["{{x}}"], bottom, top, color=color, alpha=0.15, linewidth=0)
ax.set(xlabel="{{xlabel}}", ylabel={{label}})"""
_BODIES = {
    "training": _LINES + "\ntraining_axis(ax, mean.checkpoint.values)\n{{yscale}}\nax.legend()",
    "inner": _LINES + "\nax.set_xticks(mean.inner_step)\n{{yscale}}\nax.legend()",
    "tasks": """\
values = {{values}}{{one_seed}}
for row, (learner, color) in enumerate(colors.items()):
    numbers = values.sel(learner=learner).values.ravel()
    ax.plot(numbers, np.full(numbers.size, row), "o", color=color, alpha=0.5)
ax.set_yticks(range(len(colors)), list(colors))
ax.set_ylim(len(colors) - 0.5, -0.5)
{{tasks_scale}}
ax.set_xlabel({{label}})""",
    "density": """\
peak = float(mean.sel(learner=list(colors)).max())
for row, (learner, color) in enumerate(colors.items()):
    height = 0.8 * mean.sel(learner=learner) / peak
    ax.fill_between(mean["grid"], row, row - height, color=color, alpha=0.3, linewidth=0)""",
    "eigenvalues": """\
values = {{values}}{{chosen}}
for row, (learner, color) in enumerate(colors.items()):
    numbers = values.sel(learner=learner).values.ravel()
    ax.plot(numbers, np.full(numbers.size, row), "|", markersize=14, color=color, alpha=0.5)""",
    "spectrum": """\
ax.set_xscale("asinh", linear_width={{linear_width}})
ax.set_yticks(range(len(colors)), list(colors))
ax.set_ylim(len(colors) - 0.5, -1)
ax.set_xlabel("{{spectrum_label}}")""",
    "surface": """\
shown = mean.sel(learner=list(colors))
low, high = float(shown.min()), float(shown.quantile(0.95))
for ax, learner in zip(axes.flat, colors):
    surface = shown.sel(learner=learner).transpose("surface_y", "surface_x")
    image = ax.pcolormesh(shown.surface_x, shown.surface_y, surface, cmap="cividis", vmin=low, vmax=high)
    ax.set(title=learner, xlabel="along the descent direction", ylabel="random direction", aspect="equal")
fig.colorbar(image, ax=axes, label="support loss")""",
}
_CANVAS = {
    "surface": 'fig, axes = plt.subplots(1, len(colors), squeeze=False, layout="constrained")',
    "others": 'fig, ax = plt.subplots(layout="constrained")',
}
TEMPLATES = {"begin": _BEGIN, "means": _MEANS, "bodies": _BODIES, "canvas": _CANVAS}


def fill(template: str, fields: Mapping[str, str]) -> str:
    """The template with its placeholders replaced by texts; a line that holds only a placeholder for "" is left out."""
    lines = template.split("\n")
    kept = [line for line in lines if not (only := re.fullmatch(r"\{\{(\w+)\}\}", line)) or fields[only[1]]]
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], "\n".join(kept))


def code(header: Mapping[str, Any], view: str, state: State) -> str:
    """The code that makes the plot of a view, in full."""
    begin = fill(_BEGIN, _fields(header, view, state, state["quantity"]))
    return "\n".join([begin, _CANVAS["surface" if view == "surface" else "others"], *body(header, view, state), ""])


def body(header: Mapping[str, Any], view: str, state: State) -> list[str]:
    """The pieces of code that draw a view in the given axes."""
    variables = header["variables"]
    if view == "tasks":
        return [fill(_BODIES["tasks"], _fields(header, view, state, state["quantity"]))]
    if view in ("training", "inner"):
        return _pieces(header, view, state, state["quantity"], view)
    if view == "surface":
        return _pieces(header, view, state, "loss_surface", view)
    pieces = _pieces(header, view, state, "density", "density") if "density" in variables else []
    if "eigenvalue" in variables:
        pieces.append(fill(_BODIES["eigenvalues"], _fields(header, view, state, "eigenvalue")))
    return [*pieces, fill(_BODIES["spectrum"], _fields(header, view, state, state["quantity"]))]


def _pieces(header: Mapping[str, Any], view: str, state: State, name: str, part: str) -> list[str]:
    """The code that computes the mean of a variable with its band, and the template ``part`` that draws both."""
    fields = _fields(header, view, state, name)
    return [fill(_MEANS[kind_of_mean(header, state, name)], fields), fill(_BODIES[part], fields)]


def task_dim(header: Mapping[str, Any], name: str) -> str | None:
    """The dimension of a variable that counts tasks, if any."""
    return next((dim for dim in header["variables"][name]["dims"] if dim in TASK_DIMS), None)


def kind_of_mean(header: Mapping[str, Any], state: State, name: str) -> str:
    """Over what a variable is averaged: "seeds" (tasks, then seeds), the "tasks" of one seed, or nothing ("point")."""
    if state["seed"] is None:
        return "seeds"
    return "tasks" if task_dim(header, name) and state["task"] is None else "point"


def _fields(header: Mapping[str, Any], view: str, state: State, name: str) -> dict[str, str]:
    """The texts for the placeholders, for one variable of a view."""
    variable = header["variables"][name]
    tasks = task_dim(header, name)
    place = {"checkpoint": state["checkpoint"], "inner_step": state["inner_step"]}
    # The dimensions along which the view shows the point of the sliders alone, and not a whole curve.
    fixed = {"training": ["inner_step"], "inner": ["checkpoint"]}.get(view, ["checkpoint", "inner_step"])
    at = _arguments({dim: place[dim] for dim in fixed if dim in variable["dims"]})
    extra = _arguments({dim: index for dim, index in state["extra"].items() if dim in variable["dims"]})
    # A density is that of eigenvalues times alpha. Where there is one, the computed eigenvalues are multiplied by alpha
    # too.
    scale = ' * ds["step_size"]' if name == "eigenvalue" and view == "spectrum" and header["step_size"] else ""
    # The chosen seed and task; None stands for a mean over all of them.
    one = {"seed": state["seed"]} | ({tasks: state["task"]} if tasks else {})
    known = {dim: label for dim, label in one.items() if label is not None}

    def values(each: str) -> str:
        """The code of a variable's values at the point that the view shows."""
        text = f'measured(ds, "{each}")' if header["has_status"] else f'ds["{each}"]'
        text = f"({text}{scale})" if scale else text
        return text + (f".isel({extra})" if extra else "") + (f".sel({at})" if at else "")

    names = {"checkpoint": "meta-iteration", "inner_step": "inner step"}
    further_words = [f"{dim} {header['coords'][dim][index]}" for dim, index in state["extra"].items()]
    point_words = [f"{names[dim]} {place[dim]}" for dim in fixed if dim in variable["dims"]]
    colors = _colors(header, state)
    return {
        "open": "" if header["source"] is None else "\nimport analysis",
        "study": "# ds is the Dataset that you explored"
        if header["source"] is None
        else f"ds = analysis.open_study({_quoted(header['source'])})",
        "colors": "{" + ", ".join(f"{_quoted(key)}: {_quoted(color)}" for key, color in colors.items()) + "}",
        "values": values(name),
        "error": f"{values(variable['error'])}.sel({_arguments(one)})" if variable["error"] else "0",
        "seed": _quoted(state["seed"]),
        "axis": "from analysis.drawing.references import training_axis" if view == "training" else "",
        "task_dim": tasks or "",
        "point": _arguments(one),
        "one_seed": "" if state["seed"] is None else f".sel({_arguments({'seed': state['seed']})})",
        "chosen": "" if state["seed"] is None else f".sel({_arguments(known)})",
        "x": "checkpoint" if view == "training" else "inner_step",
        "xlabel": "meta-iteration" if view == "training" else "inner step",
        "label": _quoted(", ".join([name, *further_words, *point_words])),
        "yscale": 'ax.set_yscale("log")' if state["log"] else "",
        "tasks_scale": 'ax.set_xscale("log")' if state["log"] else "",
        "linear_width": "0.1" if header["step_size"] else "1",
        "spectrum_label": "eigenvalue times step size" if header["step_size"] else "eigenvalue",
    }


def _colors(header: Mapping[str, Any], state: State) -> dict[str, str]:
    """The colour of each chosen learner, in the order of the study."""
    return {each["name"]: each["color"] for each in header["learners"] if each["name"] in state["learners"]}


def _arguments(named: Mapping[str, Any]) -> str:
    """The arguments of a call by name, as Python writes them."""
    return ", ".join(f"{name}={_quoted(value)}" for name, value in named.items())


def _quoted(value: object) -> str:
    """A number, or a text in quotation marks, in which nothing can end the text; code.js writes it in the same way."""
    return json.dumps(value, ensure_ascii=False)


def draw(ds: xr.Dataset, header: Mapping[str, Any], view: str, state: State, *, width: style.Width = 5.0) -> Figure:
    """The plot of a view as a figure, made by the code that ``code`` returns.

    The code is built here from names and numbers that the study has; text from the browser is never run.
    """
    with style.context(width=width):
        if view == "surface":
            count = len(state["learners"])
            figure = Figure(figsize=(2.6 * count + 1, 2.8), layout="constrained")
            places: dict[str, Any] = {"axes": figure.subplots(1, count, squeeze=False)}
        else:
            figure = Figure(layout="constrained")
            places = {"ax": figure.subplots()}
        draw_into(ds, header, view, state, fig=figure, **places)
    return figure


def draw_into(ds: xr.Dataset, header: Mapping[str, Any], view: str, state: State, **places: Any) -> None:
    """Run the code of a view in axes that exist. places: ``fig`` and ``ax`` (or ``axes``), by these names."""
    names = {"ds": ds, "np": np, "measured": measured, "summarise": summarise, "training_axis": training_axis}
    names["colors"] = _colors(header, state)
    exec("\n".join(body(header, view, state)), names | places)
