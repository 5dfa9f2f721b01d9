"""Tests of what a user may choose of a figure, and of the tables of the numbers behind figures."""

from inspect import signature
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tueplots.figsizes
import xarray as xr
from figure_contents import large_study, line, study_to_draw
from matplotlib.figure import Figure

from analysis import figures
from analysis.drawing import panels, style
from analysis.drawing.figures import FIGURES, figures_of
from analysis.drawing.figures.study_figure import tabulated


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return study_to_draw()


@pytest.fixture(scope="module")
def large() -> xr.Dataset:
    return large_study(seeds=2, tasks=2)


def gids(figure) -> set[str]:
    return {str(line.get_gid()) for ax in figure.axes for line in ax.lines if str(line.get_gid()).startswith("mean:")}


def test_the_widths_of_venues_are_those_of_tueplots() -> None:
    sizes = {"icml": "icml2024_half", "icml-full": "icml2024_full", "neurips": "neurips2024", "iclr": "iclr2024"}
    for name, function in (sizes | {"jmlr": "jmlr2001"}).items():
        width, _ = getattr(tueplots.figsizes, function)()["figure.figsize"]
        assert style.inches_of(name) == pytest.approx(width)


@pytest.mark.parametrize("width", ["twitter", "", None, 0.3, 99, float("nan")])
def test_a_width_that_there_is_not_is_refused(width: object) -> None:
    with pytest.raises(ValueError, match=r"width .* is not"):
        style.inches_of(width)  # type: ignore[arg-type]


def test_learners_steps_and_width_are_those_that_are_chosen(ds: xr.Dataset) -> None:
    figure = figures.alpha_rho(ds, learners=["maml-shot", "maml"], steps=[3, 1], width="icml")
    assert [ax.get_title("left") for ax in figure.axes] == ["step 1", "adapted (after 3 steps)"]
    assert gids(figure) == {"mean:maml", "mean:maml-shot"}
    assert figure.get_figwidth() == 3.25
    whole = figures.alpha_rho(ds)
    for part, panel in zip(figure.axes, (whole.axes[1], whole.axes[3]), strict=True):
        np.testing.assert_array_equal(line(part, "mean:maml").get_ydata(), line(panel, "mean:maml").get_ydata())
    assert "Of the study's 4 learners" not in figures.alpha_rho.caption(ds)
    assert "this figure shows MAML." in figures.alpha_rho.caption(ds, learners=["maml"])
    assert "The last panel" not in figures.alpha_rho.caption(ds, steps=[0])


def test_learners_are_drawn_in_the_order_in_which_they_are_chosen(ds: xr.Dataset) -> None:
    for names, shown in ((["fomaml", "maml"], ["FOMAML", "MAML"]), (["maml", "fomaml", "maml"], ["MAML", "FOMAML"])):
        figure = figures.alpha_rho(ds, learners=names)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == shown
        panels_of = figures.directions(ds, learners=names).axes
        assert [ax.get_title("left") for ax in panels_of] == shown
        table = figures.alpha_rho.data(ds, learners=names)
        assert list(dict.fromkeys(table["learner"])) == list(dict.fromkeys(names))
    there, back = (figures.alpha_rho(ds, learners=names) for names in (["maml", "fomaml"], ["fomaml", "maml"]))
    for gid in ("mean:maml", "mean:fomaml"):
        first, second = (line(figure.axes[0], gid) for figure in (there, back))
        np.testing.assert_array_equal(first.get_xydata(), second.get_xydata())
        assert first.get_color() == second.get_color()


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_the_same_numbers_in_any_order_of_the_learners(large: xr.Dataset, name: str) -> None:
    shown = list(dict.fromkeys(FIGURES[name].data(large).get("learner", [])))
    columns = [each for each in FIGURES[name].data(large, learners=shown).columns if each != "value"]
    tables = [FIGURES[name].data(large, learners=names) for names in (shown, shown[::-1])]
    if name in ("spectra", "loss_surfaces"):  # of equal untrained networks, one is shown: that of the first learner
        tables = [table[table["checkpoint"] > 0] for table in tables]
    first, second = (table.sort_values(columns).reset_index(drop=True) for table in tables)
    pd.testing.assert_frame_equal(first, second)
    FIGURES[name](large, learners=shown[::-1])


def test_learners_have_the_labels_that_the_user_gives(ds: xr.Dataset, tmp_path: Path) -> None:
    labels = {"fomaml": "first-order", "maml": r"$\alpha$ MAML"}
    figure = figures.alpha_rho(ds, learners=["fomaml", "maml"], labels=labels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first-order", r"$\alpha$ MAML"]
    assert gids(figure) == {"mean:maml", "mean:fomaml"}
    assert line(figure.axes[0], "mean:fomaml").get_color() == style.METHODS["fomaml"].color
    assert [ax.get_title("left") for ax in figures.directions(ds, learners=["fomaml"], labels=labels).axes] == [
        "first-order"
    ]
    assert "this figure shows first-order." in figures.alpha_rho.caption(ds, learners=["fomaml"], labels=labels)
    assert "this figure shows FOMAML." in figures.alpha_rho.caption(ds, learners=["fomaml"])
    # One choice serves all methods. The table keeps the names of the study.
    mine = {"learners": ["fomaml"], "labels": labels, "width": "icml"}
    assert "first-order" in figures.alpha_rho.caption(ds, **mine)
    assert set(figures.alpha_rho.data(ds, **mine)["learner"]) == {"fomaml"}
    assert figures.alpha_rho.save_data(ds, tmp_path / "numbers", **mine).exists()
    with pytest.raises(ValueError, match="labels='fo-maml' is not one of .*did you mean 'fomaml'"):
        figures.alpha_rho(ds, labels={"fo-maml": "first-order"})


def test_any_variable_is_drawn_over_meta_training(ds: xr.Dataset) -> None:
    figure = figures.variable(ds, "theta_norm")
    drawn = figure(ds, learners=["maml"], steps=[0, 3], width="icml")
    assert [ax.get_title("left") for ax in drawn.axes] == ["step 0", "adapted (after 3 steps)"]
    means = figures.alpha_rho.data(ds.assign(alpha_rho=ds["theta_norm"]), learners=["maml"], steps=[0])
    np.testing.assert_allclose(line(drawn.axes[0], "mean:maml").get_ydata(), means["value"])
    table = figure.data(ds, learners=["maml"])
    assert set(table["quantity"]) == {"theta_norm"} and "inner_step" in table.columns
    assert "(theta_norm), at each point of the inner loop, against" in figure.caption(ds)
    assert repr(figure).startswith("<figure theta_norm: ")


def test_a_variable_of_a_task_has_one_panel_and_no_steps(ds: xr.Dataset) -> None:
    attrs = {"long_name": "a number of my own, whose description is too long for one line beside a panel"}
    own = ds.assign(mine=ds["alpha_rho"].isel(inner_step=0, drop=True).assign_attrs(attrs))
    drawn = figures.variable(own, "mine")(own)
    assert len(drawn.axes) == 1 and drawn.axes[0].get_ylabel().count("\n") == 2
    with pytest.raises(ValueError, match="the figure mine has no choice of steps"):
        figures.variable(own, "mine")(own, steps=[0])


def test_a_variable_that_cannot_be_drawn_is_refused(ds: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="has no variable 'theta_nrom'; did you mean 'theta_norm'"):
        figures.variable(ds, "theta_nrom")
    with pytest.raises(ValueError, match=r"layer_norm \[.*layer.*\] is not one number for each task or step"):
        figures.variable(ds, "layer_norm")


def test_the_figures_of_a_study_are_those_of_the_package_and_of_its_own_variables(ds: xr.Dataset) -> None:
    assert set(figures_of(ds)) <= set(FIGURES)  # the study measures no quantity of the user's own
    rho = ds["alpha_rho"]
    own = ds.assign(mine=rho, mine_error=rho, by_layer=ds["layer_norm"], empty=rho * np.nan)
    own["mine"].attrs["error_variable"] = "mine_error"
    assert list(figures_of(own)) == [*figures_of(ds), "mine"]
    figure = figures_of(own)["mine"]
    growing, from_zero = np.exp(8 * rho), np.exp(8 * rho).where(rho["checkpoint"] > 0, 0.0)
    narrow = 1 + rho.clip(0, 1)
    for values, scale in ((growing, "log"), (-growing, "linear"), (from_zero, "linear"), (narrow, "linear")):
        assert figure(own.assign(mine=values)).axes[0].get_yscale() == scale


def test_a_learner_that_a_figure_leaves_out_of_a_large_study_can_be_chosen(large: xr.Dataset) -> None:
    assert "mean:maml-penalty-0.1" not in gids(figures.alpha_rho(large))
    assert "mean:maml-penalty-0.1" in gids(figures.alpha_rho(large, learners=["maml", "maml-penalty-0.1"]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alpha_rho", {"learners": ["mamll"]}, "did you mean 'maml'"),
        ("alpha_rho", {"learners": "maml"}, "learners='maml' must be a list"),
        ("alpha_rho", {"learners": []}, "learners is empty; give one or more names"),
        ("alpha_rho", {"steps": [4]}, "points 0 to 3"),
        ("alpha_rho", {"steps": []}, "points 0 to 3"),
        ("accuracy", {"steps": [0]}, "accuracy has no choice of steps"),
        ("eigenvalues", {"learners": ["untrained", "maml"]}, "shows nothing of the learner untrained"),
        ("spectra", {}, "spectra cannot be drawn: the study does not measure density"),
        ("alpha_rho", {"steps": [0.5]}, "steps=.* each entry a whole number"),
        ("alpha_rho", {"steps": 0}, "steps=0 must be a list, each entry a whole number"),
        ("alpha_rho", {"width": "nips"}, "width 'nips' is not known"),
    ],
)
def test_a_choice_that_cannot_be_drawn_is_refused(ds: xr.Dataset, name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FIGURES[name](ds, **options)


def test_the_table_has_the_numbers_that_are_drawn(ds: xr.Dataset) -> None:
    table = figures.alpha_rho.data(ds, learners=["maml"], steps=[1])
    drawn = line(figures.alpha_rho(ds).axes[1], "mean:maml")
    np.testing.assert_allclose(table["value"], drawn.get_ydata())
    np.testing.assert_array_equal(table["checkpoint"], drawn.get_xdata())
    thin = line(figures.alpha_rho(ds).axes[1], "seed:maml:2")
    np.testing.assert_allclose(table["seed 2"], thin.get_ydata())
    assert set(table["learner"]) == {"maml"}
    assert (table["low"] <= table["value"]).all()


def test_the_order_of_a_table_is_always_the_same(ds: xr.Dataset) -> None:
    """A Dataset of several variables has its dimensions in an order that changes from one to the next."""
    order = ["learner", "checkpoint", "inner_step"]
    for step in (1, 2, 3):
        table = figures.alpha_rho.data(ds, steps=[0, step])
        assert list(table.columns[:5]) == ["quantity", *order, "value"]
        places = list(zip(*(table[name].astype("category").cat.codes for name in order[1:]), strict=True))
        assert all(
            places[i] < places[i + 1] for i in range(len(places) - 1) if table["learner"][i] == table["learner"][i + 1]
        )


def test_the_tables_of_states_have_the_first_and_the_last_checkpoint_alone(ds: xr.Dataset) -> None:
    for name in ("directions", "eigenvalues"):
        table = FIGURES[name].data(ds)
        ends = {int(ds["checkpoint"][0]), int(ds["checkpoint"][-1])}
        assert set(table["checkpoint"]) == ends
        assert "untrained" not in set(table["learner"])


def test_values_that_are_drawn_one_by_one_stand_in_the_columns_of_their_seeds() -> None:
    nan = np.nan
    drawn = xr.DataArray([[1.0, nan, nan], [2.0, 3.0, nan]], coords={"seed": [0, 3], "task": [0, 1, 2]})
    table = tabulated({"drawn": drawn, "mean": xr.DataArray([4.0], coords={"task": [1]})})
    assert list(table["quantity"]) == ["drawn", "drawn", "mean"]  # what no seed has measured has no row
    assert list(table["task"]) == [0, 1, 1]
    expected = {"seed 0": [1.0, nan, nan], "seed 3": [2.0, 3.0, nan], "value": [nan, nan, 4.0]}
    np.testing.assert_array_equal(table[list(expected)], pd.DataFrame(expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_table_and_keeps_the_width_of_a_column(large: xr.Dataset, name: str, tmp_path) -> None:
    figure = FIGURES[name]
    table = figure.data(large)
    values = table[[column for column in table.columns if column == "value" or column.startswith("seed ")]]
    assert len(table) and values.notna().any(axis=1).all()
    read = pd.read_csv(figure.save_data(large, tmp_path / name))
    np.testing.assert_allclose(read["value"], table["value"], rtol=1e-5)
    assert figure(large, width=3.25).get_figwidth() == 3.25


@pytest.mark.parametrize("form", ["pdf", "png", "svg"])
def test_a_figure_that_the_disk_has_no_room_for_is_refused_as_such(tmp_path, form: str) -> None:
    """For a PDF matplotlib raises an AttributeError in this case."""
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    figure = Figure()
    figure.add_subplot().set_title("no room")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
        with pytest.raises(OSError, match="File too large"):
            panels.save(figure, tmp_path / "figure", formats=[form])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_help_shows_what_a_user_may_choose() -> None:
    for function in (figures.layers, figures.layers.data, figures.layers.save_data, figures.layers.caption):
        assert [*signature(function).parameters][-4:] == ["learners", "steps", "width", "labels"]
    forest = figures.forest
    for method in (forest.data, forest.save_data, forest.caption):
        assert [*signature(method).parameters][-2:] == ["claims", "learners"]
    assert [*signature(forest).parameters] == ["verdicts", "claims", "learners", "width"]


def test_every_figure_has_its_name_in_the_public_module(ds: xr.Dataset) -> None:
    import analysis

    assert all(getattr(analysis.figures, name) is figure for name, figure in FIGURES.items())
    assert list(figures_of(ds))
