"""HTML without a template engine: elements that escape their text, numbers formatted for reading, and the page."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DASH, MINUS, TIMES = "\u2013", "\u2212", "\u00d7"
"""The en dash, which tables show where there is no number, the minus sign and the multiplication sign."""

CSS = """
:root { --ink: #1c1c1c; --soft: #5a5a5a; --line: #d9d9d9; --pale: #f6f6f4; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 66rem; color: var(--ink); background: #fff;
  font: 16px/1.55 "STIX Two Text", Charter, "Bitstream Charter", Georgia, "Liberation Serif", serif; }
h1, h2, h3, p, ul, ol, dl { max-width: 44rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.35rem; margin: 2.75rem 0 .75rem; padding-top: .75rem; max-width: none;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 1.75rem 0 .5rem; }
p, ul { margin: .6rem 0; }
li { margin: .3rem 0; }
.lead { font-size: 1.12rem; }
.soft, caption, figcaption, .verdict-sentence td { color: var(--soft); }
.table { overflow-x: auto; margin: 1rem 0 1.5rem; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: lining-nums tabular-nums; }
table.wide { width: 100%; }
caption { text-align: left; padding: 0 0 .5rem; max-width: 44rem; }
th, td { padding: .4rem .75rem .4rem 0; text-align: left; vertical-align: top; }
thead th { border-bottom: 1.5px solid var(--ink); font-weight: 600; vertical-align: bottom; }
tbody tr { border-top: 1px solid var(--line); }
tbody tr.verdict-sentence { border-top: 0; }
tr.verdict-sentence td { padding: 0 .75rem .7rem 0; max-width: 0; }
/* On a narrow screen a table scrolls sideways, while the sentences in it stay in view. */
tr.verdict-sentence div { position: sticky; left: 0; max-width: calc(100vw - 3.5rem); }
tbody tr.total { border-top: 1px solid var(--soft); border-bottom: 1px solid var(--soft); }
tbody tr.learner-end { border-bottom: 1px solid var(--soft); }
tbody tr.total td { font-weight: 600; }
tbody th { font-weight: 600; }
.num { white-space: nowrap; }
.badge { display: inline-block; padding: .05rem .5rem; border-radius: .7rem; border: 1px solid; white-space: nowrap;
  font-size: .8125rem; }
.badge.supported { color: #00513b; background: #e3f3ee; }
.badge.not { color: #8a3b00; background: #fbeadf; }
.badge.inconclusive { color: #444; background: #efefef; }
figure { margin: 1.5rem 0 2.25rem; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .9rem; max-width: 44rem; margin-top: .6rem; }
pre, code { font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .85em; }
pre { background: var(--pale); padding: .75rem 1rem; overflow-x: auto; white-space: pre-wrap; }
aside { background: var(--pale); border-left: 3px solid #E69F00; padding: .5rem 1rem; margin: 1rem 0;
  max-width: 44rem; }
@media print {
  body { padding: 0; max-width: none; font-size: 10.5pt; }
  .table { overflow: visible; } table { font-size: 8.5pt; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .badge { background: none !important; }
}
"""


@dataclass(frozen=True)
class Html:
    """Text that is already HTML. It goes into elements as it is, whereas a plain ``str`` is escaped."""

    text: str


Child = Html | str


def element(tag: str, *children: Child, css: str = "", **attributes: str) -> Html:
    """An HTML element with its children and attributes; ``css`` is its class.

    >>> element("p", "a < b", css="soft").text
    '<p class="soft">a &lt; b</p>'
    """
    named = ({"class": css} if css else {}) | attributes
    written = "".join(f' {name}="{html.escape(value)}"' for name, value in named.items())
    return Html(f"<{tag}{written}>{join(children).text}</{tag}>")


def join(children: Iterable[Child], separator: str = "") -> Html:
    """The children as one piece of HTML, with ``separator`` between them; plain strings are escaped."""
    return Html(separator.join(c.text if isinstance(c, Html) else html.escape(c, quote=False) for c in children))


def bullets(items: Iterable[Child]) -> Html:
    """An unordered list."""
    return element("ul", *(element("li", item) for item in items))


def table(header: Sequence[Child], rows: Iterable[Html], *, caption: str = "", wide: bool = False) -> Html:
    """A table that scrolls sideways on a narrow screen.

    ``rows`` are ``tr`` elements; a ``wide`` table takes the whole width of the page.
    """
    head = element("thead", element("tr", *(element("th", cell, scope="col") for cell in header)))
    parts = [element("caption", caption)] if caption else []
    inner = element("table", *parts, head, element("tbody", *rows), css="wide" if wide else "")
    return element("div", inner, css="table", tabindex="0")


def row(cells: Iterable[Child], *, css: str = "") -> Html:
    """A table row whose first cell is its heading."""
    first, *others = cells
    return element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in others), css=css)


def number(value: float, *, digits: int = 3, signed: bool = False) -> str:
    """A number with ``digits`` significant digits, a real minus sign, and no exponent below a million.

    A number that is not finite becomes a dash. With ``signed``, positive numbers have a plus sign.

    >>> number(-0.01234, signed=True) == MINUS + "0.0123", number(float("nan")) == DASH, number(2), number(1234.5)
    (True, True, '2', '1230')
    """
    if not math.isfinite(value):
        return DASH
    sign = "+" if signed else ""
    rounded = float(f"{value:.{digits}g}")
    # The format "g" writes numbers from 10**digits on with an exponent, so those below a million take the format "f".
    text = f"{rounded:{sign}.0f}" if 10**digits <= abs(rounded) < 1e6 else f"{rounded:{sign}.{digits}g}"
    return text.replace("-", MINUS)


def interval(low: float, high: float) -> str:
    """Both ends of an interval with their signs, in brackets; a dash if an end is not finite."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return DASH
    return f"[{number(low, signed=True)}, {number(high, signed=True)}]"


def page(title: str, body: Iterable[Html]) -> str:
    """A whole HTML document in one text, without scripts and without anything loaded from outside."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{element("title", title).text}
<style>{CSS}</style>
</head>
<body>
{element("main", join(body, chr(10))).text}
</body>
</html>
"""
