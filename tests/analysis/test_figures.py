"""Tests of figures by what they draw: the numbers in their lines, their panels, colours, references and notes."""

import warnings
from io import BytesIO

import numpy as np
import pytest
import xarray as xr
from figure_contents import large_study, line, study_to_draw
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from simulated_studies import simulated_study

from analysis.drawing import style
from analysis.drawing.figures import FIGURES, figures_of, left_out
from analysis.drawing.figures.eigenvalues import residuals
from analysis.drawing.legend import state_entries
from analysis.drawing.panels import _with_palette
from analysis.drawing.references import curvature_axis
from analysis.drawing.summary import lost_evaluations, measured, summarise
from analysis.evaluation import evaluation_scores

# The figures that a study of the standard quantities has, and all of them.
STANDARD_FIGURES = ("alpha_rho", "eigenvalues", "alignment", "accuracy", "directions")
NAMES = tuple(FIGURES)


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return study_to_draw()


@pytest.fixture(scope="module")
def large() -> xr.Dataset:
    return large_study()


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def visible_axes(figure: Figure):
    return [ax for ax in figure.axes if ax.get_visible()]


# ---- the five figures


def test_alpha_rho_has_a_panel_for_each_inner_step_and_draws_the_summary(ds):
    figure = FIGURES["alpha_rho"](ds)
    assert [ax.get_title("left") for ax in figure.axes] == ["step 0", "step 1", "step 2", "adapted (after 3 steps)"]
    summary = summarise(measured(ds, "alpha_rho"))
    for step, ax in enumerate(figure.axes):
        for position, name in enumerate(("untrained", "maml", "maml-shot", "fomaml")):
            drawn = np.asarray(line(ax, f"mean:{name}").get_ydata(), dtype=float)
            expected = summary.mean.isel(learner=position, inner_step=step).values
            # The untrained network has one checkpoint, which is drawn as a horizontal line with two ends.
            np.testing.assert_allclose(drawn, expected[:1].repeat(2) if name == "untrained" else expected)
        np.testing.assert_allclose(line(ax, "seed:maml:1").get_ydata(), summary.per_seed[1, 1, :, step])
        assert list(line(ax, "threshold").get_ydata()) == [2, 2]
        assert ax.get_ylim() == figure.axes[0].get_ylim()
    assert figure.axes[0].get_ylim()[1] > 2
    assert figure.axes[0].get_ylabel()
    assert {ax.get_xlabel() for ax in figure.axes} == {"meta-iteration (log scale)"}


@pytest.mark.parametrize(
    ("factor", "scale", "words", "remark"),
    [(0.01, "linear", " (above the axis)", ""), (50.0, "symlog", "", "\n(linear below 2, logarithmic beyond)")],
)
def test_the_axis_and_legend_of_alpha_rho_far_from_the_threshold(ds, factor, scale, words, remark):
    study = ds.assign(alpha_rho=ds["alpha_rho"] * factor)
    figure = FIGURES["alpha_rho"](study)
    assert r"threshold $\alpha\rho = 2$" + words in legend_texts(figure)
    assert figure.axes[0].get_yscale() == scale
    assert figure.axes[0].get_ylabel().partition("$\n")[2] == remark.removeprefix("\n")
    low, high = figure.axes[0].get_ylim()
    mean = summarise(measured(study, "alpha_rho")).mean
    assert low <= float(mean.min()) <= float(mean.max()) <= high


@pytest.mark.parametrize(
    ("low", "high", "ticks", "remark"),
    [
        (0.0, 18.0, "0 0.5 1 1.5 2 5 10 20", "linear below 2, logarithmic beyond"),
        (-9.0, 40.0, "\u221210 \u22122 \u22121 0 1 2 10", "linear within ±2, logarithmic beyond"),
        (0.0, 3e4, "0 1 2 10 100 1000 10000", "linear below 2, logarithmic beyond"),
    ],
)
def test_an_axis_linear_below_2_has_plain_ticks(low, high, ticks, remark):
    ax = Figure().subplots()
    assert curvature_axis(ax, low, high) == remark
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert set(ticks.split()) <= set(labels)
    assert not any("$" in label or "e" in label for label in labels)
    assert [float(label.replace("\u2212", "-")) for label in labels] == list(ax.get_yticks())
    below, above = ax.get_ylim()
    assert all(below <= tick <= above for tick in ax.get_yticks())


def test_the_last_checkpoint_has_a_legend_entry_in_a_neutral_colour(ds):
    for name in ("eigenvalues", "directions"):
        figure = FIGURES[name](ds)
        entry = "meta-iteration 300 (in the learner's colour)"
        handles = {h.get_label(): h for legend in figure.legends for h in legend.legend_handles}
        assert handles[entry].get_color() == style.DARK
        assert handles[entry].get_marker() == "o"
        assert handles["untrained"].get_markerfacecolor() == "white"


@pytest.mark.slow
def test_a_control_is_recognised_by_its_role_and_not_by_its_name():
    study = simulated_study(
        learners=("control", "untrained", "maml"), untrained=("control",), tasks=4, seeds=(0,), evaluation_tasks=4
    )
    for name in ("alpha_rho", "alignment", "accuracy"):
        figure = FIGURES[name](study)
        level, curve = (line(figure.axes[0], f"mean:{learner}") for learner in ("control", "untrained"))
        assert (level.get_color(), level.get_linestyle(), level.get_marker()) == (style.GREY, ":", "None")
        assert len(set(level.get_ydata())) == 1
        assert curve.get_color() == style.method_style("untrained").color != style.GREY
        assert list(curve.get_xdata()) == [0, 30, 100, 300]
        handles = {h.get_label(): h for legend in figure.legends for h in legend.legend_handles}
        assert handles["control"].get_color() == style.GREY
        assert handles["untrained"].get_color() == curve.get_color()
    for name in ("eigenvalues", "directions"):
        assert [ax.get_title("left") for ax in visible_axes(FIGURES[name](study))] == ["untrained", "MAML"]


def test_without_a_control_the_untrained_level_is_drawn_from_checkpoint_0():
    study = simulated_study(learners=("maml", "fomaml"), tasks=4, seeds=(0, 1), evaluation_tasks=4)
    figure = FIGURES["accuracy"](study)
    start = float(study["evaluation_accuracy"].isel(learner=0, checkpoint=0).mean())
    np.testing.assert_allclose(line(figure.axes[0], "untrained:maml").get_ydata(), start)
    assert "untrained" in legend_texts(figure)


def test_the_axis_of_meta_iterations_is_logarithmic_but_includes_zero(ds):
    ax = FIGURES["alpha_rho"](ds).axes[0]
    assert ax.get_xscale() == "symlog"
    assert list(ax.get_xticks()) == [0, 30, 100, 300]
    assert ax.get_xlim()[0] < 0


def test_eigenvalues_draw_means_of_extremes_and_single_tasks(ds):
    figure = FIGURES["eigenvalues"](ds)
    assert [ax.get_title("left") for ax in figure.axes] == ["MAML", "MAML + SHOT", "FOMAML"]
    summary = summarise(measured(ds, "eigenvalue_max"))
    drawn = line(figure.axes[1], "mean:max:last:maml-shot").get_ydata()
    np.testing.assert_allclose(drawn, summary.mean.isel(learner=2, checkpoint=-1))
    full = ds["eigenvalue"].isel(learner=2, checkpoint=-1)
    full = full.where(full.notnull().all("eigen_index"))
    assert len(line(figure.axes[1], "tasks:last:maml-shot").get_ydata()) == int(full.notnull().sum())
    assert line(figure.axes[0], "mean:max:first:maml").get_color() == style.GREY
    assert "smaller than the markers" in residuals(ds)
    assert "larger than the markers" in residuals(ds.assign(eigenvalue_max_residual=ds["eigenvalue_max_residual"] + 9))


def test_alignment_shows_the_range_for_orthogonal_gradients_and_the_untrained_level(ds):
    left, right = FIGURES["alignment"](ds).axes
    band = next(patch for patch in left.patches if patch.get_gid() == "null")
    # The range of the cosine for 3 orthogonal gradients, see ``cosine_null``.
    np.testing.assert_allclose([band.get_y(), band.get_y() + band.get_height()], [1 / 3, 3**-0.5])
    assert list(line(right, "zero").get_ydata()) == [0, 0]
    level = summarise(measured(ds, "alignment")).mean.isel(learner=0, checkpoint=0)
    np.testing.assert_allclose(line(right, "mean:untrained").get_ydata(), float(level))


def test_accuracy_shows_the_level_of_chance_and_is_replaced_by_loss_for_regression(ds):
    figure = FIGURES["accuracy"](ds)
    assert list(line(figure.axes[0], "chance").get_ydata()) == [0.2, 0.2]
    mean = summarise(ds["evaluation_accuracy"]).mean
    np.testing.assert_allclose(line(figure.axes[0], "mean:maml").get_ydata(), mean.isel(learner=1))
    regression = ds.assign(evaluation_accuracy=ds["evaluation_accuracy"] * np.nan)
    assert FIGURES["accuracy"](regression).axes[0].get_ylabel() == "query loss"
    assert "Query loss" in FIGURES["accuracy"].caption(regression)


def test_an_evaluation_with_a_loss_that_is_not_finite_has_no_accuracy(ds):
    loss = ds["evaluation_loss"].copy()
    loss[1, 0, -1, 0], loss[1, 0, -1, 1] = np.nan, np.inf
    study = ds.assign(evaluation_loss=loss)
    assert bool(np.isfinite(study["evaluation_accuracy"][1, 0, -1, :2]).all())
    figure = FIGURES["accuracy"](study)
    # Seed 0 of MAML has lost its first two evaluation tasks.
    per_seed = np.array([ds["evaluation_accuracy"][1, seed, -1, 2 * (seed == 0) :].mean() for seed in range(3)])
    assert line(figure.axes[0], "mean:maml").get_ydata()[-1] == pytest.approx(per_seed.mean(), rel=1e-12)
    assert any(text.startswith("2 of ") and "diverged" in text for text in legend_texts(figure))
    everything = ds.assign(evaluation_loss=loss * np.nan)
    with pytest.raises(ValueError, match="evaluation_loss has no value"):
        FIGURES["accuracy"](everything)


def test_the_ticks_of_eigenvalues_do_not_crowd_around_zero(ds):
    ax = FIGURES["eigenvalues"](ds).axes[0]
    ticks = ax.yaxis.get_transform().transform(np.array(ax.get_yticks()))
    assert 0 in ax.get_yticks()
    assert np.diff(ticks).min() > 0.05 * np.ptp(ax.yaxis.get_transform().transform(np.array(ax.get_ylim())))


def test_directions_scale_curvature_by_alpha(ds):
    figure = FIGURES["directions"](ds)
    random = summarise(measured(ds, "rho_random") * 0.1).mean.isel(learner=1, checkpoint=-1)
    np.testing.assert_allclose(line(figure.axes[0], "mean:random:last:maml").get_ydata(), random)
    assert any(collection.get_gid() == "error:random:last:maml" for collection in figure.axes[0].collections)
    assert figure.axes[0].get_yscale() == "symlog"


@pytest.mark.parametrize("name", STANDARD_FIGURES)
def test_diverged_units_are_counted_in_figure_and_caption(ds, name):
    if name == "accuracy":
        accuracy = ds["evaluation_accuracy"].copy()
        accuracy[1, 0, -1, :2] = np.nan
        figure = FIGURES[name](ds.assign(evaluation_accuracy=accuracy))
        assert any(text.startswith("2 of ") and "diverged" in text for text in legend_texts(figure))
        assert line(figure.axes[0], "diverged:maml").get_marker() == "x"
        return
    tried = int((ds["status"] > 0).sum())  # measured or diverged
    assert f"2 of {tried} task units diverged: not in the means" in legend_texts(FIGURES[name](ds))
    assert f"2 of {tried} task units" in FIGURES[name].caption(ds)


def test_means_that_leave_out_diverged_units_are_marked_and_lost_means_too(ds):
    ax = FIGURES["alpha_rho"](ds).axes[0]
    assert list(line(ax, "diverged:maml").get_xdata()) == [300]
    lost = simulated_study(tasks=2, seeds=(0,), learners=("maml",), diverged=[("maml", 0, 0), ("maml", 0, 1)])
    ax = FIGURES["alpha_rho"](lost).axes[0]
    assert list(line(ax, "all diverged:maml").get_xdata()) == [300]
    assert 300 not in line(ax, "mean:maml").get_xdata()


# ---- unusual studies


def _with_nan(study: xr.Dataset, *names: str) -> xr.Dataset:
    """The study with the named variables set to NaN."""
    return study.assign({name: study[name] * np.nan for name in names})


_SMALL = {"tasks": 4, "evaluation_tasks": 4}
UNUSUAL_STUDIES = {
    "one seed": lambda: simulated_study(seeds=(0,), **_SMALL),
    "two seeds, two checkpoints": lambda: simulated_study(seeds=(0, 1), checkpoints=(0, 100), **_SMALL),
    "one inner step": lambda: simulated_study(steps=1, learners=("untrained", "maml"), **_SMALL),
    "five steps, five seeds": lambda: simulated_study(steps=5, seeds=range(5), checkpoints=(0, 9), **_SMALL),
    "untrained alone": lambda: simulated_study(learners=("untrained",), **_SMALL),
    "no untrained": lambda: simulated_study(learners=("maml",), **_SMALL),
    "no eigenvalues": lambda: _with_nan(
        simulated_study(**_SMALL), "eigenvalue", "eigenvalue_max", "eigenvalue_min", "eigenvalue_max_residual"
    ),
    "nothing measured": lambda: (lambda study: study.assign(status=study["status"] * 0))(simulated_study(**_SMALL)),
}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", UNUSUAL_STUDIES)
def test_every_figure_and_caption_can_be_made_of_an_unusual_study(kind):
    study = UNUSUAL_STUDIES[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, module in figures_of(study).items():
            figure = module(study)
            figure.draw_without_rendering()
            assert figure.get_size_inches()[0] in (3.25, 6.75), name  # the width of one column or two
            assert "nan" not in module.caption(study), name


def test_with_two_seeds_each_seed_is_drawn_and_the_legend_says_so():
    figure = FIGURES["alpha_rho"](simulated_study(seeds=(0, 1), **_SMALL))
    assert "band: range over 2 seeds; thin lines: each seed" in legend_texts(figure)
    assert line(figure.axes[0], "seed:maml:0").get_linewidth() < line(figure.axes[0], "mean:maml").get_linewidth()


@pytest.mark.heavy
@pytest.mark.parametrize("name", NAMES)
def test_no_text_leaves_the_figure_and_legends_cover_no_panel(large, name):
    figure = FIGURES[name](large)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    page = figure.bbox
    panels = [ax.get_tightbbox(renderer) for ax in visible_axes(figure)]
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert not any(box.overlaps(panel) for panel in panels)
    for panel in panels:
        assert panel.x0 >= -1
        assert panel.x1 <= page.x1 + 1


@pytest.mark.slow
def test_drawing_does_not_change_the_study(ds):
    before = ds.copy(deep=True)
    for module in figures_of(ds).values():
        module(ds)
        module.caption(ds)
    xr.testing.assert_identical(ds, before)


def test_a_figure_whose_variables_are_missing_is_left_out_with_a_reason(ds, large):
    assert set(figures_of(large)) == set(FIGURES)
    assert left_out(large) == {}
    without = large.drop_vars("density")
    assert left_out(without) == {"spectra": "the study does not measure density"}
    assert set(figures_of(ds)) >= set(STANDARD_FIGURES)


@pytest.mark.slow
def test_a_large_study_has_captions_that_say_which_learners_are_shown(large):
    for module in FIGURES.values():
        assert "nan" not in module.caption(large)
    assert "Of the study's 21 learners this figure shows" in FIGURES["accuracy"].caption(large)


def test_an_evaluation_whose_loss_exploded_has_no_accuracy():
    ds = simulated_study()
    scores_before, (lost_before, num_tried) = evaluation_scores(ds), lost_evaluations(ds)
    place = {"learner": "maml", "seed": 0, "checkpoint": 300}
    first_loss = float(ds["query_loss"].sel(place).isel(inner_step=0).mean())
    ds["evaluation_loss"].loc[place | {"evaluation_task": 0}] = 1001 * max(first_loss, 1)
    ds["evaluation_loss"].loc[place | {"evaluation_task": 1}] = 999 * max(first_loss, 1)
    scores, (lost, num_tried_after) = evaluation_scores(ds), lost_evaluations(ds)
    assert np.isnan(scores.sel(place).values[0])
    assert scores.sel(place).values[1] == scores_before.sel(place).values[1]
    assert (int(lost.sum()), num_tried_after) == (int(lost_before.sum()) + 1, num_tried)


def test_labels_of_an_axis_that_is_linear_near_zero_do_not_overlap(ds):
    # Random directions of 1e-4 and a curvature that turns negative make the linear part narrow, as on Omniglot.
    turned = ds["rho"].where(ds["inner_step"] < 2, -ds["rho"])
    small = ds.assign(rho_random=ds["rho_random"] * 3e-4, rho=turned, alpha_rho=ds["alpha_rho"] * turned / ds["rho"])
    figure = FIGURES["directions"](small)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for ax in visible_axes(figure):
        boxes = [label.get_window_extent(renderer) for label in ax.get_yticklabels() if label.get_text()]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_palette_of_a_png_keeps_the_colours_of_areas_and_of_short_texts():
    figure = Figure(figsize=(3, 3))
    above, below = figure.subplots(2)
    above.imshow(np.linspace(0, 1, 400).reshape(20, 20), cmap="cividis")  # many colours, which compete for a place
    above.set_title("MAML", color="#D55E00")
    below.axhspan(0, 1, color="0.85", linewidth=0)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=style.DPI)
    small = _with_palette(drawn)
    before, after = (np.asarray(Image.open(file).convert("RGB"), dtype=int) for file in (drawn, BytesIO(small)))
    error, band = abs(after - before).max(-1), (before == 217).all(-1)
    assert band.sum() > 10_000
    assert (error[band] == 0).all()
    assert error.max() <= 30  # of 255
    assert len(small) < 0.6 * len(drawn.getvalue())


def test_the_legend_of_states_says_which_checkpoint_where_learners_differ():
    ds = study_to_draw()
    late = (ds["learner"] == "maml") & (ds["checkpoint"] == ds["checkpoint"][0])
    values = measured(ds, "alpha_rho").where(~late)
    labels = [entry.get_label() for entry in state_entries(ds, values)]
    assert labels[0] == "each learner's first checkpoint"
    assert "last" not in labels[0]
