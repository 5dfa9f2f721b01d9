"""Writes HTML without a template engine: elements that escape their text, readable numbers, and the whole page."""

import base64
import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DASH, MINUS, TIMES = "\u2013", "\u2212", "\u00d7"
"""The en dash (which tables show where there is no number), the minus sign and the multiplication sign."""

CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


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


def data_link(content: bytes, kind: str) -> str:
    """A link that holds the content itself; ``kind`` is its MIME type, such as "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def bullets(items: Iterable[Child]) -> Html:
    """An unordered list."""
    return element("ul", *(element("li", item) for item in items))


def section(title: str) -> Html:
    """The heading of a section, to which ``contents`` leads.

    >>> section("Set-up & more").text
    '<h2 id="set-up-more">Set-up &amp; more</h2>'
    """
    return element("h2", title, id="-".join(re.findall(r"\w+", title.lower())))


def contents(parts: Iterable[Html]) -> Html:
    """The list of all sections among the parts of a page, each a link to its heading.

    >>> contents([section("Set-up"), element("p", "text")]).text
    '<nav aria-label="Contents"><ul><li><a href="#set-up">Set-up</a></li></ul></nav>'
    """
    found = (re.fullmatch(r'<h2 id="(.*?)">(.*)</h2>', part.text) for part in parts)
    links = [element("a", Html(match[2]), href=f"#{match[1]}") for match in found if match]
    return element("nav", bullets(links), **{"aria-label": "Contents"})


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
    # ``chr(10)`` is a line break: before Python 3.12, the braces of an f-string cannot hold a backslash.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{element("title", title).text}
<style>
{CSS}</style>
</head>
<body>
{element("main", join(body, chr(10))).text}
</body>
</html>
"""
