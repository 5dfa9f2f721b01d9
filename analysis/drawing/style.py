"""The style of figures: the rcParams of ``paper.mplstyle``, and one colour, marker and line style for each method.

Sizes are those in print. A figure drawn under ``context(width="single")`` is 3.25 inches wide and goes into a column of
a paper without scaling, so that text of 8 pt is 8 pt on paper.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import matplotlib as mpl
from matplotlib.colors import to_hex

from hessian_tools.validation import did_you_mean

Width = float | str
"""A width in inches, or a name in ``INCHES``."""

LineStyle = Literal["-", "--", "-.", ":"]

# The widths of the venues are those of their LaTeX styles: icml2024.sty, neurips_2024.sty and iclr2024_conference.sty,
# and the format that jmlr.org asks for.
INCHES: dict[str, float] = {
    **{"single": 3.25, "double": 6.75},
    **{"icml": 3.25, "icml-full": 6.75, "neurips": 5.5, "iclr": 5.5, "jmlr": 6.0},
}
"""The widths in inches by name: one column and the full text of a two-column paper, and the columns of venues."""

MIN_INCHES, MAX_INCHES = 1.5, 20.0

_PARAMETERS = dict(mpl.rc_params_from_file(Path(__file__).with_name("paper.mplstyle"), use_default_template=False))

# This is set for the whole process, because users save what ``analysis.plot`` drew later, outside of ``context``.
mpl.rcParams.update({key: _PARAMETERS[key] for key in ("pdf.fonttype", "ps.fonttype")})

DPI = int(_PARAMETERS["savefig.dpi"])
"""The resolution of the PNG files, in dots per inch."""


@dataclass(frozen=True)
class MethodStyle:
    """The colour, marker and line style of one method. Marker and line style tell methods apart without colour."""

    color: str
    marker: str
    linestyle: LineStyle


GREY = "#6f6f6f"
LIGHT_GREY = "#b9b9b9"
DARK = "#333333"
"""The colour of legend entries that stand for all methods, each of which has its own colour in the panels."""

CONTROL_STYLE = MethodStyle(GREY, "s", ":")
"""The style of an untrained control, whatever its name: grey is reserved for networks that are not trained."""

# A method has the same colour in every figure. The first six colours are those of Okabe and Ito (2008) without their
# yellow, which vanishes on white. SHOT is the penalty on the distance between the ends of few large and of many small
# inner steps (Lee, Yoo, Kwak 2023). A learner with SHOT has a dashed line, the same learner without SHOT a solid one.
# "fomaml" is first-order MAML, and "leo" adapts a latent code of the last layer (Rusu et al. 2019).
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

# Colours of Tol's muted scheme, which is safe for colour-blind readers, that differ from the colours above.
_SPARE_COLORS = ("#CC6677", "#AA4499", "#117733", "#4B6A9B", "#A0522D", "#7F7F00")
_SPARE_MARKERS = ("p", "*", "d", "8", "H", "s")
_SPARE_LINES: tuple[LineStyle, ...] = ("-", "--", "-.")


def method_style(name: str) -> MethodStyle:
    """The style of one method: from the table of known methods, or computed from the name alone.

    A method has the same style in every study, because only its name matters. Two names that are not in the table can
    get the same colour; their markers and line styles then mostly differ.
    """
    key = name.lower().replace("_", "-")
    if key in METHODS:
        return METHODS[key]
    number = crc32(key.encode())  # unlike hash(), crc32 gives the same number in every process
    # The divisions take other bits of the number, so that markers and line styles do not follow the colours.
    color = _SPARE_COLORS[number % len(_SPARE_COLORS)]
    marker = _SPARE_MARKERS[number // 64 % len(_SPARE_MARKERS)]
    return MethodStyle(color, marker, _SPARE_LINES[number // 4096 % len(_SPARE_LINES)])


def shade(index: int, last: int) -> str:
    """The colour of one of several things in an order: dark for the index 0, and light for the index ``last``.

    It is of viridis, which grows lighter evenly and is safe for colour-blind readers. Its yellow end vanishes on white,
    so the last 15 % of it are not used.
    """
    return to_hex(mpl.colormaps["viridis"](0.85 * index / max(last, 1)))


_OWN_LABELS: ContextVar[Mapping[str, str]] = ContextVar("own labels", default={})  # noqa: B039 (it is never changed)


@contextmanager
def labelled(labels: Mapping[str, str] | None) -> Iterator[None]:
    """Let ``method_label`` give a user's own labels inside a ``with`` block. labels: by the names of learners."""
    token = _OWN_LABELS.set(labels or {})
    try:
        yield
    finally:
        _OWN_LABELS.reset(token)


_SPELLINGS = {"metasgd": "Meta-SGD", "reptile": "Reptile"}
_SPELLINGS |= {name: name.upper() for name in ("maml", "fomaml", "anil", "boil", "leo", "shot")}


def method_label(name: str) -> str:
    """A learner's name as it is written in figures and reports: the user's own label, or the name in a nicer form.

    >>> method_label("maml-shot"), method_label("meta-sgd")
    ('MAML + SHOT', 'Meta-SGD')
    """
    own = _OWN_LABELS.get()
    if name in own:
        return own[name]
    parts = name.replace("_", "-").replace("meta-sgd", "metasgd").split("-")
    words = [_SPELLINGS.get(part.lower(), part) for part in parts]
    return " ".join("+ SHOT" if word == "SHOT" and position else word for position, word in enumerate(words))


def inches_of(width: Width) -> float:
    """The width in inches that a number, a numeral or a name means.

    Raises ValueError for a name that is not known, or for a width at which no figure can be read.

    >>> inches_of("neurips"), inches_of(4), inches_of("4.5")
    (5.5, 4.0, 4.5)
    """
    if str(width).lower() in INCHES:
        return INCHES[str(width).lower()]
    try:
        inches = float(width)
    except (TypeError, ValueError):
        allowed = f"use a number of inches or one of {', '.join(INCHES)}"
        raise ValueError(f"width {width!r} is not known; {allowed}{did_you_mean(str(width), INCHES)}") from None
    if not MIN_INCHES <= inches <= MAX_INCHES:
        raise ValueError(f"width {width!r} is not between {MIN_INCHES:g} and {MAX_INCHES:g} inches")
    return inches


def rc_params(*, width: Width = "single", height: float | None = None) -> dict[Any, Any]:
    """The rcParams for a figure of a given width in print.

    width: a number of inches; "single" for one column of a paper, "double" for the full width of its text; or the
        column of a venue, such as "icml" (see ``INCHES``).
    height: the height in inches; None makes it 0.75 of the width.
    Raises ValueError for any other ``width``.
    """
    inches = inches_of(width)
    return _PARAMETERS | {"figure.figsize": (inches, 0.75 * inches if height is None else height)}


@contextmanager
def context(*, width: Width = "single", height: float | None = None) -> Iterator[None]:
    """Set the rcParams of ``rc_params`` inside a ``with`` block; the caller's are restored afterwards.

    If the first figure of a notebook is made in the block, the notebook's backend turns the interactive mode on there.
    It stays on, because no later figure would be shown without it.
    """
    with mpl.rc_context(rc_params(width=width, height=height)):
        yield
        interactive = mpl.is_interactive()
    mpl.interactive(interactive)
