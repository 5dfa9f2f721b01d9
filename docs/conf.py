"""Settings of the documentation site: ``python -m sphinx -W docs OUT`` builds it, without network."""

import inspect
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# The notebooks are executed in their smoke setting, which takes seconds. One thread each, because two would spin.
os.environ.setdefault("HESSIAN_TOOLS_SMOKE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

project = "hessian-tools"
author = "the authors of hessian-tools"
project_copyright = author
extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["results/*/README.md"]
suppress_warnings = ["mystnb.unknown_mime_type"]  # a widget keeps its picture, and its view needs a kernel

html_theme = "furo"
html_title = project
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]

# Links lead to headings by GitHub's rule for anchors, so that one link works on GitHub and on the site.
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # they would be loaded from the network

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True


# ---- docstrings

# The beginning of a paragraph on arguments, such as "theta, layout: the parameters".
ARGUMENTS = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)")
LITERAL = re.compile(r"(``.+?``|:[a-z:]+:`[^`]+`)")


def to_rest(text: str) -> str:
    """A line of a docstring as reST, in which only literals and references are markup."""
    parts = LITERAL.split(text)
    plain = (re.sub(r"([\\*|`]|_(?!\w))", r"\\\1", part) for part in parts[::2])
    return "".join(a + b for a, b in zip(plain, [*parts[1::2], ""], strict=True))


def one_argument_a_line(lines: list[str], obj: Any) -> list[str]:
    """Begin a new line at each argument of ``obj`` that begins within one, as in "rtol: x. seed: y"."""
    try:
        names = "|".join(inspect.signature(obj).parameters)
    except (TypeError, ValueError):  # a module, or a class without a signature
        return lines
    begins = re.compile(rf"(?<=[.;]) (?=(?:{names}): )")
    return [part for line in lines for part in (begins.split(line) if names and ">>>" not in line else [line])]


def process_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Write a docstring in reST: each argument as an item of a list; lists and examples stay what they are."""
    out: list[str] = []
    example = inside = False  # whether the line belongs to an example, and to an item of a list
    for line in map(str.rstrip, one_argument_a_line(lines, obj)):
        argument = ARGUMENTS.fullmatch(line)
        begins = line.lstrip().startswith(">>>") and not example
        example = bool(line) and (example or begins)
        if begins or (out and out[-1] and not example and not inside and (argument or line.lstrip().startswith("- "))):
            out.append("")
        inside = bool(line) and not example and (inside or bool(argument) or line.lstrip().startswith("- "))
        if example or not line:
            out.append(line)
        elif argument:
            out.append(f"- **{argument[1]}**: {to_rest(argument[2])}")
        else:
            text = to_rest(line.lstrip())
            out.append(f"  {text}" if inside and not text.startswith("- ") else text)
    lines[:] = out


MODULES = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Za-z_]\w*)")


def process_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write types by their own names, without the modules in which they are defined."""
    return tuple(text and MODULES.sub("", text).replace("~", "") for text in (signature, returns))  # type: ignore[return-value]


# ---- comments in Markdown

# The place of an explorer, which GitHub would show as text if it were written as HTML.
EXPLORER = re.compile(r"<!-- explorer: ([\w-]+) -->")
FRAME = r'<iframe class="explorer" src="results/\1/explorer.html" title="Explorer of \1" loading="lazy"></iframe>'


def replace_comments(app: Any, name: str, source: list[str]) -> None:
    """Put explorers in their places, and remove all other HTML comments, by which tests find numbers.

    A comment at the beginning of a line would end its paragraph.
    """
    if not name.startswith("tutorial/"):
        source[0] = re.sub(r"\s*<!--.*?-->", "", EXPLORER.sub(FRAME, source[0]), flags=re.DOTALL)


# ---- links to notebooks, for which docs/tutorial is a link, and to the reports of kept results


def lead_to_notebooks(app: Any, doctree: Any) -> None:
    """Make links to ``notebooks/NAME.ipynb`` lead to the page of the notebook."""
    for node in doctree.findall(addnodes.pending_xref):
        path = Path(node["reftarget"])
        if path.parent == ROOT / "notebooks":
            node["reftarget"] = f"tutorial/{path.name}"


def lead_to_reports(app: Any, doctree: Any) -> None:
    """Make links to a ``report.html`` lead to the page in its folder, where its figures are, and not to a copy.

    A link to the explorer of the same results, which exists on the site alone, is put behind it.
    """
    for node in list(doctree.findall(addnodes.download_reference)):
        path = Path(node["reftarget"])
        if path.name == "report.html":
            report = nodes.reference("", "", *node.children, refuri=f"{path.parent.name}/{path.name}")
            explorer = nodes.reference("", "explore", refuri=f"{path.parent.name}/explorer.html")
            node.replace_self([report, nodes.Text(" ("), explorer, nodes.Text(")")])


def add_reports_and_explorers(app: Any, error: Exception | None) -> None:
    """Copy the reports of kept results with their figures into the site, and write the explorer's page of each."""
    import analysis

    for report in (ROOT / "docs" / "results").glob("*/report.html"):
        folder = Path(app.outdir) / "results" / report.parent.name
        shutil.copytree(report.parent / "figures", folder / "figures", dirs_exist_ok=True)
        shutil.copy(report, folder)
        analysis.explore(report.parent).save(folder / "explorer.html")


def setup(app: Any) -> None:
    """Connect the functions above; called by Sphinx."""
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("source-read", replace_comments)
    app.connect("doctree-read", lead_to_notebooks)
    app.connect("doctree-read", lead_to_reports)
    app.connect("build-finished", add_reports_and_explorers)
