"""The report of a study: one HTML page with the answer first, then everything that the answer rests on."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from analysis.claims.verdict import Verdict
from analysis.drawing.figures import FIGURES
from analysis.drawing.legend import diverged_sentence
from analysis.drawing.style import DPI
from analysis.drawing.summary import has_accuracy, measured
from analysis.report.accuracy import accuracy_table
from analysis.report.learning import learning_section
from analysis.report.page import DASH, Html, bullets, element, number, page, row, table
from analysis.report.scale import scale_section
from analysis.report.verdicts import answer, verdict_tables

TITLE = "Does meta-learning suppress the Hessian along its inner loop?"
QUESTION = (
    "A gradient-based meta-learner chooses an initial network from which a few gradient steps solve a new task: does "
    "it, without being told to, choose one where the curvature along these steps is small? And does SHOT (Lee, Yoo and "
    "Kwak, NeurIPS 2023, arXiv 2310.02751), which asks for it in the loss, suppress it more than the same learner "
    "without SHOT?"
)
_CSS_PIXELS = 1.5 * 96 / DPI  # per pixel of a PNG: figures are shown half as large again as in print


def render(
    *,
    ds: xr.Dataset,
    verdicts: Sequence[Verdict],
    figures: Mapping[str, Path],
    setup: Mapping[str, str],
    command: str,
    notes: Sequence[str] = (),
    step_size_table: Sequence[Mapping[str, Any]] | None = None,
    confidence: float = 0.95,
) -> str:
    """Render the whole report as one HTML text, in which every text is escaped.

    ds: everything measured; verdicts: what was concluded from it.
    figures: name to PNG file; the files are read and put into the page.
    setup: names and values that say how the study was made.
    command: what to type to reproduce the study.
    notes: what a reader must not overlook.
    step_size_table: the candidates of the search for alpha, one mapping each; None if alpha was given.
    confidence: that of the intervals of the verdicts; the tables use it too.
    """
    name = str(ds.attrs.get("study", ""))
    body = [
        element("h1", TITLE),
        element("p", f"Study “{name}”" if name else "A study with hessian-tools", css="soft"),
        element("p", QUESTION, css="lead"),
        element("h2", "The answer of this study"),
        answer(verdicts),
        *([element("aside", element("b", "Note"), bullets(notes))] if notes else []),
        *_verdicts(verdicts, confidence),
        *scale_section(ds),
        element("h2", "Set-up"),
        table(("What", "Value"), [row((what, value)) for what, value in setup.items()]),
        *_step_sizes(step_size_table),
        element("h2", f"{'Accuracy' if has_accuracy(ds) else 'Loss'} on held-out tasks"),
        accuracy_table(ds, confidence=confidence),
        *learning_section(ds, confidence=confidence),
        element("h2", "Figures"),
        element(
            "p", "Each figure is also a PDF of the same name, at its final size, beside these PNG files.", css="soft"
        ),
        *(_figure(ds, position, *item) for position, item in enumerate(figures.items(), start=1)),
        element("h2", "How the numbers were made, and their errors"),
        bullets(_methods(ds)),
        element("h2", "How to reproduce this"),
        element("pre", element("code", command)),
    ]
    return page(TITLE, body)


def _verdicts(verdicts: Sequence[Verdict], confidence: float) -> list[Html]:
    """The section of the verdicts: how to read the tables, then the tables."""
    if not verdicts:
        return []
    reading = [
        "alpha rho = alpha g'Hg / g'g is the curvature of the support loss along the inner gradient times the inner "
        "learning rate; an effect is trained minus baseline, so a negative effect on alpha rho is suppression.",
        "Supported: the interval over seeds excludes 0 on the claimed side and reaches the smallest effect of "
        "interest. Not supported: the whole interval falls short of that smallest effect. Inconclusive: everything "
        "else, and every study of one seed.",
        f"The {100 * confidence:g} % interval over seeds is Student t on one number per seed and decides alone. The "
        "bootstrap resamples tasks within these seeds: it says how well these seeds were measured and nothing about "
        "other seeds.",
        "Curvature follows the loss, so a fall may only mirror a lower loss; the comparison at equal support loss "
        "compares points where the losses overlap. Step 0 and later steps differ and are judged separately.",
        f"There are {len(verdicts)} rows, and each interval stands for itself: nothing is corrected for their number. "
        f"Of many rows without any effect, about {100 * (1 - confidence):.3g} % would exclude 0, half of these on the "
        "claimed side.",
    ]
    if any(verdict.quantity == "rho" for verdict in verdicts):
        reading.insert(
            1,
            "A learner whose steps are not alpha times the gradient has no alpha rho: its rows judge rho = g'Hg / g'g, "
            "marked so. Rho alone does not say what its steps do with that curvature.",
        )
    if any(verdict.quantity == "rho_normalised" for verdict in verdicts):
        reading.insert(
            -1,
            "Growing weights can lower curvature by themselves. The comparison at unit filter norm judges rho, without "
            "alpha, where each filter before a normalisation has norm one, so that rescaling filters changes nothing.",
        )
    return [element("h2", "Verdicts"), bullets(reading), verdict_tables(verdicts, confidence=confidence)]


def _step_sizes(rows: Sequence[Mapping[str, Any]] | None) -> list[Html]:
    """The table of the candidates of the step-size search; nothing if alpha was given."""
    if not rows:
        return []
    columns = list(dict.fromkeys(key for candidate in rows for key in candidate))
    header = [column.replace("_", " ") for column in columns]
    lines = [row([_cell(candidate.get(column)) for column in columns]) for candidate in rows]
    return [element("h3", "Search for the inner learning rate"), table(header, lines)]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(float(value), digits=4)
    return DASH if value is None else str(value)


def _figure(ds: xr.Dataset, position: int, name: str, path: Path) -> Html:
    """One figure with its number, its caption and the name of its PDF."""
    png = Path(path).read_bytes()
    width = int.from_bytes(png[16:20], "big")  # a PNG's header gives the width there
    caption = FIGURES[name].caption(ds) if name in FIGURES else name
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    alt = escape(caption.split(". ")[0])
    picture = Html(f'<img src="{source}" alt="{alt}" width="{round(width * _CSS_PIXELS)}">')
    text = (element("b", f"Figure {position}."), " ", caption, " ", element("code", f"{name}.pdf"))
    return element("figure", picture, element("figcaption", *text), id=f"figure-{name}")


def _methods(ds: xr.Dataset) -> list[Html | str]:
    """What was computed, and how large each kind of error is in this study, one item each."""
    return [
        "Curvature is that of the support loss at every point of the inner loop, by exact Hessian-vector products on "
        "the trajectory that the learner itself takes; no finite differences are used.",
        "alpha rho: its error is that of arithmetic in float32, the measured asymmetry of the products plus "
        f"8 eps |Hg| / |g|. Relative to the value, it is {_error(ds, 'alpha_rho', 'alpha_rho_error')}.",
        "Eigenvalues: the residual |Hv - lambda v| says that some eigenvalue lies that near, not that none was missed. "
        "Relative to the value, the residual of the largest algebraic eigenvalue is "
        f"{_error(ds, 'eigenvalue_max', 'eigenvalue_max_residual')}.",
        "Random directions and traces: their error is the standard error over probes; probes are shared along a task, "
        f"never between tasks. Relative to the value, that of the trace is {_error(ds, 'trace', 'trace_stderr')}.",
        "Replication: means are over tasks within a seed first, then over seeds; inner steps are never counted as "
        "repetitions.",
        diverged_sentence(ds),
    ]


def _error(ds: xr.Dataset, name: str, error: str) -> str:
    """'0.01 in the median, below 0.3 at 95 % of the points': the error of each point relative to its value."""
    value, bound = np.abs(measured(ds, name).values), measured(ds, error).values
    known = np.isfinite(value) & np.isfinite(bound) & (value > 0)
    if not known.any():
        return "not known, as nothing was measured"
    median, high = np.quantile(bound[known] / value[known], [0.5, 0.95])
    return f"{number(median, digits=2)} in the median, below {number(high, digits=2)} at 95 % of the points"
