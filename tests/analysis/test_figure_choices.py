"""Tests of what a user may choose of a figure, and of the tables of the numbers behind figures."""

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
        ("accuracy", {"steps": [0]}, "accuracy has no single steps"),
        ("eigenvalues", {"learners": ["untrained", "maml"]}, "shows nothing of the learner untrained"),
        ("spectra", {}, "spectra cannot be drawn: the study does not measure density"),
        ("alpha_rho", {"steps": [0.5]}, "steps=.* each entry a whole number"),
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


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_table_and_keeps_the_width_of_a_column(large: xr.Dataset, name: str, tmp_path) -> None:
    figure = FIGURES[name]
    table = figure.data(large)
    assert len(table) and table["value"].notna().all()
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


def test_every_figure_has_its_name_in_the_public_module(ds: xr.Dataset) -> None:
    import analysis

    assert all(getattr(analysis.figures, name) is figure for name, figure in FIGURES.items())
    assert list(figures_of(ds))
