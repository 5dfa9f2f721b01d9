"""The report of a study: one HTML page with the answer in words first, then the figures, then the tables."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from analysis.claims.verdict import Verdict
from analysis.config import StudyConfig
from analysis.drawing.figures import figures_of, left_out
from analysis.drawing.forest import forest
from analysis.drawing.legend import diverged_sentence
from analysis.drawing.style import DPI, inches_of
from analysis.drawing.summary import measured
from analysis.evaluation import has_accuracy
from analysis.report.accuracy import accuracy_table
from analysis.report.learning import learning_section
from analysis.report.other_quantities import other_quantities_section
from analysis.report.page import DASH, Html, bullets, contents, data_link, element, number, page, row, section, table
from analysis.report.paper_tables import paper_section
from analysis.report.scale import scale_section
from analysis.report.verdicts import answer, verdict_tables
from analysis.schema import plain_learners
from hessian_tools.trajectory.trajectory import EXPLOSION

TITLE = "Does meta-learning suppress the Hessian along its inner loop?"
QUESTION = (
    "A gradient-based meta-learner chooses an initial network from which a few gradient steps solve a new task. Does "
    "the learner, without being told to, choose a network for which the curvature along these steps is small? SHOT "
    "(Lee, Yoo and Kwak, NeurIPS 2023, arXiv 2310.02751) is a term of the loss that asks for small curvature. Does a "
    "learner with SHOT suppress the curvature more than the same learner without SHOT?"
)
_CSS_SCALE = 1.5  # figures are shown at this multiple of their size in print; an inch has 96 CSS pixels
# The width on the page of one pixel of a PNG, in CSS pixels. An inch of a figure in print has DPI pixels in the PNG.
_CSS_PIXELS = _CSS_SCALE * 96 / DPI
WIDE_PICTURE = 600
"""The width in CSS pixels above which a picture scrolls sideways on a phone, where its text would be too small."""
MAX_EMBEDDED = 200_000
"""The size in bytes below which the table of a figure's numbers is put into a page."""


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
    config: StudyConfig | None = None,
    embed: bool = True,
    unjudged: Mapping[str, str] | None = None,
    explorer: str | None = None,
    effects: Path | None = None,
) -> str:
    """Render the whole report as one HTML text, in which every given text is escaped.

    ds: the Dataset of the study. verdicts: the verdicts on the study's claims.
    figures: the PNG file of each figure by its name; the files are read and embedded in the page.
    setup: how the study was made, as headings and texts.
    command: the command that reproduces the study.
    notes: remarks that the reader must not overlook.
    step_size_table: the candidates of the search for the inner learning rate alpha, one mapping for each; None if alpha
        was given.
    confidence: that of the intervals in the verdicts and in the tables.
    config: the settings of the study, from which the learners of the paper are recognised; without them there are no
        tables of the paper's numbers.
    embed: True puts the pictures into the page; False refers to them in the folder ``figures`` beside it.
    unjudged: the claims of the plan that have no verdict, each with the reason.
    explorer: the name of the explorer's page, in the folder of this one; None where there is none.
    effects: the SVG file of the forest plot of the verdicts, which is the first figure; None where there is none.
    """
    name = str(ds.attrs.get("study", ""))
    head = [
        element("h1", TITLE),
        element("p", f"Study “{name}”" if name else "A study with hessian-tools", css="soft"),
        element("p", QUESTION, css="lead"),
    ]
    body = [
        section("The answer of this study"),
        answer(verdicts, plain_learners(ds)),
        *([_explorer(explorer)] if explorer else []),
        *([element("aside", element("b", "Note"), bullets(notes))] if notes else []),
        *_figures(ds, figures, verdicts, effects, embed=embed),
        *_verdicts(verdicts, confidence),
        *(
            [element("h3", "Claims that were not judged"), bullets(map(": ".join, unjudged.items()))]
            if unjudged
            else []
        ),
        *scale_section(ds),
        section(f"{'Accuracy' if has_accuracy(ds) else 'Loss'} on held-out tasks"),
        accuracy_table(ds, confidence=confidence),
        *learning_section(ds, confidence=confidence),
        *other_quantities_section(ds, confidence=confidence),
        *(paper_section(ds, config, confidence=confidence) if config else []),
        section("Set-up"),
        table(("What", "Value"), [row((what, value)) for what, value in setup.items()]),
        *_step_sizes(step_size_table),
        section("How the numbers were computed, and their errors"),
        bullets(_methods(ds)),
        section("How to reproduce this"),
        element("pre", element("code", command)),
    ]
    return page(TITLE, [*head, contents(body), *body])


def _verdicts(verdicts: Sequence[Verdict], confidence: float) -> list[Html]:
    """The section of the verdicts: how to read the tables, then the tables."""
    if not verdicts:
        return []
    reading = [
        "alpha rho = alpha g'Hg / g'g is the curvature of the support loss along the inner gradient times the inner "
        "learning rate. An effect is the trained learner's value minus the baseline's, so a negative effect on alpha "
        "rho is suppression."
    ]
    if any(verdict.quantity == "rho" for verdict in verdicts):
        reading.append(
            "A learner whose steps are not alpha times the gradient has no alpha rho. Its rows judge rho = g'Hg / g'g "
            "and are marked (rho). Rho alone does not say how the learner's steps change the loss."
        )
    reading += [
        "Supported: the whole interval over seeds lies on the claimed side of 0, and reaches the smallest effect of "
        "interest at least with the end that is farther from 0. Not supported: the whole interval falls short of the "
        "smallest effect of interest. Inconclusive: everything else, and every study of one seed.",
        f"The {100 * confidence:g} % interval over seeds is a Student t interval from one number for each seed. This "
        "interval alone decides the outcome. The bootstrap resamples the tasks of each seed: it says how well the "
        "seeds of this study were measured and nothing about other seeds.",
        "Curvature falls together with the loss, so a lower curvature may only reflect a lower loss. The comparison at "
        "equal support loss compares points of equal loss, where the losses of both sides overlap. Step 0, at which "
        "the network has not adapted to the task yet, and later steps are judged separately.",
    ]
    if any(verdict.quantity == "rho_normalised" for verdict in verdicts):
        reading.append(
            "Growing weights can lower curvature by themselves. The comparison at unit filter norm judges rho in place "
            "of alpha rho. For this, each filter that is followed by a normalisation layer has been scaled to norm "
            "one, so that the sizes of filters do not matter."
        )
    excluded = f"about {100 * (1 - confidence):.3g} % would exclude 0, half of these on the claimed side."
    primary = [verdict for verdict in verdicts if verdict.corrected_outcome is not None]
    if primary:
        reading.append(
            f"There are {len(verdicts)} rows. The {len(primary)} primary ones are corrected together for their number "
            f"by Holm's method, which counts the {primary[0].num_corrected} that have a p-value. For these, a second "
            "p-value stands after the arrow, and an outcome that does not survive the correction is marked. The other "
            "rows are exploratory, and nothing is corrected for their number: of many rows without any effect, "
            f"{excluded}"
        )
    else:
        reading.append(
            f"There are {len(verdicts)} rows, and each interval is computed on its own: nothing is corrected for their "
            f"number. Of many rows without any effect, {excluded}"
        )
    return [section("Verdicts"), bullets(reading), verdict_tables(verdicts, confidence=confidence)]


def _explorer(name: str) -> Html:
    """The paragraph that leads to the explorer's page."""
    link = element("a", name, href=name)
    return element("p", "All measurements behind this page, with sliders over meta-training and inner steps: ", link)


def _step_sizes(rows: Sequence[Mapping[str, Any]] | None) -> list[Html]:
    """The heading and the table of the search for alpha; nothing if alpha was given."""
    if not rows:
        return []
    columns = list(dict.fromkeys(key for candidate in rows for key in candidate))
    header = [column.replace("_", " ") for column in columns]
    lines = [row([_cell(candidate.get(column)) for column in columns]) for candidate in rows]
    return [element("h3", "Search for the inner learning rate"), table(header, lines)]


def _cell(value: object) -> str:
    """A value of the search for alpha, as its table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(float(value), digits=4)
    return DASH if value is None else str(value)


def _figures(
    ds: xr.Dataset, figures: Mapping[str, Path], verdicts: Sequence[Verdict], effects: Path | None, *, embed: bool
) -> list[Html]:
    """The section of the figures: the forest plot of the verdicts, if there is one, and then those of the study."""
    known, parts = figures_of(ds), []
    if effects is not None:
        width = round(_CSS_SCALE * 96 * inches_of("single"))  # an SVG is shown at the scale of the PNG files
        parts.append(_figure(1, effects.stem, effects, forest.caption(verdicts), embed=embed, css_width=width))
    for position, (name, path) in enumerate(figures.items(), start=len(parts) + 1):
        caption = known[name].caption(ds) if name in known else name
        parts.append(_figure(position, name, path, caption, embed=embed))
    files = "Beside the picture of each figure there are a PDF, at its size in print, and its numbers (CSV)."
    if reasons := left_out(ds):
        listed = "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
        parts.append(element("p", f"Not drawn: {listed}.", css="soft"))
    return [section("Figures"), element("p", files, css="soft"), *parts]


def _figure(position: int, name: str, path: Path, caption: str, *, embed: bool, css_width: int | None = None) -> Html:
    """The figure at ``position`` (from 1), with its caption and the name of its PDF.

    path: its picture, a PNG, or an SVG with ``css_width``, the width in CSS pixels at which it is shown.
    """
    picture_bytes = Path(path).read_bytes()
    if css_width is None:
        css_width = round(int.from_bytes(picture_bytes[16:20], "big") * _CSS_PIXELS)  # where a PNG holds its width
    kind = "image/svg+xml" if path.suffix == ".svg" else "image/png"
    source = data_link(picture_bytes, kind) if embed else f"figures/{path.name}"
    alt = escape(caption.split(". ")[0])
    picture = Html(f'<img src="{source}" alt="{alt}" width="{css_width}">')
    if css_width > WIDE_PICTURE:
        picture = element("div", picture, css="picture", tabindex="0")
    files = [_file(path.with_suffix(suffix), embed=embed) for suffix in (".pdf", ".csv")]
    text = (element("b", f"Figure {position}."), " ", caption, " ", files[0], " ", files[1])
    return element("figure", picture, element("figcaption", *text), id=f"figure-{name}")


def _file(path: Path, *, embed: bool) -> Html:
    """The name of a file of a figure.

    It is a link to the file beside the page or, with ``embed``, to the content of a small table, which is then put into
    the page. Other files that are not beside the page have no link.
    """
    name = element("code", path.name)
    if embed and path.suffix == ".csv" and path.exists() and path.stat().st_size < MAX_EMBEDDED:
        return element("a", name, href=data_link(path.read_bytes(), "text/csv"), download=path.name)
    return element("a", name, href=f"figures/{path.name}") if path.exists() and not embed else name


def _methods(ds: xr.Dataset) -> list[Html | str]:
    """Sentences on what was computed, and on how large each kind of error is in this study."""
    sentences: list[Html | str] = [
        "Curvature is that of the support loss at every point of the inner loop. It is computed by exact "
        "Hessian-vector products on the trajectory that the learner itself takes; no finite differences are used.",
        "alpha rho: its error is the rounding error in float32, estimated as the measured asymmetry of the products "
        f"plus 8 eps |Hg| / |g|. Relative to the value, it is {_error(ds, 'alpha_rho', 'alpha_rho_error')}.",
    ]
    if "eigenvalue_max" in ds:
        sentences.append(
            "Eigenvalues: at least one exact eigenvalue lies within the residual |Hv - lambda v| of each computed one. "
            "This does not show that none was missed. Relative to the value, the residual of the largest algebraic "
            f"eigenvalue is {_error(ds, 'eigenvalue_max', 'eigenvalue_max_residual')}."
        )
    if "trace" in ds:
        sentences.append(
            "Random directions and traces: their error is the standard error over random probes. All inner steps of a "
            "task have the same probes, and different tasks have different ones. Relative to the value, the error of "
            f"the trace is {_error(ds, 'trace', 'trace_stderr')}."
        )
    return [
        *sentences,
        "Replication: means are taken over the tasks of each seed first, then over the seeds. Inner steps never count "
        "as repetitions.",
        f"{diverged_sentence(ds)} A task unit is one task of one seed, for one learner at one checkpoint. It "
        "diverges where training, its inner loop or its curvature leaves the "
        f"finite numbers, or where a loss of its inner loop rises above {EXPLOSION:g} times the loss at step 0 (above "
        f"{EXPLOSION:g}, if that loss is below 1).",
    ]


def _error(ds: xr.Dataset, name: str, error: str) -> str:
    """The error relative to the value: '0.01 in the median over points, below 0.3 at 95 % of the points'."""
    value, bound = np.abs(measured(ds, name).values), measured(ds, error).values
    known = np.isfinite(value) & np.isfinite(bound) & (value > 0)
    if not known.any():
        return "not known, as nothing was measured"
    median, high = np.quantile(bound[known] / value[known], [0.5, 0.95])
    return f"{number(median, digits=2)} in the median over points, below {number(high, digits=2)} at 95 % of the points"
