"""Writes the section "Quantities of a study" of docs/quantities.md from the quantities themselves.

Run ``python tests/analysis/quantities_document.py`` after a change of a quantity.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import fill

from analysis.quantities import QUANTITIES, REQUIRED, STANDARD, VARIANTS, Quantity

DOCUMENT = Path(__file__).parents[2] / "docs" / "quantities.md"
BEGIN = "<!-- The text from here to the next mark is made by tests/analysis/quantities_document.py. -->\n"
END = "<!-- The end of the text that is made. -->\n"
INTRODUCTION = """
A study names what it measures under `measure.quantities` in its YAML. {required} are measured in every study, because
the claims read them. "standard" stands for these and {standard}, and "all" for everything below. A file of your own
adds further ones, see [your_own_quantity.md](your_own_quantity.md).

Each quantity is one file of `analysis/quantities/`. A value belongs to a *point* theta_k of an inner loop, or to a
whole inner loop (*task*), and has the further dimensions that the tables name. Losses and parameters count as
dimensionless, so the unit of every variable is 1; the tables above say what that stands for. A task whose inner loop
diverged has no values but those that were recorded on the way. The products that a cost names are those at each point.

The level says where a quantity is measured: with the level light everywhere, and with the level full only on a study's
first tasks (`full_tasks`), at the first and the last checkpoint.
"""
LOSSES = """
### On other losses

`measure.losses` asks for the same curvature of other losses, or along other directions. The names of the variables then
end in the name of the variant, as in `rho_query`.

| variant | its variables are | quantities |
|---|---|---|
"""


def section() -> str:
    """The text between the two marks."""
    required, standard = _listed(REQUIRED), _listed(name for name in STANDARD if name not in REQUIRED)
    # The names have other lengths than their placeholders, so each paragraph is filled anew.
    paragraphs = INTRODUCTION.format(required=required, standard=standard).strip().split("\n\n")
    parts = ["", *(fill(text, 120, break_on_hyphens=False) + "\n" for text in paragraphs)]
    parts += ["\n".join(_about(quantity)) for quantity in QUANTITIES.values()]
    rows = (
        f"| `{name}` | {words} | {_listed(quantity.name for quantity in quantities)} |"
        for name, (words, quantities) in VARIANTS.items()
    )
    return "\n".join(parts) + LOSSES + "\n".join(rows) + "\n\n"


def _about(quantity: Quantity) -> Iterator[str]:
    """The lines on one quantity, and the table of its variables."""
    yield f"### {quantity.name}: {quantity.title}\n"
    yield f"- formula: `{quantity.formula}`"
    yield f"- cost: {quantity.cost}"
    yield f"- function: {', '.join(f'`{name}`' for name in quantity.library.split(', '))}"
    yield f"- level: {quantity.level}"
    if quantity.reference:
        yield f"- source: {quantity.reference}"
    yield "\n| variable | meaning | for each | error |\n|---|---|---|---|"
    for variable in quantity.variables:
        error = f"`{variable.error}`" if variable.error else ""
        meaning = variable.long_name.replace("|", "\\|")
        dims = ["point" if "inner_step" in variable.dims else "task"]
        dims += [dim for dim in variable.dims if dim not in ("checkpoint", "task", "inner_step")]
        yield f"| `{variable.name}` | {meaning} | {', '.join(dims)} | {error} |"
    yield ""


def _listed(names: Iterable[str]) -> str:
    """The names in code font, with "and" before the last one."""
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} and {last}" if first else last


def updated(text: str) -> str:
    """The document with its section made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + section() + END + rest.split(END)[1]


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
