"""Tests of the explorer's static page in a real browser: sliders are moved, and numbers and pictures follow."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import as_number, new_page, set_slider, shown_values
from figure_contents import study_to_draw, with_further_variables
from matplotlib import pyplot as plt
from simulated_studies import simulated_study

import analysis
from analysis.drawing.summary import measured, summarise
from analysis.schema import MEASURED

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def ds():
    return with_further_variables(study_to_draw())


@pytest.fixture(scope="module")
def address(ds, tmp_path_factory):
    # The browser reads a file, without any server.
    return analysis.explore(ds).save(tmp_path_factory.mktemp("explorer") / "page.html").as_uri()


@pytest.fixture(scope="module")
def page(address, tmp_path_factory):
    with new_page(tmp_path_factory.mktemp("browser"), viewport={"width": 1200, "height": 900}) as page:
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        yield page


@pytest.fixture
def opened(page, address):
    page.goto(address)
    page.wait_for_selector("[data-view=training] svg")
    return page


def expected(ds, name, learner, *, seed=None, task=None, **place):
    """The mean of a variable, computed here by numpy alone: over tasks, then over seeds."""
    values = ds[name].where(ds["status"] == MEASURED).sel(learner=learner, **place)
    values = values if seed is None else values.sel(seed=[seed])
    values = values if task is None else values.sel(task=[task])
    return float(np.nanmean([np.nanmean(row) for row in values.transpose("seed", ...).values]))


def check_table(page, ds, name, **place):
    shown = shown_values(page)
    assert shown
    for learner, (value, *_) in shown.items():
        assert as_number(value) == pytest.approx(expected(ds, name, learner, **place), rel=1e-3), learner


def circles(page, view):
    return page.locator(f"[data-view={view}] circle").evaluate_all("all => all.map(c => c.getAttribute('cy'))")


def test_the_sliders_change_the_numbers_and_the_pictures(opened, ds):
    checkpoints = ds["checkpoint"].values
    check_table(opened, ds, "alpha_rho", checkpoint=checkpoints[-1], inner_step=0)
    before = circles(opened, "inner"), circles(opened, "training")
    set_slider(opened, "checkpoint", 1)
    check_table(opened, ds, "alpha_rho", checkpoint=checkpoints[1], inner_step=0)
    assert circles(opened, "inner") != before[0] and circles(opened, "training") == before[1]
    set_slider(opened, "step", 2)
    check_table(opened, ds, "alpha_rho", checkpoint=checkpoints[1], inner_step=2)
    assert circles(opened, "training") != before[1]
    before = circles(opened, "training")
    opened.get_by_label("axes fit the curves").check()
    assert circles(opened, "training") != before
    assert f"meta-iteration {checkpoints[1]}, inner step 2" in opened.locator("[aria-live]").text_content()
    assert all(address.startswith(("file:", "blob:")) for address in opened.requested)


def test_the_menus_choose_quantity_seed_and_task(opened, ds):
    last = ds["checkpoint"].values[-1]
    opened.get_by_label("Quantity").select_option("query_loss")
    check_table(opened, ds, "query_loss", checkpoint=last, inner_step=0)
    opened.get_by_label("Seed", exact=True).select_option("1")
    check_table(opened, ds, "query_loss", checkpoint=last, inner_step=0, seed=1)
    opened.get_by_label("Quantity").select_option("alpha_rho")
    opened.get_by_label("Task", exact=True).select_option("2")
    opened.get_by_role("checkbox", name="FOMAML").uncheck()  # its task diverged, and is tested below
    check_table(opened, ds, "alpha_rho", checkpoint=last, inner_step=0, seed=1, task=2)
    error = ds["alpha_rho_error"].sel(learner="maml", seed=1, task=2, checkpoint=last, inner_step=0)
    assert as_number(shown_values(opened)["maml"][1].replace("± ", "")) == pytest.approx(float(error), rel=0.06)
    opened.get_by_role("checkbox", name="FOMAML").check()
    assert shown_values(opened)["fomaml"][0] == "not measured"
    opened.get_by_label("Quantity").select_option("layer_norm")
    opened.get_by_label("layer", exact=True).select_option("1")
    opened.get_by_label("Task", exact=True).select_option("all")
    opened.get_by_label("Seed", exact=True).select_option("all")
    value = expected(ds.isel(layer=1), "layer_norm", "maml", checkpoint=last, inner_step=0)
    assert as_number(shown_values(opened)["maml"][0]) == pytest.approx(value, rel=1e-3)
    opened.get_by_label("Quantity").select_option("alignment")
    assert "one value for a whole inner loop" in opened.locator("[data-view=inner]").inner_text()


def test_the_bands_are_those_of_the_figures(opened, ds, tmp_path):
    opened.get_by_label("Seed", exact=True).select_option("1")
    tasks = measured(ds, "alpha_rho").sel(learner="maml", seed=1).isel(checkpoint=-1, inner_step=0).dropna("task")
    error = float(tasks.std(ddof=1)) / tasks.size**0.5
    assert as_number(shown_values(opened)["maml"][1].replace("± ", "")) == pytest.approx(error, rel=0.06)
    six = simulated_study(seeds=range(6), tasks=3)
    opened.goto(analysis.explore(six, variables=["alpha_rho"]).save(tmp_path / "six.html").as_uri())
    opened.wait_for_selector("[data-view=training] svg")
    summary = summarise(measured(six, "alpha_rho"))
    interval = float((summary.high - summary.mean).sel(learner="maml").isel(checkpoint=-1, inner_step=0))
    assert as_number(shown_values(opened)["maml"][1].replace("± ", "")) == pytest.approx(interval, rel=0.06)


def test_eigenvalues_are_scaled_and_the_surface_stands_upright(opened, ds):
    eigenvalues = (measured(ds, "eigenvalue") * ds["step_size"]).sel(learner="maml").isel(checkpoint=-1, inner_step=0)
    words = opened.locator("[data-view=spectrum] svg").get_attribute("aria-label")
    largest = re.search(r"MAML largest (\S+?);", words)[1]
    assert as_number(largest) == pytest.approx(float(eigenvalues.max()), rel=1e-3)
    opened.locator("[data-view=surface] rect").first.hover(force=True)  # the lowest row of the first map comes first
    low = opened.locator("[data-view=surface] rect").first.bounding_box()["y"]
    high = opened.locator("[data-view=surface] rect").nth(ds.sizes["surface_x"]).bounding_box()["y"]
    tip = opened.locator(".tip").inner_text()
    assert high < low and as_number(re.search(r"random (\S+)", tip)[1]) == float(ds["surface_y"][0])


def test_what_is_not_measured_is_blank_and_surfaces_show_where_they_are(opened, ds):
    assert opened.locator("[data-view=surface] rect").count() > 600
    set_slider(opened, "checkpoint", 1)
    assert "No loss surface" in opened.locator("[data-view=surface]").inner_text()
    assert opened.locator("[data-view=surface] button:visible").count() == 0


def test_every_control_is_reached_and_used_by_the_keyboard(opened, ds):
    slider = opened.locator("[data-slider=checkpoint]")
    slider.focus()
    opened.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "Meta-iteration 0"
    assert slider.evaluate("each => getComputedStyle(each).outlineStyle") == "solid"
    check_table(opened, ds, "alpha_rho", checkpoint=0, inner_step=0)
    for control in opened.locator("button:visible, select, input").all():
        assert control.evaluate("each => each.labels?.length || each.textContent || each.ariaLabel")
        assert control.evaluate("each => each.disabled || each.tabIndex === 0")
    for picture in opened.locator("figure svg").all():
        assert picture.get_attribute("role") == "img" and len(picture.get_attribute("aria-label")) > 30


def test_pointing_at_a_value_tells_it_and_a_click_moves_there(opened, ds):
    where = opened.locator("[data-view=training] circle").first  # at meta-iteration 0 all networks are the same
    where.hover(force=True)
    value = expected(ds, "alpha_rho", "maml", checkpoint=0, inner_step=0)
    tip = opened.locator(".tip").inner_text()
    assert all(words in tip for words in ("meta-iteration 0", "range of the seeds", "also: MAML + SHOT, FOMAML"))
    assert as_number(re.search(r"alpha_rho (\S+)", tip)[1]) == pytest.approx(value, rel=1e-3)
    where.click(force=True)
    check_table(opened, ds, "alpha_rho", checkpoint=0, inner_step=0)


def test_the_copied_code_is_that_of_python_and_draws_the_numbers_that_are_shown(opened, ds):
    shown = analysis.explore(ds)
    state = shown._start()
    for seed, task in ((None, None), (1, None), (1, 3)):
        opened.get_by_label("Seed", exact=True).select_option("all" if seed is None else str(seed))
        if task is not None:
            opened.get_by_label("Task", exact=True).select_option(str(task))
        for view in ("training", "inner", "tasks", "spectrum", "surface"):
            opened.locator(f"[data-view={view}]").get_by_text("Copy code").click()
            text = opened.locator(f"[data-view={view}] pre").text_content()
            assert text == shown._code(view, state | {"seed": seed, "task": task})
            names = {"ds": ds}
            exec(text, names)
            plt.close(names["fig"])
            if view == "training":
                drawn = {line.get_label(): line.get_ydata()[-1] for line in names["ax"].lines}
                for learner, (value, *_) in shown_values(opened).items():
                    assert drawn[learner] == pytest.approx(as_number(value), rel=1e-3, nan_ok=True)


def test_the_picture_is_saved_as_svg_for_a_white_page(opened, ds, tmp_path):
    with opened.expect_download() as download:
        opened.locator("[data-view=training]").get_by_text("Save SVG").click()
    download.value.save_as(tmp_path / "picture.svg")
    picture = ElementTree.parse(tmp_path / "picture.svg").getroot()
    assert download.value.suggested_filename == "alpha_rho-training.svg"
    assert "alpha_rho" in picture.findtext("{http://www.w3.org/2000/svg}title")
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}circle"))) == 3 * ds.sizes["checkpoint"]


def test_a_phone_in_the_dark_shows_everything_within_its_width(opened):
    opened.set_viewport_size({"width": 400, "height": 800})
    opened.emulate_media(color_scheme="dark")
    opened.wait_for_selector(".ht-explorer.dark")
    opened.wait_for_function("document.querySelector('figure svg').clientWidth < 400")
    assert opened.evaluate("document.documentElement.scrollWidth") == 400
    # The sentence above the table of values does so as well, also where the table scrolls sideways.
    assert opened.evaluate("document.querySelector('caption').getBoundingClientRect().right") <= 400
    background = opened.locator(".ht-explorer").evaluate("each => getComputedStyle(each).backgroundColor")
    assert max(int(part) for part in re.findall(r"\d+", background)) < 60
