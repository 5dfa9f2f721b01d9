"""Tests of the report: it is one self-contained page of well-formed HTML.

It holds every verdict, figure and fact that it was given, with the special characters of HTML escaped.
"""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from sample_verdict import VERDICT
from simulated_studies import simulated_study

from analysis.drawing.figures import figures_of
from analysis.report import render
from analysis.report.page import MINUS
from analysis.statistics import mean_interval

# Elements that have no end tag.
VOID = {"meta", "img", "br"}
# An image of one pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
VERDICTS = [
    VERDICT,
    replace(
        VERDICT,
        comparison="equal support loss",
        outcome="inconclusive",
        share_compared=0.81,
        low=float("nan"),
        high=float("nan"),
        sentence="Inconclusive: 0.1 < |effect| & only one seed.",
    ),
    replace(VERDICT, steps="later steps", outcome="not supported", num_diverged=2, sentence="Not supported later."),
    replace(VERDICT, claim="shot", title="SHOT lowers it", learner="maml-shot", baseline="maml", sentence="SHOT does."),
    replace(
        VERDICT,
        claim="alignment",
        title="gradients align",
        steps="all steps",
        comparison="against orthogonal",
        baseline="0",
        predicted="positive",
        sentence="Aligned.",
    ),
]


class Reader(HTMLParser):
    """Checks that elements close in order, and keeps the tags, the text and the addresses that the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    study = simulated_study(tasks=4, evaluation_tasks=6, diverged=[("maml", 0, 3)])
    study.attrs["study"] = "demo"
    return study


@pytest.fixture(scope="module")
def images(ds: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("figures")
    paths = {name: folder / f"{name}.png" for name in figures_of(ds)}
    for path in paths.values():
        path.write_bytes(PNG)
    return paths


def report(ds: xr.Dataset, images: dict[str, Path], **changes) -> str:
    """The HTML of a report, with some arguments of ``render`` replaced."""
    given = {
        "ds": ds,
        "verdicts": VERDICTS,
        "figures": images,
        "setup": {"Data": "quickdraw, 5-way 1-shot", "Network": "<conv4> & co"},
        "command": "hessian-tools study demo --seeds 0 1 2",
        "notes": ["maml, seed 0, diverged at meta-iteration 30."],
        "step_size_table": [
            {"step_size": 0.05, "diverged": False, "validation_accuracy": 0.41},
            {"step_size": 0.5, "diverged": True},
        ],
    }
    return render(**(given | changes))


def test_the_page_is_well_formed_and_needs_no_other_files(ds, images):
    text = report(ds, images)
    reader = Reader(text)
    assert reader.open == []
    inside = [address for address in reader.addresses if address.startswith("#")]
    others = [address for address in reader.addresses if address not in inside]
    assert len(others) == len(images)
    assert all(address.startswith("data:image/png;base64,") for address in others)
    assert "script" not in reader.tags
    assert "link" not in reader.tags
    assert not re.search(r"url\(|@import|https?://", text)


def test_every_figure_is_embedded_with_its_caption_and_the_name_of_its_pdf(ds, images):
    text = report(ds, images)
    seen = Reader(text).text
    assert text.count(base64.b64encode(PNG).decode()) == len(images)
    for name, module in figures_of(ds).items():
        assert module.caption(ds) in seen
        assert f"{name}.pdf" in seen
    assert not any(str(path.parent) in text for path in images.values())


def test_a_variable_of_ones_own_has_a_figure_with_its_meaning(ds, images, tmp_path):
    own = ds.assign(mine=ds["theta_norm"].assign_attrs(long_name="my number", error_variable=""))
    (tmp_path / "mine.png").write_bytes(PNG)
    seen = Reader(report(own, images | {"mine": tmp_path / "mine.png"})).text
    assert list(figures_of(own))[-1] == "mine"
    assert f"Figure {len(images) + 1}. My number (mine), at each point of the inner loop, against the meta" in seen


def test_the_forest_plot_is_the_first_figure_and_the_others_follow_it(ds, images, tmp_path):
    svg = tmp_path / "forest.svg"
    svg.write_text("<svg/>")
    text = report(ds, images, effects=svg)
    seen = Reader(text).text
    assert "Figure 1. The effect of each comparison with its interval over seeds" in seen
    assert f"Figure {len(images) + 1}." in seen and f"Figure {len(images) + 2}." not in seen
    assert text.index('id="figure-forest"') < text.index(f'id="figure-{next(iter(images))}"')
    assert "data:image/svg+xml;base64,PHN2Zy8+" in text


def test_the_files_of_a_figure_are_links_where_they_can_be_followed(ds, images, tmp_path):
    paths = {"accuracy": tmp_path / "accuracy.png"}
    for suffix, content in ((".png", PNG), (".pdf", b"%PDF"), (".csv", b"quantity,value\n")):
        paths["accuracy"].with_suffix(suffix).write_bytes(content)
    embedded, beside = (Reader(report(ds, paths, embed=embed)) for embed in (True, False))
    for reader in (embedded, beside):
        assert "accuracy.pdf accuracy.csv" in " ".join(reader.text.split())
        assert "Html(" not in reader.text
    assert [address for address in embedded.addresses if address[0] != "#"][1:] == [
        "data:text/csv;base64,cXVhbnRpdHksdmFsdWUK"
    ]
    files = ["figures/accuracy.png", "figures/accuracy.pdf", "figures/accuracy.csv"]
    assert [address for address in beside.addresses if address[0] != "#"] == files


def test_every_verdict_is_shown_with_its_sentence_outcome_and_numbers(ds, images):
    text = report(ds, images)
    seen = Reader(text).text
    for verdict in VERDICTS:
        assert verdict.sentence in seen
    assert text.count('class="badge supported"') == 3
    assert '<span class="badge not">not supported</span>' in text
    assert '<span class="badge inconclusive">inconclusive</span>' in text
    assert f"{MINUS}0.4 [{MINUS}0.5, {MINUS}0.3]" in seen
    assert "81 % of points compared" in seen
    assert "2 diverged" in seen
    assert "MAML + SHOT against MAML" in seen
    assert "There are 5 rows" in seen
    assert "nothing is corrected for their number" in seen


def test_the_answer_counts_outcomes_claim_by_claim(ds, images):
    seen = Reader(report(ds, images)).text
    answer = seen[seen.rindex("The answer of this study") : seen.rindex("Figures")]
    assert "supported in 1 of 3 comparisons (MAML: step 0 raw)" in answer
    assert "not supported in 1 of 3 comparisons (MAML: later steps raw)" in answer
    assert "inconclusive in 1 of 3 comparisons (MAML: step 0 at equal support loss)" in answer
    assert "(SHOT lowers it): supported in the only comparison" in answer


def test_the_contents_lead_to_all_sections_words_first_then_figures_then_tables(ds, images):
    text = report(ds, images)
    heads = dict(re.findall(r'<h2 id="(.*?)">(.*?)</h2>', text))
    assert len(heads) == text.count("<h2")
    assert re.findall(r'<a href="#(.*?)">(.*?)</a>', text) == list(heads.items())
    assert [head.split()[0] for head in heads.values()] == [
        *("The", "Figures", "Verdicts", "Scale", "Accuracy", "Set-up", "How", "How"),
    ]


def test_a_long_list_of_comparisons_is_left_to_the_table(ds, images):
    many = [replace(VERDICT, learner=f"maml-{number}", outcome="inconclusive") for number in range(8)]
    seen = Reader(report(ds, images, verdicts=[VERDICT, *many])).text
    assert re.search("supported in 1 of 9 comparisons ?, inconclusive in 8 of 9 comparisons ?. Mean alpha rho", seen)
    assert "The table below has all of them." in seen
    assert "The table below has all of them." not in Reader(report(ds, images)).text


def test_texts_are_escaped(ds, images):
    text = report(ds, images, notes=["<script>alert(1)</script>"], command="a && b > c")
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;conv4&gt; &amp; co" in text
    assert "a &amp;&amp; b &gt; c" in text
    assert "0.1 &lt; |effect| &amp; only one seed" in text


def test_set_up_step_size_search_notes_and_command_are_shown(ds, images):
    seen = Reader(report(ds, images)).text
    for words in ("quickdraw, 5-way 1-shot", "validation accuracy", "0.41", "hessian-tools study demo --seeds 0 1 2"):
        assert words in seen
    assert "maml, seed 0, diverged at meta-iteration 30." in seen
    assert "Search for the inner learning rate" not in Reader(report(ds, images, step_size_table=None)).text


def test_a_report_can_be_made_without_verdicts_notes_and_figures(ds):
    reader = Reader(report(ds, {}, verdicts=[], notes=()))
    assert reader.open == []
    assert "No verdict was made" in reader.text
    assert "aside" not in reader.tags


def test_two_reports_of_the_same_study_are_equal(ds, images):
    assert report(ds, images) == report(ds, images)


def test_a_report_on_regression_shows_losses_and_mentions_no_accuracy(ds, images):
    names = ("evaluation_accuracy", "support_accuracy", "query_accuracy")
    study = ds.assign({name: ds[name] * np.nan for name in names})
    seen = Reader(report(study, images, setup={}, step_size_table=None)).text
    assert "Loss on held-out tasks" in seen
    assert "Query loss (lower is better)" in seen
    about_figures = re.search(r"Not drawn: .*?\.", seen)  # it names a figure and the variable that it lacks
    assert about_figures
    assert "ccuracy" not in re.sub(r"accuracy\.(pdf|csv)", "", seen).replace(about_figures.group(), "")
    assert "class" not in seen


def test_the_comparison_at_unit_filter_norm_is_named_and_explained(ds, images):
    unit = replace(VERDICT, comparison="unit filter norm", quantity="rho_normalised", outcome="inconclusive")
    seen = Reader(report(ds, images, verdicts=[VERDICT, unit])).text
    assert "(MAML: step 0 at unit filter norm)" in seen
    assert "unit filter norm (rho)" in seen
    assert "The comparison at unit filter norm judges rho" in seen
    assert "The comparison at unit filter norm" not in Reader(report(ds, images)).text


def test_the_correction_and_the_claims_without_a_verdict_are_shown(ds, images):
    lost = replace(VERDICT, kind="primary", p=0.02, p_corrected=0.12, corrected_outcome="inconclusive", num_corrected=6)
    seen = Reader(report(ds, images, verdicts=[lost, VERDICT], unjudged={"shot-cost": "no record"})).text
    assert "0.02 → 0.12" in seen
    assert "supported inconclusive after the correction" in seen
    assert "The 1 primary ones are corrected together" in seen
    assert "Claims that were not judged shot-cost: no record" in seen
    assert "not judged" not in Reader(report(ds, images)).text


def test_the_confidence_of_the_plan_is_shown_and_used(ds, images):
    seen = Reader(report(ds, images, confidence=0.8, figures={})).text
    assert "Effect, 80 % interval over seeds" in seen
    assert "about 20 % would exclude 0" in seen
    assert "mean ± half the width of a 80 % Student t interval over that seed's tasks" in seen
    assert "95 %" not in seen.partition("How the numbers were computed")[0]
    one = mean_interval(ds["evaluation_accuracy"][2, 0, -1].values * 100, confidence=0.8)
    assert f"{one.mean:.1f} ± {(one.high - one.low) / 2:.1f}" in seen
