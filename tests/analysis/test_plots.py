"""Tests of what all figures share.

Means and bands are compared with closed forms, each method has a fixed colour and marker, and figures are saved as
whole files.
"""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from figure_contents import line, study_to_draw
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from simulated_studies import simulated_study

import analysis.style
from analysis.drawing import style
from analysis.drawing.curves import learner_style
from analysis.drawing.figures import FIGURES, save
from analysis.drawing.legend import band_label
from analysis.drawing.summary import measured, probe_error, summarise, t_half_width, tasks_per_seed
from analysis.schema import MEASURED
from hessian_tools.rng import numpy_stream


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return study_to_draw()


# ---- summary


def test_summary_is_mean_over_tasks_then_over_seeds_with_their_range(ds):
    values = ds["alpha_rho"].where(ds["status"] == MEASURED)
    per_seed = values.mean("task")
    summary = summarise(measured(ds, "alpha_rho"))
    np.testing.assert_allclose(summary.mean, per_seed.mean("seed"), rtol=1e-12)
    np.testing.assert_allclose(summary.low, per_seed.min("seed").where(per_seed.notnull().sum("seed") > 1))
    assert band_label(summary.per_seed) == "band: range over 3 seeds; thin lines: each seed"


def test_unequal_numbers_of_tasks_do_not_weight_seeds():
    values = xr.DataArray([[1.0, 1.0, 1.0], [4.0, np.nan, np.nan]], dims=("seed", "task"))
    assert float(summarise(values).mean) == 2.5


def test_five_seeds_have_a_t_interval_against_the_closed_form():
    values = xr.DataArray([[1.0], [2.0], [3.0], [4.0], [5.0]], dims=("seed", "task"))
    summary = summarise(values)
    half = 2.776445 * np.sqrt(2.5 / 5)  # t with 4 degrees of freedom
    np.testing.assert_allclose([summary.low, summary.high], [3 - half, 3 + half], rtol=1e-6)
    assert "95% t interval over 5 seeds" in band_label(summary.per_seed)


def test_one_seed_has_no_band():
    summary = summarise(xr.DataArray([[1.0, 2.0]], dims=("seed", "task")))
    assert np.isnan(summary.low)
    assert np.isnan(t_half_width(xr.DataArray([1.0], dims="seed")))
    assert band_label(summary.per_seed) == "one seed: no band"


def test_the_label_of_the_bands_says_that_learners_have_different_numbers_of_seeds():
    values = xr.DataArray(np.ones((2, 8, 1)), dims=("learner", "seed", "task"))
    values[1, 6:] = np.nan
    assert band_label(summarise(values).per_seed) == "band: 95% t interval over 6-8 seeds"


def test_probe_errors_add_in_squares_over_tasks_and_seeds():
    """sqrt(sum stderr^2) / N: probes are independent between tasks and between seeds."""
    stderr = xr.DataArray(numpy_stream(0, "stderr").rand(3, 4), dims=("seed", "task"))
    assert float(probe_error(stderr)) == pytest.approx(float(np.sqrt((stderr**2).sum()) / 12), rel=1e-12)
    assert float(probe_error(xr.full_like(stderr, 0.2))) == pytest.approx(0.2 / np.sqrt(12), rel=1e-12)


def test_probe_error_is_that_of_the_mean_of_unequal_seeds():
    stderr = xr.DataArray([[0.3, 0.4, 0.5], [0.6, np.nan, np.nan], [np.nan] * 3], dims=("seed", "task"))
    weights = np.array([[1 / 6] * 3, [1 / 2, 0, 0], [0] * 3])  # the weight of each task in the mean of the seeds' means
    closed = np.sqrt(np.sum((weights * np.nan_to_num(stderr.values)) ** 2))
    assert float(probe_error(stderr)) == pytest.approx(closed, rel=1e-12)
    assert np.isnan(probe_error(stderr.isel(seed=[2])))


# ---- style


def test_a_method_has_the_same_colour_and_marker_in_every_figure(ds):
    few = simulated_study(learners=("untrained", "fomaml"), seeds=(0,), tasks=4, checkpoints=(0, 10))
    for study in (ds, few):
        for name in ("alpha_rho", "alignment", "accuracy"):
            drawn = line(FIGURES[name](study).axes[0], "mean:fomaml")
            assert to_hex(drawn.get_color(), keep_alpha=False) == "#009e73"
            assert drawn.get_marker() == style.method_style("fomaml").marker


def test_the_style_of_an_unknown_method_depends_on_its_name_alone():
    assert style.method_style("reptile") == style.method_style("reptile")
    assert style.method_style("MAML_SHOT") == style.method_style("maml-shot")
    known = {method.color for method in style.METHODS.values()}
    assert not {style.method_style(name).color for name in ("scales", "walker", "maml-2", "x")} & known


def test_method_colours_and_markers_differ():
    looks = list(style.METHODS.values())
    assert len({look.color for look in looks}) == len({look.marker for look in looks}) == len(looks)


def test_only_an_untrained_control_is_grey():
    study = simulated_study(
        learners=("base", "untrained"), untrained=("base",), tasks=2, seeds=(0,), evaluation_tasks=2
    )
    assert learner_style(study, "base") == style.CONTROL_STYLE
    assert learner_style(study, "untrained") == style.method_style("untrained")
    assert style.GREY not in {look.color for look in style.METHODS.values()}
    assert style.method_style("untrained").color != style.GREY


def test_context_restores_the_callers_settings():
    before = dict(mpl.rcParams)
    with style.context(width="single"):
        assert mpl.rcParams["figure.figsize"] == [3.25, 3.25 * 0.75]
        assert mpl.rcParams["pdf.fonttype"] == 42
    assert dict(mpl.rcParams) == before


def test_a_backend_that_turns_interactive_inside_the_context_stays_so():
    """The backend of notebooks does, at the first figure; later figures would not be shown without it."""
    try:
        with style.context():
            mpl.interactive(True)
        assert mpl.is_interactive()
    finally:
        mpl.interactive(False)


def test_a_figure_of_a_study_shows_itself_in_a_notebook_without_pyplot(ds):
    assert FIGURES["alpha_rho"](ds)._repr_png_().startswith(b"\x89PNG")


def test_every_pdf_has_truetype_fonts_even_outside_the_context(tmp_path):
    figure = Figure()
    figure.subplots().set_title("a figure of somebody else")
    figure.savefig(tmp_path / "figure.pdf")
    content = (tmp_path / "figure.pdf").read_bytes()
    assert b"/CIDFontType2" in content  # how matplotlib embeds Type 42
    assert b"/Type3" not in content


def test_old_import_paths_still_work():
    with pytest.warns(DeprecationWarning, match=r"use analysis\.drawing\.style\.context"):
        assert analysis.style.context is style.context


def test_unknown_width_is_refused():
    with pytest.raises(ValueError, match="single, double"):
        style.rc_params(width="triple")  # type: ignore[arg-type]


# ---- saving


@pytest.mark.slow
def test_saved_files_are_the_same_bytes_twice_and_embed_type_42_fonts(ds, tmp_path):
    for folder in ("one", "two"):
        save(FIGURES["eigenvalues"](ds), tmp_path / folder / "figure")
    for suffix in (".pdf", ".png"):
        first, second = ((tmp_path / folder / f"figure{suffix}").read_bytes() for folder in ("one", "two"))
        assert first == second
    content = (tmp_path / "one" / "figure.pdf").read_bytes()
    assert b"/CIDFontType2" in content  # how matplotlib embeds Type 42
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    assert b"CreationDate" not in content


def test_saving_replaces_whole_files_and_leaves_no_hidden_ones(ds, tmp_path):
    stem = tmp_path / "accuracy"
    (tmp_path / "accuracy.pdf").write_bytes(b"old")
    pdf, png = save(FIGURES["accuracy"](ds), stem)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.pdf", "accuracy.png"]
    assert pdf.read_bytes().startswith(b"%PDF")
    assert int.from_bytes(png.read_bytes()[16:20], "big") == 3.25 * 300  # the width in the header, at 300 dpi


def test_a_failed_save_keeps_the_old_file(tmp_path):
    class Broken(Figure):
        def savefig(self, *args, **kwargs):
            raise OSError("disk full")

    (tmp_path / "figure.pdf").write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        save(Broken(), tmp_path / "figure")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.pdf"]
    assert (tmp_path / "figure.pdf").read_bytes() == b"old"


def test_measurements_that_are_means_over_tasks_count_as_one_task():
    means = xr.DataArray([[0.5, np.nan], [0.7, 0.1]], dims=("learner", "seed"))
    assert (tasks_per_seed(means), tasks_per_seed(means * np.nan)) == ("1", "0")
    tasks = means.expand_dims(task=3)
    assert tasks_per_seed(tasks) == "3"
    assert tasks_per_seed(tasks.where(xr.DataArray([[1, 1], [0, 1], [1, 1]], dims=("task", "learner")) == 1)) == "2-3"
