"""Tests of the explorer without a browser: what is exported, the code that it writes, and what a notebook keeps."""

import base64
import sys

import numpy as np
import pytest
import xarray as xr
from figure_contents import study_to_draw, with_further_variables
from matplotlib import pyplot as plt

import analysis
from analysis.cli import run
from analysis.drawing.summary import measured, summarise
from analysis.explorer import Explorer, explorer
from analysis.explorer.code import VIEWS, code, draw
from analysis.explorer.export import export
from analysis.statistics import student_half_width


@pytest.fixture(scope="module")
def ds():
    return with_further_variables(study_to_draw())


def numbers(header, values, name):
    variable = header["variables"][name]
    count = int(np.prod(variable["shape"]))
    return np.frombuffer(values, "<f4", count, 4 * variable["offset"]).reshape(variable["shape"])


def test_what_is_exported_is_what_was_measured(ds):
    header, values = export(ds)
    for name, variable in header["variables"].items():
        expected = measured(ds, name).transpose(*variable["dims"])
        np.testing.assert_array_equal(numbers(header, values, name), expected.values.astype("f4"))
        for dim, size in zip(variable["dims"], variable["shape"], strict=True):
            assert len(header["coords"][dim]) == size
    assert header["variables"]["alpha_rho"]["error"] == "alpha_rho_error"
    assert header["menu"][0] == "alpha_rho" and "alpha_rho_error" not in header["menu"]
    assert not {"density", "loss_surface", "level", "status"} & set(header["menu"])


def test_a_variable_whose_name_could_be_code_is_left_out(ds):
    hostile = ds.assign({'x").sel(); print("': ds["rho"], "fine": ds["rho"].rename(inner_step="a b")})
    menu = export(hostile)[0]["menu"]
    assert not [name for name in menu if not name.isidentifier()] and "fine" not in menu


def test_quantities_that_do_not_fit_are_named(ds, monkeypatch):
    monkeypatch.setattr("analysis.explorer.export.MAX_BYTES", 20_000)
    header, values = export(ds)
    assert header["menu"][0] == "alpha_rho" and len(values) <= 20_000 and "rho" in header["menu"] + header["left_out"]
    assert header["left_out"] and not set(header["left_out"]) & set(header["menu"])
    assert export(ds, variables=["trace", "alignment"])[0]["menu"] == ["trace", "alignment"]


def test_mistakes_are_told_in_words(ds):
    with pytest.raises(ValueError, match="no dimension 'learner'"):
        analysis.explore(xr.Dataset({"rho": ("x", [1.0])}))
    with pytest.raises(ValueError, match="no measured quantity"):
        analysis.explore(ds[["status", "level"]])
    with pytest.raises(ValueError, match="'alpha_rh'.*alpha_rho"):
        analysis.explore(ds, variables=["alpha_rh"])
    with pytest.raises(ValueError, match="which does not grow"):
        analysis.explore(ds).refresh()


STATES = (
    {"seed": None, "task": None, "log": False},
    {"seed": 1, "task": None, "log": True},
    {"seed": 1, "task": 2, "log": False},
)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("changes", STATES, ids=["seeds", "tasks", "point"])
def test_the_code_of_every_view_runs_and_draws_the_means(ds, view, changes):
    shown = analysis.explore(ds)
    state = shown._start() | {"checkpoint": 0, "inner_step": 1, "learners": ["maml", "maml-shot"]} | changes
    names = {"ds": ds}
    exec(shown._code(view, state), names)
    plt.close(names["fig"])
    if view in ("training", "inner"):
        values = measured(ds, "alpha_rho").sel({"training": {"inner_step": 1}, "inner": {"checkpoint": 0}}[view])
        values = values if changes["seed"] is None else values.sel(seed=[1])
        values = values if changes["task"] is None else values.sel(task=[2])
        expected = summarise(values).mean.sel(learner="maml-shot")
        line = names["ax"].lines[1]
        np.testing.assert_allclose(line.get_ydata(), expected)
        check_band(ds, view, changes, names)
        assert line.get_label() == "maml-shot" and names["ax"].get_yscale() == ("log" if changes["log"] else "linear")
    if view == "spectrum":
        eigenvalues = measured(ds, "eigenvalue") * ds["step_size"]
        chosen = {dim: changes[dim] for dim in ("seed", "task") if changes[dim] is not None}
        xr.testing.assert_allclose(names["values"], eigenvalues.sel(checkpoint=0, inner_step=1, **chosen))
    figure = draw(ds, shown._header, view, shown._checked(state))
    assert len(figure.axes) == len(names["fig"].axes)


def check_band(ds, view, changes, names):
    """The band is over seeds; or one standard error over the tasks of a seed; or the measured error of one value."""
    place = {"training": {"inner_step": 1}, "inner": {"checkpoint": 0}}[view]
    values = measured(ds, "alpha_rho").sel(place)
    if changes["seed"] is None:
        half = summarise(values).high - summarise(values).mean
    elif changes["task"] is None:
        tasks = values.sel(seed=1)
        half = tasks.std("task", ddof=1) / np.sqrt(tasks.notnull().sum("task"))
    else:
        half = measured(ds, "alpha_rho_error").sel(place | {"seed": 1, "task": 2})
    xr.testing.assert_allclose(
        (names["high"] - names["mean"]).drop_vars("seed", errors="ignore"), half.drop_vars("seed", errors="ignore")
    )
    assert float((names["mean"] - names["low"]).min()) >= 0


def test_the_browser_gets_the_step_sizes_and_the_factors_of_intervals(ds):
    sizes = ds["step_size"] + 0.1 * ds["seed"]
    header, _ = export(ds.assign(step_size=sizes.transpose("seed", "learner")))
    np.testing.assert_allclose(header["step_size"], sizes.transpose("learner", "seed"))
    assert header["half_widths"][:2] == [None, None]
    assert header["half_widths"][3] == pytest.approx(student_half_width(1.0, 3))


def test_untrained_networks_are_not_among_the_learners_that_are_shown_at_first(ds):
    assert export(ds)[0]["shown"] == ["maml", "maml-shot", "fomaml"]


def test_the_code_opens_the_study_where_a_folder_was_given(ds, monkeypatch):
    monkeypatch.setattr(explorer, "open_study", lambda path: ds)
    shown = analysis.explore('runs/a "quoted" study')
    text = shown._code("training", shown._start())
    assert "import analysis\n" in text and 'ds = analysis.open_study("runs/a \\"quoted\\" study")\n' in text
    compile(text, "copied", "exec")
    assert "open_study" not in code({**shown._header, "source": None}, "training", shown._start())


def test_a_study_that_grows_is_read_again(ds, monkeypatch):
    early = ds.assign({name: ds[name].where(ds["checkpoint"] == 0) for name in ("alpha_rho", "rho")})
    versions = [early, ds]
    monkeypatch.setattr(explorer, "open_study", lambda path: versions.pop(0))
    shown = analysis.explore("runs/growing")
    assert shown._start()["checkpoint"] == 0
    before = numbers(shown._header, shown._values, "rho")
    shown.refresh()
    after = numbers(shown._header, shown._values, "rho")
    assert np.isnan(before[:, :, 1:]).all() and np.isfinite(after[:, :, 1:]).any()
    assert shown._start()["checkpoint"] == ds["checkpoint"].values[-1]


def test_a_notebook_keeps_a_picture_and_says_what_is_missing(ds, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    explorer.widget_class.cache_clear()
    bundle, _ = analysis.explore(ds)._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "pip install 'hessian-tools[notebook]'" in bundle["text/plain"]


def test_the_page_loads_nothing_and_no_text_can_end_its_script(ds, tmp_path):
    ds = ds.copy()
    ds.attrs["study"] = "</script><script>alert(1)</script>"
    page = analysis.explore(ds).save(tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page and "https://" not in page.replace("https://www.w3.org", "")
    assert page.count("<script") == page.count("</script>") == 3


def test_the_command_writes_the_page_or_says_what_is_wrong(ds, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(explorer, "open_study", lambda path: ds)
    assert run(["explore", str(tmp_path), "--only", "alpha_rho", "trace"]) == 0
    page = tmp_path / "explorer.html"
    assert capsys.readouterr().out == f"page: {page}\n" and '"menu": ["alpha_rho", "trace"]' in page.read_text()
    monkeypatch.setattr("analysis.explorer.export.MAX_BYTES", 20_000)
    assert run(["explore", str(tmp_path), "--out", str(tmp_path / "other.html")]) == 0
    assert "left out, as all would be too large: " in capsys.readouterr().out
    assert run(["explore", str(tmp_path), "--only", "alpha_rh"]) == 2
    assert "did you mean 'alpha_rho'" in capsys.readouterr().err


def test_the_report_of_a_study_leads_to_the_page_beside_it(micro_study):
    assert '<a href="explorer.html">' in (micro_study / "report.html").read_text(encoding="utf-8")
    page = (micro_study / "explorer.html").read_text(encoding="utf-8")
    assert f'"source": "{micro_study.as_posix()}"' in page and len(page) < 300_000


def test_a_message_that_is_no_choice_of_the_study_is_answered_in_words(ds):
    sent = []

    class Widget:
        def send(self, content, buffers=()):
            sent.append((content, buffers))

    shown: Explorer = analysis.explore(ds)
    good = shown._start()
    for change in ({"quantity": "x; import os"}, {"seed": 99}, {"learners": []}, {"checkpoint": "0"}, {"extra": None}):
        shown._receive(Widget(), {"kind": "pdf", "view": "training", "state": good | change}, None)
    assert all(content["kind"] == "note" for content, _ in sent)
    shown._receive(Widget(), {"kind": "pdf", "view": "training", "state": good}, None)
    assert sent[-1][0]["kind"] == "pdf" and sent[-1][1][0].startswith(b"%PDF")
