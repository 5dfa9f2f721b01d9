"""Tests of which figures and learners of a study are shown, and of what the newer figures draw."""

import numpy as np
import pytest
import xarray as xr
from figure_contents import large_study, line, study_to_draw, with_further_variables
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from simulated_studies import simulated_study

from analysis.drawing import selection
from analysis.drawing.figures import FIGURES, figures_of, left_out
from analysis.drawing.figures.dose_response import _series
from analysis.drawing.style import method_label
from analysis.drawing.summary import measured, summarise
from analysis.evaluation import evaluation_scores
from analysis.quantities.alpha_sweep import FACTORS
from analysis.schema import LATER_COORDINATES, NO_SUCH_SEED, learner_names


@pytest.fixture(scope="module")
def large() -> xr.Dataset:
    return large_study()


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return with_further_variables(study_to_draw())


# ---- which figures and which learners


def test_a_figure_that_lacks_a_variable_is_left_out_with_the_reason(ds):
    assert left_out(ds) == {"dose_response": "no learner of the study has 3 or more weights of SHOT or of the penalty"}
    assert "spectra" not in figures_of(ds.drop_vars("density"))
    assert left_out(ds.drop_vars("density"))["spectra"] == "the study does not measure density"
    assert left_out(ds.assign(density=ds["density"] * np.nan))["spectra"] == "density has no value in this study"
    # Without norms there is still the curvature of each tensor.
    assert "layers" in figures_of(ds.drop_vars("layer_norm"))
    assert "layers" not in figures_of(ds.drop_vars(["layer_norm", "rho_layer", "rho_layer_normalised"]))


def test_lines_of_many_learners_are_those_of_the_first_family_and_the_controls(large, ds):
    assert learner_names(selection.for_lines(ds)) == learner_names(ds)
    shown = ["untrained", "supervised", "shuffled", "maml", "maml-shot", "fomaml", "fomaml-shot"]
    assert learner_names(selection.for_lines(large)) == shown
    assert selection.main_learners(large, 3) == ["maml", "maml-shot", "fomaml"]
    kept = selection.without_variants(large)
    assert len(kept) == 15
    assert not any("penalty" in name or name.endswith(("01", "1")) for name in kept)
    assert [len(learner_names(part)) for part in selection.families(large)] == [7, 2, 2, 2, 2]
    assert "this figure shows untrained, supervised" in FIGURES["alpha_rho"].caption(large)
    assert "this figure shows" not in FIGURES["alpha_rho"].caption(ds)


def test_without_the_coordinates_of_a_later_version_a_family_is_a_learner_and_the_same_with_shot():
    names = [name + end for name in ("maml", "fomaml", "anil", "boil", "reptile") for end in ("", "-shot")]
    study = simulated_study(learners=["untrained", *names], seeds=(0,), tasks=2, evaluation_tasks=2)
    study = study.drop_vars(LATER_COORDINATES)
    assert learner_names(selection.for_lines(study)) == ["untrained", "maml", "maml-shot"]
    assert selection.without_variants(study) == ["untrained", *names]


# ---- each learner against its own start


def test_a_learner_with_another_inner_loop_has_a_line_at_its_own_untrained_network():
    study = simulated_study(learners=("untrained", "maml", "anil"), tasks=4, seeds=(0, 1), evaluation_tasks=4)
    study["alignment"] = study["alignment"] * xr.where(study["learner"] == "anil", 2.0, 1.0)
    figure = FIGURES["alignment"](study)
    own = float(summarise(measured(study, "alignment")).mean.sel(learner="anil", checkpoint=0))
    np.testing.assert_allclose(line(figure.axes[1], "untrained:anil").get_ydata(), own)
    assert not any(drawn.get_gid() == "untrained:maml" for drawn in figure.axes[1].lines)  # the control has that line
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "untrained, adapted as ANIL" in texts
    assert texts.count("untrained") == 1


def test_maps_of_tensors_that_fit_no_page_are_left_out_and_the_caption_says_so(large):
    figure = FIGURES["layer_blocks"]
    assert "With so many learners, 5 further maps are left out; choose fewer" in figure.caption(large)
    assert len(figure(large, learners=["maml"]).axes) == 8 + 1  # and the colour bar
    assert "With so many learners" not in figure.caption(large, learners=["maml"])


def test_a_map_with_few_ratios_is_left_out(large):
    """The traces are negative in most tensors at step 0, where a ratio would mean nothing."""
    positive = (large["inner_step"] > 0) | (large["layer"] == 0)
    negative = large["layer_norm"].where(positive, -1.0)
    study = large.assign(trace_layer=negative)
    figure = FIGURES["layer_blocks"](study, learners=["maml"])
    assert "left out: trace of each tensor, step 0." in FIGURES["layer_blocks"].caption(study, learners=["maml"])
    titles = [ax.get_title("left") for ax in figure.axes]
    assert "trace of each tensor, mean of the later steps" in titles
    assert "trace of each tensor, step 0" not in titles
    half = large["layer_norm"].where(positive | (large["layer"] == 1), -1.0)  # of two of the four tensors
    figure = FIGURES["layer_blocks"](large.assign(trace_layer=half), learners=["maml"])
    assert "trace of each tensor, step 0" in [ax.get_title("left") for ax in figure.axes]


def test_the_numbers_of_dark_cells_are_white(large):
    factors = xr.DataArray([0.02, 1.0, 3.5, 1.0], dims="layer")
    trained = (large["checkpoint"] == 300) & (large["learner"] != "untrained")
    norms = xr.where(trained, factors, 1.0) * xr.ones_like(large["layer_norm"])
    texts = FIGURES["layers"](large.assign(layer_norm=norms)).axes[2].texts
    colors = {(cell.get_text(), cell.get_color()) for cell in texts}
    assert colors == {("0.02", "white"), ("1.00", "black"), ("3.50", "white")}


@pytest.mark.parametrize(
    ("name", "title", "variable"),
    [
        ("layers", "curvature rho of each tensor", "rho_layer"),
        ("layers", "rho at unit filter norm", "rho_layer_normalised"),
        ("layer_blocks", "|Hg| / |g| of each tensor", "hg_ratio_layer"),
        ("layer_blocks", "trace of each tensor", "trace_layer"),
        ("layer_blocks", "|Hg| / |g| at unit filter norm", "hg_ratio_layer_normalised"),
        ("layer_blocks", "trace at unit filter norm", "trace_layer_normalised"),
    ],
)
def test_a_map_of_tensors_has_the_ratio_to_the_learners_own_start(large, name, title, variable):
    axes = FIGURES[name](large, learners=["maml", "anil"]).axes
    (ax,) = [ax for ax in axes if ax.get_title("left") == f"{title}, step 0"]
    rows = [text.get_text() for text in ax.get_yticklabels()]
    values = summarise(measured(large, variable)).mean.sel(learner="anil", layer=2).isel(inner_step=0)
    expected = float(values.isel(checkpoint=-1) / values.isel(checkpoint=0))
    cell = next(text for text in ax.texts if text.get_gid() == f"{rows.index('ANIL')}:2")
    assert float(cell.get_text()) == pytest.approx(expected, abs=0.006)


def test_a_learner_that_begins_from_another_is_compared_with_its_untrained_start_at_the_same_steps(large):
    """It begins from values of 5, and ends at 2 and, after the first step, 4 times those of its untrained start."""
    starts = [{"maml-shot": "maml"}.get(name, name) for name in learner_names(large)]
    study = large.assign_coords(untrained_start=("learner", starts))
    later = xr.where(study["inner_step"] > 0, 4.0, 2.0) * xr.ones_like(study["rho_layer"])
    values = xr.where(study["checkpoint"] == 0, 5.0, later)
    rho = xr.where(study["learner"] == "maml", 1.0, values).transpose(*study["rho_layer"].dims)
    study["rho_layer"] = (rho.dims, rho.values, study["rho_layer"].attrs)
    axes = FIGURES["layers"](study, learners=["maml-shot"]).axes
    assert [{text.get_text() for text in ax.texts} for ax in axes[:2]] == [{"2.00"}, {"4.00"}]


def test_a_tensor_has_no_column_where_it_starts_at_zero_in_every_learner(large):
    """The first tensor does. The second one does in MAML alone."""
    starts = xr.where((large["layer"] == 0) | ((large["layer"] == 1) & (large["learner"] == "maml")), 0.0, 1.0)
    norms = xr.where(large["checkpoint"] == 0, starts, 1.0 + large["layer"]) * xr.ones_like(large["layer_norm"])
    dims = large["layer_norm"].dims
    study = large.drop_vars(["rho_layer", "rho_layer_normalised"])
    study["layer_norm"] = (dims, norms.transpose(*dims).values, large["layer_norm"].attrs)
    ax, _ = FIGURES["layers"](study, learners=["maml", "anil"]).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["MAML", "ANIL"]
    assert [text.get_text() for text in ax.get_xticklabels()] == large["layer"].attrs["flag_meanings"].split()[1:]
    cells = {text.get_position(): text.get_text() for text in ax.texts}  # by (column, row)
    assert cells == {(0, 1): "2.00", (1, 0): "3.00", (1, 1): "3.00", (2, 0): "4.00", (2, 1): "4.00"}


# ---- what the figures draw


def test_dose_response_draws_every_weight_with_its_seeds(large):
    figure = FIGURES["dose_response"](large)
    axes = np.array(figure.axes).reshape(3, 2)
    doses = [-0.1, -0.01, 0.0, 0.01, 0.1, 1.0]
    names = ["maml-shot--0.1", "maml-shot--0.01", "maml", "maml-shot-0.01", "maml-shot", "maml-shot-1"]
    curvature = measured(large, "alpha_hg_ratio").isel(checkpoint=-1, inner_step=0)
    drawn = line(axes[0, 0], "mean:dose:maml")
    assert list(drawn.get_xdata()) == doses
    np.testing.assert_allclose(drawn.get_ydata(), summarise(curvature).mean.sel(learner=names))
    assert len(line(axes[0, 0], "seeds:dose:maml").get_xdata()) == 6 * 5
    assert list(line(axes[2, 1], "mean:penalty:maml").get_xdata()) == [0.0, 0.01, 0.1]
    scores = summarise(evaluation_scores(large)).mean.isel(checkpoint=-1)
    np.testing.assert_allclose(line(axes[2, 0], "mean:dose:maml").get_ydata(), scores.sel(learner=names))
    assert axes[0, 0].get_xscale() == "symlog"
    assert [text.get_text() for text in axes[0, 0].get_xticklabels()][2] == "0"


def test_the_dose_response_shows_the_untrained_network_from_which_its_learners_start(large):
    # The untrained network has more curvature than any trained one, and the axis holds it all the same.
    start = large["alpha_hg_ratio"].where(large["checkpoint"] > 0, 50.0)
    study = large.assign(alpha_hg_ratio=start)
    figure = FIGURES["dose_response"](study)
    axes = np.array(figure.axes).reshape(3, 2)
    scores = summarise(evaluation_scores(study)).mean.sel(learner="maml").isel(checkpoint=0)
    for column, weight in enumerate(("dose", "penalty")):
        for row, level in enumerate((50.0, 50.0, float(scores))):
            drawn = line(axes[row, column], f"untrained:{weight}:maml")
            assert list(drawn.get_ydata()) == pytest.approx([level, level])
            low, high = axes[row, column].get_ylim()
            assert low < level < high
            # The weights fill the axis, and the outermost ones have a margin.
            weights = np.array(line(axes[row, column], f"mean:{weight}:maml").get_xdata())
            first, last = (
                axes[row, column]
                .transAxes.inverted()
                .transform(axes[row, column].transData.transform([(weights[0], level), (weights[-1], level)]))[:, 0]
            )
            assert 0.02 < first < 0.1 and 0.9 < last < 0.98
    assert "untrained" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "Dotted lines are the untrained networks" in FIGURES["dose_response"].caption(study)
    later = study.isel(checkpoint=slice(1, None))  # a study that did not measure the untrained networks
    assert "untrained" not in FIGURES["dose_response"].caption(later)
    lines = FIGURES["dose_response"](later).axes[0].get_lines()
    assert not any(str(each.get_gid()).startswith("untrained") for each in lines)


def test_a_learner_that_shot_has_pre_trained_does_not_replace_the_one_without_shot(large):
    """It has the weight 0 too, and may come first in a study."""
    pretrained = large.sel(learner=["maml"]).assign_coords(
        learner=["shot-p"], without_intervention=("learner", ["maml"])
    )
    study = xr.concat([pretrained, large], "learner", join="outer", combine_attrs="override")
    assert list(_series(study, "dose")["maml"])[2] == "maml"


def test_the_caption_of_the_dose_response_has_the_seeds_of_each_learner_where_they_differ(large):
    assert "95% t interval over 5 seeds." in FIGURES["dose_response"].caption(large)
    assert "maml-shot-1 (1)" in FIGURES["dose_response"].caption(large)
    fewer = (large["learner"] == "maml-shot-1") & (large["seed"] >= 3)
    study = large.assign(status=large["status"].where(~fewer, NO_SUCH_SEED))
    caption = FIGURES["dose_response"].caption(study)
    assert "95% t interval over 3-5 seeds." in caption
    assert "maml-shot (0.1, 5 seeds), maml-shot-1 (1, 3 seeds)" in caption
    legend = FIGURES["dose_response"](study).legends[-1]
    assert "bar: 95% t interval over 3-5 seeds" in [text.get_text() for text in legend.get_texts()]


def test_the_plane_of_the_edge_of_stability_scales_both_axes_by_alpha(ds):
    figure = FIGURES["edge_of_stability"](ds)
    path = line(figure.axes[0], "path:maml:1")
    along = summarise(measured(ds, "alpha_rho")).mean.sel(learner="maml", inner_step=1)
    top = summarise(0.1 * measured(ds, "eigenvalue_max")).mean.sel(learner="maml", inner_step=1)
    np.testing.assert_allclose(path.get_xdata(), along)
    np.testing.assert_allclose(path.get_ydata(), top)
    assert list(line(figure.axes[0], "edge").get_ydata()) == [2, 2]
    assert list(line(figure.axes[0], "threshold").get_xdata()) == [2, 2]


@pytest.fixture(scope="module")
def many_tasks() -> xr.Dataset:
    return with_further_variables(simulated_study(tasks=60, seeds=range(5), evaluation_tasks=2))


def test_captions_have_the_papers_numbers_as_those_of_other_data(ds):
    cosine = FIGURES["alignment"].caption(ds)
    assert "on other data, has for MAML 0.49 early in training, 0.36 at epoch 100, 0.75 at epoch 140" in cosine
    assert (
        "for MAML + SHOT about 0.90 from epoch 110 on. In the paper an epoch is 100 meta-iterations, and K = 3"
        in cosine
    )
    accuracy = FIGURES["accuracy"].caption(ds)
    assert "on other data" in accuracy
    assert "47.88 and 64.81 % for MAML and 47.97 and 66.86 % with SHOT as a penalty" in accuracy
    regression = ds.assign(evaluation_accuracy=ds["evaluation_accuracy"] * np.nan)
    assert "47.88" not in FIGURES["accuracy"].caption(regression)
    assert "on other data, and gives no numbers" in FIGURES["loss_surfaces"].caption(ds)


def test_curvature_against_support_loss_compares_points_of_equal_loss(many_tasks):
    # Curvature is the square root of the support loss, and half of that after training, which also lowers the losses.
    # So at equal loss each trained line is at half the height of the untrained one.
    trained = (many_tasks["checkpoint"] == 300) & (many_tasks["learner"] != "untrained")
    loss = many_tasks["support_loss"] * xr.where(trained, 0.8, 1.0)
    curvature = loss**0.5 * xr.where(trained, 0.5, 1.0)
    study = many_tasks.assign(support_loss=loss, alpha_rho=curvature, alpha_hg_ratio=2 * curvature)
    figure = FIGURES["curvature_loss"](study)
    for ax, factor in zip(figure.axes, (1, 1, 2, 2), strict=True):
        before, after = line(ax, "mean:first:maml"), line(ax, "mean:last:maml")
        assert len(set(before.get_xdata()) & set(after.get_xdata())) >= 2
        for drawn, share in ((before, 1.0), (after, 0.5)):
            x, y = (np.array(data) for data in drawn.get_data())
            np.testing.assert_allclose(y, factor * share * x**0.5, rtol=0.1)  # intervals of the loss have a width
        assert before.get_markerfacecolor() == "white"
    assert [ax.get_title("left") for ax in figure.axes[:2]] == ["step 0", "later steps"]
    later = loss.sel(learner="maml", checkpoint=300).isel(inner_step=slice(1, None))
    assert line(figure.axes[1], "mean:last:maml").get_xdata().max() < later.max()
    names = ("alpha rho", "alpha |Hg| / |g|")
    expected = {f"{name}, {group}" for name in names for group in ("step 0", "later steps")}
    assert set(FIGURES["curvature_loss"].data(study)["quantity"]) == expected
    assert "lower curvature at equal support loss" in FIGURES["curvature_loss"].caption(study)
    assert "untrained start" in str(FIGURES["curvature_loss"].needs(study.sel(checkpoint=[30, 300])))


def test_an_interval_of_losses_that_few_seeds_reach_is_not_drawn(many_tasks):
    # At step 0, two of five seeds have losses of their own, for which no other seed has a point.
    far = (many_tasks["seed"] < 2) & (many_tasks["inner_step"] == 0)
    loss = many_tasks["support_loss"] * xr.where(far, 20.0, 1.0)
    figure = FIGURES["curvature_loss"](many_tasks.assign(support_loss=loss, alpha_rho=loss, alpha_hg_ratio=loss))
    assert not [drawn for drawn in figure.axes[0].lines if len(drawn.get_xdata())]
    assert len(line(figure.axes[1], "mean:last:maml").get_xdata()) > 2


def test_the_sweep_of_step_sizes_has_a_line_for_each_learner_and_its_untrained_network(ds):
    (ax,) = FIGURES["alpha_sweep"](ds).axes
    means = summarise(measured(ds, "swept_query_accuracy")).mean
    for name, checkpoint in (("first:maml", 0), ("last:maml", 300), ("last:fomaml", 300)):
        drawn = line(ax, f"mean:{name}")
        assert list(drawn.get_xdata()) == list(FACTORS)
        expected = means.sel(learner=name.partition(":")[2], checkpoint=checkpoint)
        np.testing.assert_allclose(drawn.get_ydata(), expected)
    assert list(line(ax, "own step size").get_xdata()) == [1, 1]
    assert not any(drawn.get_gid() == "mean:last:untrained" for drawn in ax.lines)
    unswept = ds.drop_vars("swept_query_accuracy")
    assert left_out(unswept)["alpha_sweep"] == "the study does not measure swept_query_accuracy"


def test_losses_at_other_step_sizes_have_a_logarithmic_axis(ds):
    losses = 4.0 * ds["swept_query_accuracy"]
    regression = ds.drop_vars(["swept_query_accuracy", "evaluation_accuracy", "query_accuracy", "support_accuracy"])
    (ax,) = FIGURES["alpha_sweep"](regression.assign(swept_query_loss=losses)).axes
    assert ax.get_yscale() == "log"
    (ax,) = FIGURES["alpha_sweep"](ds).axes
    assert ax.get_yscale() == "linear"


def test_curvature_against_accuracy_separates_step_0_from_later_steps(ds):
    figure = FIGURES["curvature_accuracy"](ds)
    values = measured(ds, "alpha_hg_ratio").sel(learner="maml")
    later = values.isel(inner_step=slice(1, None)).mean("inner_step")
    for ax, part in zip(figure.axes, (values.isel(inner_step=0), later), strict=True):
        np.testing.assert_allclose(line(ax, "path:maml").get_xdata(), summarise(part).mean)
    np.testing.assert_allclose(
        line(figure.axes[0], "path:maml").get_ydata(), summarise(evaluation_scores(ds)).mean.sel(learner="maml")
    )
    # The open marker of the start is in front of the filled one of the untrained control, which is at the same place.
    start, control = line(figure.axes[0], "first:maml"), line(figure.axes[0], "last:untrained")
    assert (start.get_markerfacecolor(), list(start.get_xdata())) == ("white", list(control.get_xdata()))
    assert start.get_zorder() > control.get_zorder()


def test_a_learner_without_a_path_is_drawn_from_its_own_untrained_start(large):
    ax = FIGURES["curvature_accuracy"](large).axes[0]
    drawn = {str(each.get_gid()) for each in ax.get_lines()}
    assert "path:maml" in drawn and "path:anil" not in drawn  # the study has too many learners for all paths
    means = summarise(measured(large, "alpha_hg_ratio").isel(inner_step=0)).mean.sel(learner="anil")
    scores = summarise(evaluation_scores(large)).mean.sel(learner="anil")
    for gid, place in (("first:anil", 0), ("last:anil", -1)):
        (x,), (y,) = line(ax, gid).get_data()
        assert (x, y) == pytest.approx((float(means[place]), float(scores[place])))
    assert float(scores[0]) != pytest.approx(float(summarise(evaluation_scores(large)).mean.sel(learner="maml")[0]))


def test_only_a_learner_with_a_path_has_a_line_in_the_legend(large, ds):
    for study in (large, ds, ds.isel(checkpoint=[0])):
        figure = FIGURES["curvature_accuracy"](study)
        gids = {str(each.get_gid()) for ax in figure.axes for each in ax.get_lines()}
        names = [gid.removeprefix("last:") for gid in gids if gid.startswith("last:")]
        entries = {entry.get_label(): entry for each in figure.legends for entry in each.legend_handles}
        assert "maml" in names
        for name in names:
            look = entries[method_label(name)]
            assert look.get_marker() not in ("", "None")
            assert (look.get_linestyle() != "None") is (f"path:{name}" in gids)


def test_spectra_and_surfaces_show_the_untrained_network_beside_the_trained_ones(ds):
    for name, rows in (("spectra", 1), ("loss_surfaces", 2)):
        figure = FIGURES[name](ds)
        titles = [ax.get_title("left") for ax in figure.axes if ax.get_title("left")]
        assert titles == ["untrained", "MAML", "MAML + SHOT", "FOMAML"]
        pictures = [ax.collections[0].get_array() for ax in figure.axes[: 4 * rows]]
        assert not np.ma.allclose(pictures[0], pictures[1])
    density = summarise(measured(ds, "density")).mean.sel(learner="maml").isel(checkpoint=-1)
    picture = FIGURES["spectra"](ds).axes[1].collections[0].get_array()
    table = density.transpose("grid", "inner_step").values
    np.testing.assert_allclose(np.ma.filled(picture, np.nan)[~picture.mask], table[~picture.mask])


def test_surfaces_of_very_different_losses_have_logarithmic_colours(ds):
    """With linear colours one surface of large losses would leave the others of its row without any contour."""
    one = {"learner": "fomaml", "checkpoint": ds["checkpoint"].values[-1]}
    large = ds.assign(loss_surface=ds["loss_surface"].copy(deep=True))
    large["loss_surface"].loc[one] *= 20
    for studied, logarithmic in ((ds, False), (large, True)):
        figure = FIGURES["loss_surfaces"](studied)
        upper, lower = (figure.axes[at].collections[0].norm for at in (0, 4))
        assert [isinstance(norm, LogNorm) for norm in (upper, lower)] == [logarithmic, False]
        labels = [ax.get_ylabel() for ax in figure.axes if "support loss" in ax.get_ylabel()]
        assert labels == ["support loss (log)" if logarithmic else "support loss", "support loss"]
        levels = figure.axes[0].collections[1].levels
        steps = np.diff(np.log(levels) if logarithmic else levels)
        np.testing.assert_allclose(steps, steps[0])
        shown = [np.ma.compressed(ax.collections[0].get_array()) for ax in figure.axes[:4]]
        assert upper.vmax == pytest.approx(np.quantile(np.concatenate(shown), 0.95))
    large["loss_surface"].loc[one] = 0.0
    assert not isinstance(FIGURES["loss_surfaces"](large).axes[0].collections[0].norm, LogNorm)  # 0 has no logarithm


def test_meta_gradients_show_where_both_would_be_equal(ds):
    for ax in FIGURES["meta_gradients"](ds).axes:
        low, high = ax.get_ylim()
        assert low < 1 < high
        assert list(line(ax, "threshold").get_ydata()) == [1, 1]


def test_figures_of_kept_results_need_no_tasks_of_tensors_and_spectra(ds):
    means = {name: ds[name].mean("task") for name in ("rho_layer", "layer_norm", "density", "loss_surface")}
    kept = ds.assign(means | {"loss_surface_normalised": ds["loss_surface_normalised"].mean("task")})
    for name in ("layers", "layer_blocks", "spectra", "loss_surfaces"):
        FIGURES[name](kept)
        assert "nan" not in FIGURES[name].caption(kept)


@pytest.mark.heavy
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_many_learners_stays_readable(large, name):
    figure = FIGURES[name](large)
    assert figure.get_size_inches()[0] in (3.25, 6.75)
    assert figure.get_size_inches()[1] < 10.5
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    panels = [ax.get_tightbbox(renderer) for ax in figure.axes if ax.get_visible()]
    for legend in figure.legends:
        texts = [text.get_text() for text in legend.get_texts()]
        assert len(texts) == len(set(texts)) <= 20
        assert not any(legend.get_window_extent(renderer).overlaps(panel) for panel in panels)
