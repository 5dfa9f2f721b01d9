"""``explore``: a study as an interactive view, in a notebook (by anywidget) or as a static page."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import style
from analysis.drawing.summary import TASK_DIMS
from analysis.errors import UserError
from analysis.explorer.code import VIEWS, State, code, draw, draw_into, task_dim
from analysis.explorer.export import LEADING_DIMS, export
from analysis.folder import open_study
from hessian_tools.runs.files import write_text
from hessian_tools.validation import check_choice

FILES = Path(__file__).parent
MODULES = ("chart.js", "data.js", "code.js", "views.js", "explorer.js")
SCRIPT = "\n".join((FILES / name).read_text(encoding="utf-8") for name in MODULES)
"""The one ES module of the notebook and of the static page, which is joined here because a widget takes one text."""
CSS = (FILES / "explorer.css").read_text(encoding="utf-8")
WIDGET = "application/vnd.jupyter.widget-view+json"
"""The MIME type by which a notebook recognises a widget."""
INSTALL = "the explorer needs anywidget in a notebook: pip install 'hessian-tools[notebook]'"


def explore(study: str | Path | xr.Dataset, *, variables: Sequence[str] | None = None) -> "Explorer":
    """Explore a study: quantity, learners and seed, meta-iteration and inner step are chosen, and all views follow.

    study: a study's folder, which may still be growing, or the Dataset of ``analysis.open_study``.
    variables: the quantities that can be chosen; their errors come with them. None takes all that fit.

    In a notebook the result shows itself; ``save`` writes it as a page that needs neither a server nor Python.
    Raises ValueError where the Dataset is no study's or has no such quantity, and UserError for a folder without
    measurements.
    """
    return Explorer(study, variables=variables)


class Explorer:
    """The explorer of a study; see :func:`explore`."""

    def __init__(self, study: str | Path | xr.Dataset, *, variables: Sequence[str] | None = None) -> None:
        self._source = None if isinstance(study, xr.Dataset) else Path(study)
        self._variables = variables
        self._widget: Any = None
        self._read(study if isinstance(study, xr.Dataset) else open_study(study))

    def _read(self, ds: xr.Dataset) -> None:
        """Take the study's measurements, and what the browser receives of them."""
        header, values = export(ds, variables=self._variables)
        source = None if self._source is None else self._source.as_posix()
        self._ds, self._values = ds, values
        self._header = header | {"source": source, "can_refresh": source is not None}

    def __repr__(self) -> str:
        learners, seeds = (len(self._header["coords"][dim]) for dim in ("learner", "seed"))
        quantities, size = len(self._header["menu"]), len(self._values) / 1e6
        return f"Explorer({learners} learners, {seeds} seeds, {quantities} quantities, {size:.1f} MB)"

    @property
    def left_out(self) -> list[str]:
        """The quantities that were left out because all together are too large; ``variables`` chooses."""
        return list(self._header["left_out"])

    def refresh(self) -> "Explorer":
        """Read the study's folder again, and show what was measured since.

        Raises ValueError if the explorer was made from a Dataset, which does not grow.
        """
        if self._source is None:
            raise ValueError("this explorer was made from a Dataset, which does not grow; give explore the folder")
        self._read(open_study(self._source))
        if self._widget is not None:
            with self._widget.hold_sync():
                self._widget.values, self._widget.header = self._values, self._header
        return self

    def save(self, path: str | Path) -> Path:
        """Write the explorer as one HTML file, which needs neither a server nor a network; returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page(self._header, self._values))
        return path

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and a picture for a notebook that is exported without its widgets."""
        bundle = {"text/plain": repr(self), "image/png": base64.b64encode(self._picture()).decode("ascii")}
        try:
            self._widget = self._widget or widget_class()(self)
        except ModuleNotFoundError as e:
            if e.name != "anywidget":
                raise
            bundle["text/plain"] = f"{self!r}; {INSTALL}, or write a page with .save('page.html')"
            return bundle, {}
        shown = self._widget._repr_mimebundle_(**kwargs)
        shown = shown[0] if isinstance(shown, tuple) else shown or {}
        return bundle | {WIDGET: shown[WIDGET]}, {}

    def _start(self) -> dict[str, Any]:
        """The choices that the explorer begins with, as ``_checked`` returns them."""
        coords, quantity = self._header["coords"], self._header["menu"][0]
        dims = self._header["variables"][quantity]["dims"]
        further = [dim for dim in dims if dim not in (*LEADING_DIMS, *TASK_DIMS, "inner_step")]
        return {
            "quantity": quantity,
            "learners": self._header["shown"],
            "seed": None,
            "task": None,
            "checkpoint": coords["checkpoint"][self._header["start"]],
            "inner_step": coords.get("inner_step", [0])[0],
            "extra": dict.fromkeys(further, 0),
            "log": False,
        }

    def _picture(self) -> bytes:
        """The views of the first choices side by side, as a PNG."""
        state = self._start()
        dims = self._header["variables"][state["quantity"]]["dims"]
        views = ["training"] + ["inner"] * ("inner_step" in dims) + ["tasks"] * ("task" in dims)
        with style.context(width="double", height=2.6):
            figure = Figure(layout="constrained")
            axes = figure.subplots(1, len(views), squeeze=False).flat
            for view, ax in zip(views, axes, strict=True):
                draw_into(self._ds, self._header, view, state, fig=figure, ax=ax)
                if view == "inner":
                    ax.get_legend().remove()  # the first panel has the same one
                ax.set_xlabel(ax.get_xlabel().replace(", ", "\n", 1))  # a long label takes two lines
            content = BytesIO()
            figure.savefig(content, format="png", dpi=110)
        return content.getvalue()

    def _checked(self, state: Mapping[str, Any]) -> State:
        """The state that a browser sent, with its names and numbers replaced by those of the study."""
        coords = self._header["coords"]
        quantity = check_choice("quantity", state["quantity"], self._header["menu"])
        chosen = [name for name in coords["learner"] if name in state["learners"]]
        if not chosen:
            raise ValueError("no learner is chosen; choose one")

        def label(dim: str, value: object) -> Any:
            """The study's own label that equals the browser's value; None stands for a mean and stays None."""
            return None if value is None else coords[dim][coords[dim].index(value)]

        tasks = task_dim(self._header, quantity)
        dims = self._header["variables"][quantity]["dims"]
        return {
            "quantity": quantity,
            "learners": chosen,
            "seed": label("seed", state["seed"]),
            "task": label(tasks, state["task"]) if tasks else None,
            "checkpoint": label("checkpoint", state["checkpoint"]),
            "inner_step": label("inner_step", state["inner_step"]) if "inner_step" in coords else 0,
            "extra": {dim: int(index) for dim, index in state["extra"].items() if dim in dims},
            "log": bool(state["log"]),
        }

    def _code(self, view: str, state: Mapping[str, Any]) -> str:
        """The code that the browser's button copies."""
        return code(self._header, check_choice("view", view, VIEWS), self._checked(state))

    def _receive(self, widget: Any, message: Mapping[str, Any], buffers: object) -> None:
        """Answer a button that needs the kernel; an error is told in the browser. The arguments are anywidget's."""
        try:
            if message["kind"] == "refresh":
                self.refresh()
                widget.send({"kind": "note", "text": "The study is read again."})
                return
            view, content = check_choice("view", message["view"], VIEWS), BytesIO()
            state = self._checked(message["state"])
            figure = draw(self._ds, self._header, view, state)
            figure.savefig(content, format="pdf", metadata={"CreationDate": None})
            name = f"{state['quantity']}-{view}.pdf"
            widget.send({"kind": "pdf", "name": name, "text": f"{name} is saved."}, buffers=[content.getvalue()])
        except (AttributeError, LookupError, OSError, TypeError, ValueError, UserError) as e:
            widget.send({"kind": "note", "text": str(e)})


@cache
def widget_class() -> type:
    """The class of the widget, which is made at its first use, because a static page does not need anywidget."""
    import anywidget
    import traitlets

    class ExplorerWidget(anywidget.AnyWidget):
        _esm = SCRIPT
        _css = CSS
        header = traitlets.Dict().tag(sync=True)
        values = traitlets.Bytes().tag(sync=True)

        def __init__(self, explorer: Explorer) -> None:
            super().__init__(header=explorer._header, values=explorer._values)
            self.on_msg(explorer._receive)

    return ExplorerWidget


def study_page(ds: xr.Dataset, folder: Path) -> str:
    """The explorer's page of a study's Dataset; its code opens the study's ``folder``."""
    header, values = export(ds)
    return page({**header, "source": folder.as_posix()}, values)


def page(header: Mapping[str, Any], values: bytes) -> str:
    """The explorer as a whole HTML document, which holds the numbers compressed by gzip."""
    title = f"Explorer: {header['study']}" if header["study"] else "Explorer"
    # "<" is written as an escape of JSON, so that no text of the study can end the script element that holds it.
    header_text = json.dumps({**header, "can_refresh": False}).replace("<", "\\u003c")
    # Without the time of writing in it, the same study gives the same page.
    numbers = base64.b64encode(gzip.compress(values, mtime=0)).decode("ascii")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
body {{ margin: 0; display: grid; justify-content: stretch; }}
main {{ width: 100%; max-width: 76rem; margin: 0 auto; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #17181b; }} }}
{CSS}</style>
</head>
<body>
<main id="explorer"><noscript>The explorer needs JavaScript.</noscript></main>
<script type="application/json" id="header">{header_text}</script>
<script type="text/plain" id="values">{numbers}</script>
<script type="module">
{SCRIPT}
const packed = Uint8Array.from(atob(document.getElementById("values").textContent), (letter) => letter.charCodeAt(0));
const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
const content = {{
  header: JSON.parse(document.getElementById("header").textContent),
  values: await new Response(unpacked).arrayBuffer(),
}};
render({{ model: {{ get: (name) => content[name], on() {{}} }}, el: document.getElementById("explorer") }});
</script>
</body>
</html>
"""
