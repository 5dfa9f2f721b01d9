"""Tests of the report in a real browser: on a desk and on a phone, in the light, in the dark and on paper."""

from dataclasses import replace

import pytest
from browser import new_page
from sample_verdict import VERDICT
from simulated_studies import simulated_study

from analysis.drawing.figures import FIGURES
from analysis.drawing.panels import save
from analysis.report import render
from analysis.report.page import page as write_page
from analysis.report.verdicts import MAX_OPEN, verdict_tables

pytestmark = pytest.mark.heavy

# What reaches beyond the right edge of the screen. Wide tables and pictures lie in boxes that scroll sideways.
BEYOND = """[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
    && !e.closest(".table *, .picture *")).map(e => e.tagName)"""
# The contrast of an element's text to the first ground behind it that is not transparent, as WCAG defines it.
CONTRAST = """selector => {
    const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3)
        .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const element = document.querySelector(selector);
    let ground = element;
    while (getComputedStyle(ground).backgroundColor.endsWith(", 0)")) ground = ground.parentElement;
    const two = [light(getComputedStyle(element).color), light(getComputedStyle(ground).backgroundColor)];
    return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05); }"""
GROUND = "getComputedStyle(document.body).backgroundColor"
TEXTS = ("h1", "nav a", ".soft", "figcaption", ".badge.supported", "td", "pre code", "aside li")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    ds = simulated_study(tasks=3)
    figures = {name: save(FIGURES[name](ds), folder / name)[1] for name in ("alpha_rho",)}
    page = folder / "report.html"
    text = render(
        ds=ds, verdicts=[VERDICT], figures=figures, setup={"Path": "x" * 300}, command="c" * 300, notes=["A note."]
    )
    page.write_text(text, encoding="utf-8")
    return page.as_uri()


@pytest.fixture(scope="module")
def page(address, tmp_path_factory):
    with new_page(tmp_path_factory.mktemp("browser")) as page:
        page.goto(address)
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_screen_and_all_text_can_be_read(page, width, scheme):
    page.emulate_media(media="screen", color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate(BEYOND) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    # On a phone the text of a picture of four panels is 8 pixels high, and the box of the picture scrolls.
    widths = page.evaluate("[...document.querySelectorAll('.picture')].map(p => [p.clientWidth, p.scrollWidth])")
    assert len(widths) == 1
    assert all(inside <= width and (whole == 704) == (width == 400) for inside, whole in widths)
    assert {text: page.evaluate(CONTRAST, text) for text in TEXTS if page.evaluate(CONTRAST, text) < 4.5} == {}
    assert page.evaluate(GROUND) == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 22, 22)")


def test_on_paper_the_ground_is_white_and_no_table_is_cut(page):
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 680, "height": 1000})  # A4 within its margins
    assert page.evaluate(GROUND) == "rgb(255, 255, 255)"
    assert page.evaluate("[...document.querySelectorAll('table, img')].every(t => t.clientWidth <= innerWidth)")


# The height that a <details> takes besides its summary; 0 while it is folded.
SENTENCE_HEIGHT = "details => details.offsetHeight - details.querySelector('summary').offsetHeight"


def test_the_sentence_of_a_verdict_is_folded_on_a_screen_and_unfolds_by_a_key_and_on_paper(page):
    page.set_viewport_size({"width": 1200, "height": 800})
    page.emulate_media(media="screen", color_scheme="light")
    details = page.locator("tr.verdict-sentence details").first
    assert details.evaluate(SENTENCE_HEIGHT) == 0
    details.locator("summary").focus()
    page.keyboard.press("Enter")
    assert details.evaluate(SENTENCE_HEIGHT) > 0
    page.keyboard.press("Enter")
    page.emulate_media(media="print")
    assert details.evaluate(SENTENCE_HEIGHT) > 0


@pytest.mark.parametrize("width", [390, 1280])
def test_the_outcome_of_a_verdict_is_seen_without_scrolling_sideways(page, width):
    page.emulate_media(media="screen", color_scheme="light")
    page.set_viewport_size({"width": width, "height": 800})
    box = page.locator(".table", has=page.locator(".badge")).first
    assert box.evaluate("box => box.scrollLeft + box.querySelector('.badge').getBoundingClientRect().right") <= width
    # On a desk the whole table fits.
    assert width == 390 or box.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_a_claim_with_many_verdicts_has_a_folded_table_that_is_whole_on_paper(page):
    verdicts = [replace(VERDICT, comparison=f"comparison {i}") for i in range(MAX_OPEN + 1)]
    tab = page.context.new_page()
    tab.set_content(write_page("Verdicts", [verdict_tables(verdicts)]))
    summary = tab.get_by_text("13 comparisons: 13 supported")
    last = tab.get_by_text("comparison 12", exact=True)
    assert not last.is_visible()
    summary.click()
    assert last.is_visible()
    summary.click()
    tab.emulate_media(media="print")
    assert last.evaluate("cell => cell.getBoundingClientRect().height") > 0
    tab.close()
