"""Puts several studies side by side.

The p-values of the primary verdicts of all studies are corrected for multiple testing, and a figure for each learner
shows all studies.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, isnan
from pathlib import Path

import xarray as xr

from analysis.claims import Verdict, holm
from analysis.claims.verdict import final_outcome
from analysis.drawing import overlay
from analysis.drawing.panels import save
from analysis.errors import UserError
from analysis.folder import measurements, open_folder, open_verdicts, plan_of, stale_parts
from analysis.report.page import DASH, Html, data_link, element, interval, join, number, page, row, table
from analysis.schema import trained_learners
from hessian_tools.runs.files import write_text

Key = tuple[str, str, str, str, str, str]  # a question: claim, learner, baseline, steps, comparison, quantity


@dataclass(frozen=True)
class Comparison:
    """Several studies by their names: their measurements and their verdicts.

    The p-values of the verdicts are corrected for the number of primary verdicts in all studies.

    confidence: the confidence of all intervals.
    """

    studies: dict[str, xr.Dataset]
    verdicts: dict[str, list[Verdict]]
    confidence: float

    @property
    def rows(self) -> dict[Key, dict[str, Verdict]]:
        """For each question, the verdicts by the names of the studies that answer it. Questions are sorted by claim."""
        rows: dict[Key, dict[str, Verdict]] = {}
        for name, verdicts in self.verdicts.items():
            for v in verdicts:
                key = (v.claim, v.learner, v.baseline, v.steps, v.comparison, v.quantity)
                rows.setdefault(key, {})[name] = v
        claims = list(dict.fromkeys(claim for claim, *_ in rows))
        return dict(sorted(rows.items(), key=lambda item: claims.index(item[0][0])))

    @property
    def learners(self) -> list[str]:
        """The trained learners that all studies have."""
        first, *others = (trained_learners(ds) for ds in self.studies.values())
        return [name for name in first if all(name in names for names in others)]


def compare(folders: Sequence[Path]) -> Comparison:
    """Open the studies in the folders and correct their primary verdicts together by Holm's method.

    folders: the folders of studies, or of kept results.
    Raises UserError where two studies cannot be compared.
    """
    if len(folders) < 2:
        raise UserError("compare needs at least two studies; give their folders, such as docs/results/quickdraw")
    opened = [open_folder(folder) for folder in folders]
    names = [study.config.name for study in opened]
    if len(set(names)) < len(names):
        by_folder = zip(names, folders, strict=True)
        names = [folder.resolve().name if names.count(name) > 1 else name for name, folder in by_folder]
    if len(set(names)) < len(names):
        raise UserError(f"two of the studies are both called {max(names, key=names.count)}; give each folder once")
    confidences = [plan_of(study).confidence for study in opened]
    for name, confidence in zip(names, confidences, strict=True):
        if confidence != confidences[0]:
            raise UserError(
                f"{names[0]} judges at a confidence of {confidences[0]:g} and {name} at {confidence:g};"
                " studies are compared only under one confidence"
            )
    studies = {name: measurements(study) for name, study in zip(names, opened, strict=True)}
    for study, ds in zip(opened, studies.values(), strict=True):
        if "verdicts" in stale_parts(study, ds):
            raise UserError(
                f"the verdicts of {study.path} rest on other measurements than the present ones;"
                f" run 'hessian-tools test {study.path}' first"
            )
    by_study = [(name, open_verdicts(folder)) for name, folder in zip(names, folders, strict=True)]
    verdicts = holm(by_study, confidence=confidences[0])
    comparison = Comparison(studies, dict(verdicts), confidences[0])
    if not any(len(found) > 1 for found in comparison.rows.values()):
        raise UserError(
            f"no two of {', '.join(names)} answer one question: they have no trained learner of the same name;"
            "\ngive studies with a learner in common"
        )
    return comparison


def lines(comparison: Comparison) -> Iterator[str]:
    """The verdicts as aligned lines for a terminal: a line for each question, a column for each study."""
    texts = {
        key: {name: _text(found.get(name)) for name in comparison.studies} for key, found in comparison.rows.items()
    }
    width = max(len(_question(key)) for key in texts)
    columns = {name: max(len(name), *(len(text[name]) for text in texts.values())) for name in comparison.studies}
    for title, rows in _by_claim(comparison.rows):
        yield f"{title[:1].upper()}{title[1:]}?"
        yield "  ".join(["", " " * width, *(f"{name:<{size}}" for name, size in columns.items())]).rstrip()
        for key in rows:
            cells = [f"{texts[key][name]:<{size}}" for name, size in columns.items()]
            yield "  ".join(["", f"{_question(key):<{width}}", *cells]).rstrip()


def primary_table(comparison: Comparison) -> str:
    """The primary verdicts as a Markdown table: a row for each question, a column for each study that has any."""
    primary = {
        key: answers
        for key, found in comparison.rows.items()
        if (answers := {name: verdict for name, verdict in found.items() if verdict.kind == "primary"})
    }
    studies = [name for name in comparison.studies if any(name in answers for answers in primary.values())]
    rows = [["Learner, baseline, comparison", *studies], ["---"] * (1 + len(studies))]
    for title, answers_by_key in _by_claim(primary):
        rows.append([f"**{title[:1].upper()}{title[1:]}?**", *[""] * len(studies)])
        for key, answers in answers_by_key.items():
            rows.append([_question(key), *(_text(answers.get(name)) for name in studies)])
    return "".join("".join(f"| {cell} " if cell else "| " for cell in cells) + "|\n" for cells in rows)


def write(comparison: Comparison, out: Path) -> Path:
    """Write the self-contained page ``comparison.html``, and beside it what it is made of; returns the page.

    ``comparison.json`` holds all verdicts, ``primary.md`` the primary ones as a Markdown table, and ``figures`` the
    figures.
    """
    pictures = []
    for learner in comparison.learners:
        _, png = save(overlay.draw(comparison.studies, learner), out / "figures" / f"comparison-{learner}")
        pictures.append((learner, png))
    write_text(out / "comparison.json", _json(comparison))
    write_text(out / "primary.md", primary_table(comparison))
    write_text(out / "comparison.html", page(_title(comparison), _body(comparison, pictures)))
    return out / "comparison.html"


def _title(comparison: Comparison) -> str:
    return f"{', '.join(comparison.studies)}: side by side"


def _body(comparison: Comparison, pictures: Sequence[tuple[str, Path]]) -> Iterator[Html]:
    names = list(comparison.studies)
    num = max((v.num_corrected for verdicts in comparison.verdicts.values() for v in verdicts), default=0)
    yield element("h1", _title(comparison))
    yield element(
        "p",
        f"The {num} primary verdicts of all studies were corrected together by Holm's method. An effect is the"
        f" learner's value minus the baseline's, with its {100 * comparison.confidence:g} % Student t interval over"
        " seeds. A dash stands where a study does not answer a question.",
        css="lead",
    )
    for title, rows in _by_claim(comparison.rows):
        yield element("h2", title)
        lines = [row([_question(key), *(_cell(found.get(name)) for name in names)]) for key, found in rows.items()]
        yield table(["Learner, baseline, comparison", *names], lines, wide=True)
    for learner, png in pictures:
        picture = element(
            "img", src=data_link(png.read_bytes(), "image/png"), alt=f"{learner} in all studies", width="960"
        )
        caption = overlay.caption(comparison.studies, learner)
        # An img element has no end tag in HTML.
        yield element("figure", Html(picture.text.removesuffix("</img>")), element("figcaption", caption))


def _by_claim(rows: dict[Key, dict[str, Verdict]]) -> Iterator[tuple[str, dict[Key, dict[str, Verdict]]]]:
    """The statement of each claim, with those of the rows that are on it."""
    for claim in dict.fromkeys(key[0] for key in rows):
        on_claim = {key: found for key, found in rows.items() if key[0] == claim}
        any_verdict = next(iter(next(iter(on_claim.values())).values()))  # all of them have the title of the claim
        yield any_verdict.title, on_claim


def _question(key: Key) -> str:
    _, learner, baseline, steps, comparison, quantity = key
    sides = f"{learner} against {baseline}" if baseline else learner
    return ", ".join(part for part in (sides, steps, comparison, quantity.replace("_", " ")) if part)


def _text(verdict: Verdict | None) -> str:
    """A verdict as plain text, with the obstacle that makes its numbers inconclusive; "-" without a verdict."""
    if verdict is None:
        return "-"
    effect = "" if isnan(verdict.effect) else f" {verdict.effect:+.3g}"
    bounds = "" if isnan(verdict.low) else f" [{verdict.low:+.3g}, {verdict.high:+.3g}]"
    why = f"; {verdict.short_obstacle}" if verdict.obstacle and effect else ""
    return final_outcome(verdict) + effect + bounds + why


def _cell(verdict: Verdict | None) -> Html | str:
    """The cell of a verdict on the page, with its obstacle if it has one."""
    if verdict is None:
        return DASH
    outcome = final_outcome(verdict)
    badge = element("span", outcome, css=f"badge {outcome.split()[0]}")
    effect = f"{number(verdict.effect, signed=True)} {interval(verdict.low, verdict.high)}, {verdict.num_seeds} seeds"
    p = "" if isnan(verdict.p_corrected) else f", p {number(verdict.p_corrected, digits=2)} after the correction"
    why = f"; {verdict.short_obstacle}" if verdict.obstacle else ""
    return join([badge, Html("<br>"), effect + p + why])


def _json(comparison: Comparison) -> str:
    def plain(value: object) -> object:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not isfinite(value) else value

    rows = {
        name: [{key: plain(value) for key, value in asdict(verdict).items()} for verdict in verdicts]
        for name, verdicts in comparison.verdicts.items()
    }
    content = {"confidence": comparison.confidence, "learners": comparison.learners, "studies": rows}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
