"""Tests of the documentation site: its pages are whole, name every public name, and load nothing from elsewhere."""

import importlib
import re
from pathlib import Path

import pytest
from browser import as_number, new_page, set_slider, shown_values

import analysis
import hessian_tools as ht

DOCS = Path(__file__).parents[1] / "docs"
# The module that is current, and the directives up to the next one.
CURRENT = re.compile(r"currentmodule:: (\S+)\n(.*?)(?=\.\. currentmodule|```)", re.DOTALL)
# ``learners`` is a module, whose functions are listed, and ``figures`` one with a function for each figure.
MODULES = {"learners", "figures"}


@pytest.mark.parametrize("package", [ht, analysis], ids=lambda package: package.__name__)
def test_the_reference_lists_every_public_name_once(package):
    listed = []
    for page in sorted((DOCS / "reference").glob("*.md")):
        for module, names in re.findall(
            r"currentmodule:: (\S+)\n(.*?)(?=\.\. currentmodule|```)", page.read_text(), re.DOTALL
        ):
            found = re.findall(r"auto(?:function|class):: (\w+)", names)
            assert all(hasattr(importlib.import_module(module), name) for name in found), page.name
            listed += found if module == package.__name__ else []
    assert sorted(listed) == sorted(set(package.__all__) - MODULES)


def test_the_contents_list_every_document():
    listed = re.findall(r"^(?:.*<)?([\w/]+)>?$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    documents = [*DOCS.glob("*.md"), *DOCS.glob("reference/*.md"), *DOCS.glob("results/*.md")]
    documents += DOCS.glob("tutorial/*.ipynb")
    missing = {str(path.relative_to(DOCS).with_suffix("")) for path in documents} - {"index", *listed}
    assert not missing, f"docs/index.md does not list {', '.join(sorted(missing))}"


@pytest.mark.heavy
@pytest.mark.xdist_group("site")
def test_the_site_has_a_page_for_every_document_and_loads_nothing_from_elsewhere(site):
    for document in [*DOCS.glob("*.md"), *DOCS.glob("reference/*.md"), *DOCS.glob("tutorial/*.ipynb")]:
        text = (site / document.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=.https?:", text), document.name
        assert "/tmp/" not in text or document.suffix == ".md", document.name


@pytest.mark.heavy
@pytest.mark.xdist_group("site")
def test_docstrings_are_pages_and_not_raw_text(site):
    text = (site / "reference" / "spectrum.html").read_text(encoding="utf-8")
    assert 'id="hessian_tools.top_eigenpairs"' in text
    assert re.search(r"<strong>rtol</strong>: the residual that a pair may have", text)
    assert "<strong>seed</strong>: of the random start vectors" in text  # begins within a line of the docstring
    assert "jaxtyping" not in text and "collections.abc" not in text
    assert re.search(r"Raises ValueError for k outside 1\.\.param", text)


@pytest.mark.heavy
@pytest.mark.xdist_group("site")
def test_the_results_lead_to_the_reports_with_their_figures(site):
    page = (site / "results" / "README.html").read_text(encoding="utf-8")
    reports = set(re.findall(r'href="([^"]*report\.html)"', page))
    assert {"quickdraw/report.html", "regression/report.html"} <= reports
    for report in reports:
        path = site / "results" / report
        pictures = re.findall(r'src="(.*?)"', path.read_text(encoding="utf-8"))
        assert pictures and all((path.parent / picture).exists() for picture in pictures)
    explorers = set(re.findall(r'href="([\w-]+/explorer\.html)"', page))
    assert explorers == {report.replace("report.html", "explorer.html") for report in reports}
    assert all((site / "results" / explorer).exists() for explorer in explorers)


@pytest.mark.heavy
@pytest.mark.xdist_group("site")
def test_an_explorer_within_a_page_of_the_site_follows_its_sliders(site, tmp_path):
    ds = analysis.open_study(DOCS / "results" / "quickdraw")
    values = ds["alpha_rho"].sel(learner="maml").mean("task").mean("seed")
    requested = []
    with new_page(tmp_path, viewport={"width": 1200, "height": 900}) as page:
        page.on("request", lambda request: requested.append(request.url))
        page.goto((site / "explorer.html").as_uri())
        page.locator("iframe.explorer").scroll_into_view_if_needed()
        explorer = page.frame_locator("iframe.explorer")
        explorer.locator("[data-view=training] svg").wait_for()
        for checkpoint, step in ((3, 0), (1, 2)):
            set_slider(explorer, "checkpoint", checkpoint)
            set_slider(explorer, "step", step)
            expected = float(values.isel(checkpoint=checkpoint, inner_step=step))
            assert as_number(shown_values(explorer)["maml"][0]) == pytest.approx(expected, rel=1e-3)
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert requested and all(address.startswith(("file:", "blob:")) for address in requested)
