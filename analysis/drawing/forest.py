"""A forest plot: the effect of every verdict with its interval, in units of the smallest effect of interest.

A verdict judges a claim by one comparison, such as that of a learner with its own untrained start. The effects of
different claims have different units and different claimed directions. So each effect is divided by the smallest effect
of interest of its claim, which is also called the margin, and gets the sign with which the claimed direction is
positive. Then all effects can be read on one axis by the rule of the verdicts: a claim is supported where the whole
interval lies right of 0 and reaches 1, and it is not supported where the whole interval lies left of 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from analysis.claims.sentence import measure
from analysis.claims.verdict import Verdict, counted, final_outcome
from analysis.drawing import style
from analysis.drawing.panels import ShownFigure, save_table
from analysis.drawing.style import DARK, GREY, Width, method_label
from hessian_tools.entries import checked
from hessian_tools.validation import check_choice

MAX_ROWS = 60
"""The most verdicts that are drawn unless the user chooses. If there are more, only the primary ones are drawn."""
MAX_DRAWN = 120
"""The most verdicts of which a figure can be read at all."""
# For each outcome of a verdict: its colour, its marker, and whether the marker is filled. Marker and filling tell the
# outcomes apart without colour.
LOOKS = {
    "supported": ("#0072B2", "o", True),
    "not supported": ("#D55E00", "s", True),
    "inconclusive": (GREY, "D", False),
}
# Lengths on the page.
ROW, LINE, GAP = 0.14, 0.115, 0.1  # inches: of a row, of a line of a heading, and between two claims
ABOVE, BELOW = 0.08, 0.78  # inches above the first heading, and for the axis and the legend
RIGHT = 0.08  # inches, so that the last tick label is not cut
LABELS = 0.49  # the share of the width that the labels of the rows take
INCHES_A_CHARACTER = 0.047  # the mean width of a character of a label; those of headings, in bold, are a quarter wider
# Places on the axis, in units of the smallest effect of interest; those beyond the ends of the axis are left out.
TICKS = (-100, -10, -1, 0, 1, 10, 100)


@dataclass(frozen=True)
class ForestPlot:
    """The forest plot of a study's verdicts: calling it draws it, and its methods are those of ``analysis.figures``.

    The arguments of all methods:
    verdicts: those of ``analysis.open_verdicts``.
    claims: the names of the claims that are shown, such as ["suppression", "shot"]; None for all of them.
    learners: the names of the learners that are shown; None for all of them.

    Of more than 60 verdicts only the primary ones are drawn, unless claims or learners are chosen.
    Raises ValueError for a claim or a learner without a verdict, for no verdicts at all, and for more than 120.
    """

    def __repr__(self) -> str:
        return "<figure forest: The effect of every verdict with its interval, on one axis.>"

    def __call__(
        self,
        verdicts: Sequence[Verdict],
        *,
        claims: Sequence[str] | None = None,
        learners: Sequence[str] | None = None,
        width: Width | None = None,
    ) -> Figure:
        """Draw the figure; its height follows from the number of verdicts.

        width: the width in print, as for all figures; None is one column of a paper.
        """
        return _draw_figure(_chosen(verdicts, claims=claims, learners=learners), style.inches_of(width or "single"))

    def data(
        self,
        verdicts: Sequence[Verdict],
        *,
        claims: Sequence[str] | None = None,
        learners: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """The numbers behind the figure, with one verdict in a row.

        ``effect``, ``low`` and ``high`` are in the units of the quantity; ``drawn``, ``drawn low`` and ``drawn high``
        are the same in units of the margin, with the claimed direction as positive. ``outcome`` is the one after the
        correction for many comparisons, if the verdict was corrected.
        """
        rows = []
        for v in _chosen(verdicts, claims=claims, learners=learners):
            drawn = dict(zip(("drawn", "drawn low", "drawn high"), _scaled(v), strict=True))
            names = ("claim", "learner", "baseline", "steps", "comparison", "quantity", "kind")
            numbers = {"effect": v.effect, "low": v.low, "high": v.high, "margin": v.margin}
            rows.append({name: getattr(v, name) for name in names} | numbers | drawn | {"outcome": final_outcome(v)})
        return pd.DataFrame(rows)

    def save_data(
        self,
        verdicts: Sequence[Verdict],
        path_stem: Path | str,
        *,
        claims: Sequence[str] | None = None,
        learners: Sequence[str] | None = None,
    ) -> Path:
        """Write the numbers of ``data`` as CSV, to six digits; ``path_stem`` is the path without ".csv"."""
        return save_table(self.data(verdicts, claims=claims, learners=learners), path_stem)

    def caption(
        self,
        verdicts: Sequence[Verdict],
        *,
        claims: Sequence[str] | None = None,
        learners: Sequence[str] | None = None,
    ) -> str:
        """The caption, which says how the figure is read, and how many verdicts it leaves out."""
        shown = _chosen(verdicts, claims=claims, learners=learners)
        parts = [
            "The effect of each comparison with its interval over seeds, in units of the smallest effect of interest"
            " and with the claimed direction to the right. A claim is supported (circles) where the whole interval lies"
            " right of 0 and reaches the dashed line, and not supported (squares) where all of it lies left of that"
            " line; everything else is inconclusive (open diamonds). The axis is nearly logarithmic beyond 1.",
            f"Outcomes: {counted(shown)}.",
        ]
        if any(final_outcome(v) != v.outcome for v in shown):
            parts.append(
                "A primary comparison has the outcome after the correction for many comparisons, so that a few"
                " intervals lie on the claimed side and are inconclusive nevertheless."
            )
        if any(math.isnan(v.effect) for v in shown):
            parts.append("A dash stands where nothing could be compared.")
        if left := len(verdicts) - len(shown):
            parts.append(f"{left} other comparisons are in the tables.")
        return " ".join(parts)

    def needs(self, verdicts: Sequence[Verdict]) -> str | None:
        """The reason why the figure cannot be drawn; None if it can."""
        try:
            _chosen(verdicts)
        except ValueError as e:
            return str(e)
        return None


# ``checked`` checks the arguments when a user calls the method, as it does for the library's functions.
for _method in ("__call__", "data", "save_data", "caption"):
    setattr(ForestPlot, _method, checked(vars(ForestPlot)[_method], module=__name__))

forest = ForestPlot()


def _chosen(
    verdicts: Sequence[Verdict], *, claims: Sequence[str] | None = None, learners: Sequence[str] | None = None
) -> list[Verdict]:
    """The verdicts that are drawn, grouped by claim in the order in which the claims first appear."""
    if not verdicts:
        raise ValueError("there are no verdicts; run 'hessian-tools test' on the study first")
    shown = list(verdicts)
    for name, chosen in (("claim", claims), ("learner", learners)):
        if chosen is None:
            continue
        for each in chosen:
            check_choice(name, each, list(dict.fromkeys(getattr(v, name) for v in verdicts)))
        shown = [v for v in shown if getattr(v, name) in chosen]
    if not shown:
        raise ValueError(f"no verdict is on the claims {claims} and the learners {learners}; choose others")
    if (claims, learners) == (None, None) and len(shown) > MAX_ROWS:
        shown = [v for v in shown if v.kind == "primary"] or shown  # all, if none is primary
    if len(shown) > MAX_DRAWN:
        raise ValueError(
            f"{len(shown)} verdicts do not fit in one figure of at most {MAX_DRAWN};"
            " choose claims=[...] or learners=[...]"
        )
    order = list(dict.fromkeys(v.claim for v in shown))
    return sorted(shown, key=lambda v: order.index(v.claim))


def _scaled(v: Verdict) -> tuple[float, float, float]:
    """The effect and the ends of its interval in units of the margin, with the claimed direction as positive."""
    if not v.margin > 0:  # also if the margin is NaN
        return math.nan, math.nan, math.nan
    scale = (-1.0 if v.predicted == "negative" else 1.0) / v.margin
    low, high = sorted((scale * v.low, scale * v.high))
    return scale * v.effect, low, high


def _draw_figure(shown: Sequence[Verdict], width: float) -> Figure:
    """Draw the verdicts in a figure of ``width`` inches: for each claim a heading, and below it a row for each verdict.

    Inches are also the unit of y, which grows downwards from the top of the axes.
    """
    groups = [[v for v in shown if v.claim == claim] for claim in dict.fromkeys(v.claim for v in shown)]
    label_width = LABELS * width
    headings = [
        wrap(f"{rows[0].title[:1].upper()}{rows[0].title[1:]}?", int(width / INCHES_A_CHARACTER / 1.25))
        for rows in groups
    ]
    labels = [[wrap(label, int(label_width / INCHES_A_CHARACTER)) for label in _labels(rows)] for rows in groups]
    height_of_rows = sum(
        len(heading) * LINE + GAP + sum(ROW + (len(lines) - 1) * LINE for lines in row_labels)
        for heading, row_labels in zip(headings, labels, strict=True)
    )
    height = ABOVE + height_of_rows + BELOW
    with style.context(width=width, height=height):
        figure = ShownFigure(figsize=(width, height))
        figure.set_layout_engine("none")  # the axes gets its place below
        place = (label_width, BELOW, width - label_width - RIGHT, height_of_rows)  # inches: left, bottom, width, height
        ax = figure.add_axes((place[0] / width, place[1] / height, place[2] / width, place[3] / height))
        _set_axis(ax, shown, height_of_rows)
        # x is a fraction of the figure's width, and y is the axes' y.
        at_left = blended_transform_factory(figure.transFigure, ax.transData)
        y = 0.0
        for rows, heading, row_labels in zip(groups, headings, labels, strict=True):
            y += GAP / 2
            figure.text(
                0.01, y, "\n".join(heading), transform=at_left, va="top", fontsize=7, fontweight="bold", color=DARK
            )
            y += GAP / 2 + len(heading) * LINE
            top = y
            for v, lines in zip(rows, row_labels, strict=True):
                row_height = ROW + (len(lines) - 1) * LINE
                middle = y + row_height / 2
                figure.text(
                    0.03, middle, "\n".join(lines), transform=at_left, va="center", fontsize=6.5, linespacing=1.1
                )
                _draw_row(ax, v, middle)
                y += row_height
            ax.vlines(0.0, top, y, color=DARK, lw=0.7, zorder=1)
            ax.vlines(1.0, top, y, color=GREY, lw=0.7, ls="--", zorder=1)
        entries = [
            Line2D([], [], color=color, marker=marker, mfc=color if filled else "white", ls="-", lw=0.9, label=outcome)
            for outcome, (color, marker, filled) in LOOKS.items()
        ]
        figure.legend(handles=entries, loc="lower center", ncols=3, fontsize=6.5, handlelength=1.2, columnspacing=2.2)
    return figure


def _set_axis(ax: Axes, shown: Sequence[Verdict], height: float) -> None:
    """Scale the axis so that all effects and intervals are seen."""
    numbers = [abs(number) for v in shown for number in _scaled(v) if math.isfinite(number)]
    limit = 1.15 * max([2.0, *numbers])  # beyond the margin at 1, also where all effects are small
    ax.set_xscale("asinh", linear_width=1.0)
    ax.set_xlim(-limit, limit)
    ax.set_ylim(height, 0)
    ax.set_yticks([])
    ticks = [tick for tick in TICKS if abs(tick) <= limit]
    ax.set_xticks(ticks, [f"{tick:g}".replace("-", "\u2212") for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("effect / smallest effect of interest", fontsize=7)
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)


def _draw_row(ax: Axes, v: Verdict, y: float) -> None:
    """Draw the marker of a verdict and its interval; a dash if there is no effect."""
    effect, low, high = _scaled(v)
    color, marker, filled = LOOKS[final_outcome(v)]
    if not math.isfinite(effect):
        ax.text(0.0, y, "\u2013", ha="center", va="center", color=GREY, fontsize=7)
        return
    if math.isfinite(low) and math.isfinite(high):
        ax.plot([low, high], [y, y], color=color, lw=0.9, solid_capstyle="butt", zorder=2)
    ax.plot([effect], [y], marker, color=color, mfc=color if filled else "white", ms=3.2, mew=0.8, zorder=3)


def _labels(rows: Sequence[Verdict]) -> list[str]:
    """A label for each verdict of a claim: the learner, and as many further words as tell the verdicts apart."""
    columns = [
        [method_label(v.learner) for v in rows],
        [v.steps for v in rows],
        [v.comparison.replace("equal support loss", "equal loss") for v in rows],
        [f"vs {method_label(v.baseline)}" if v.baseline else "" for v in rows],
        [measure(v) for v in rows],  # the quantity in words
    ]
    # A column is used if it tells verdicts apart that are alike in all columns used before it.
    used = columns[:1]
    for column in columns[1:]:
        if len(set(zip(*used, column, strict=True))) > len(set(zip(*used, strict=True))):
            used.append(column)
    return [", ".join(word for word in words if word) for words in zip(*used, strict=True)]
