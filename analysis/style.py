"""How figures look: rcParams as data, at the width they are printed, and one colour for each method.

Sizes are final: a figure drawn under ``context(width="single")`` is 3.25 inches wide and goes into a
paper's column without scaling, so that 8 pt in here is 8 pt on paper.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from zlib import crc32

import matplotlib as mpl

Width = Literal["single", "double"]
Line = Literal["-", "--", "-.", ":"]

INCHES: dict[str, float] = {"single": 3.25, "double": 6.75}
"""Width of one column and of the full text of a two-column paper."""

DPI = 300

# STIX comes with matplotlib; a Times font is missing on a bare machine and falls back without asking.
FONTS: dict[str, object] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "figure.labelsize": 8.0,
    "figure.titlesize": 8.0,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7.5,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
}

LINES: dict[str, object] = {
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "lines.markeredgewidth": 0.8,
    "patch.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
    "axes.labelpad": 2.5,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.linewidth": 0.4,
    "grid.color": "#e4e4e4",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.4,
    "legend.borderaxespad": 0.2,
}

# Type 42 embeds TrueType outlines: journals refuse Type 3. The SVG salt makes its ids repeat.
OUTPUT: dict[str, object] = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "hessian-tools",
    "savefig.dpi": DPI,
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class MethodStyle:
    """Colour, marker and line of one method; marker and line tell methods apart without colour."""

    color: str
    marker: str
    linestyle: Line


GREY = "#6f6f6f"
LIGHT_GREY = "#b9b9b9"
DARK = "#333333"
"""Stands for "the method's own colour" where a legend speaks of all methods."""

CONTROL = MethodStyle(GREY, "s", ":")
"""The look of an untrained control, whatever its name: grey belongs to what was not trained."""

# Colour belongs to the method, in every figure. The first six are Okabe and Ito's (2008) without the yellow that
# vanishes on white. A learner without SHOT is drawn solid, with SHOT dashed.
METHODS: dict[str, MethodStyle] = {
    "supervised": MethodStyle("#000000", "X", "-."),
    "maml": MethodStyle("#0072B2", "o", "-"),
    "maml-shot": MethodStyle("#D55E00", "^", "--"),
    "fomaml": MethodStyle("#009E73", "D", "-"),
    "fomaml-shot": MethodStyle("#E69F00", "v", "--"),
    "anil": MethodStyle("#CC79A7", "P", "-"),
    "anil-shot": MethodStyle("#8B6508", "<", "--"),
    "boil": MethodStyle("#56B4E9", "h", "-"),
    "boil-shot": MethodStyle("#332288", ">", "--"),
    "meta-sgd": MethodStyle("#882255", "p", "-"),
    "meta-sgd-shot": MethodStyle("#DDAA33", "*", "--"),
    "reptile": MethodStyle("#999933", "d", "-"),
    "reptile-shot": MethodStyle("#EE3377", "8", "--"),
    "leo": MethodStyle("#44AA99", "H", "-"),
    "leo-shot": MethodStyle("#663311", "s", "--"),
}

# Tol's muted scheme, safe for colour-blind readers too, and apart from the colours above.
_SPARE_COLORS = ("#CC6677", "#AA4499", "#117733", "#4B6A9B", "#A0522D", "#7F7F00")
_SPARE_MARKERS = ("p", "*", "d", "8", "H", "s")
_SPARE_LINES: tuple[Line, ...] = ("-", "--", "-.")


def method_style(name: str) -> MethodStyle:
    """The look of one method: from the table, or for another name from the name alone.

    A method keeps its look whatever else is in the study, so the rule reads only the name
    (``crc32``, which does not change between runs as ``hash`` does). Two names outside the table can share a
    colour; marker and line come from other digits of the same number and mostly still differ.
    """
    key = name.lower().replace("_", "-")
    if key in METHODS:
        return METHODS[key]
    number = crc32(key.encode())
    color = _SPARE_COLORS[number % len(_SPARE_COLORS)]
    marker = _SPARE_MARKERS[number // 64 % len(_SPARE_MARKERS)]
    return MethodStyle(color, marker, _SPARE_LINES[number // 4096 % len(_SPARE_LINES)])


_WORDS = {
    "maml": "MAML",
    "fomaml": "FOMAML",
    "anil": "ANIL",
    "boil": "BOIL",
    "leo": "LEO",
    "shot": "SHOT",
    "metasgd": "Meta-SGD",
    "reptile": "Reptile",
}


def method_label(name: str) -> str:
    """A learner's name as a reader writes it: ``maml-shot`` is MAML + SHOT."""
    parts = name.replace("_", "-").replace("meta-sgd", "metasgd").split("-")
    words = [_WORDS.get(part.lower(), part) for part in parts]
    return " ".join("+ SHOT" if word == "SHOT" and position else word for position, word in enumerate(words))


def rc_params(*, width: Width = "single", height: float | None = None) -> dict[str, object]:
    """All rcParams for a figure of a final width (and height in inches; 0.75 of the width by default)."""
    if width not in INCHES:
        raise ValueError(f"width {width!r} is not known; use one of {', '.join(INCHES)}")
    inches = INCHES[width]
    size = (inches, 0.75 * inches if height is None else height)
    return FONTS | LINES | OUTPUT | {"figure.figsize": size}


@contextmanager
def context(*, width: Width = "single", height: float | None = None) -> Iterator[None]:
    """Draw under these rcParams; the caller's own come back afterwards."""
    # Any: matplotlib's annotations want its own literal names as keys.
    parameters: dict[Any, Any] = dict(rc_params(width=width, height=height))
    with mpl.rc_context(parameters):
        yield
