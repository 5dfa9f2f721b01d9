"""Compares the report's tables of accuracy, verdicts and scale with numbers that are computed in another way."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from sample_verdict import VERDICT
from simulated_studies import simulated_study

import analysis
from analysis.drawing.summary import measured
from analysis.quantities import QUANTITIES
from analysis.report.accuracy import accuracy_table
from analysis.report.other_quantities import other_quantities_section, quantities
from analysis.report.page import DASH, MINUS, TIMES, Html, element, interval, number
from analysis.report.scale import change, largest_growth, scale_section
from analysis.report.verdicts import answer, verdict_tables
from analysis.schema import MEASURED, trained_learners
from analysis.statistics import mean_interval


def texts(html: Html) -> list[str]:
    """The pieces of text between the tags."""
    return [text for text in re.split(r"<[^>]*>", html.text) if text.strip()]


def visible_text(*parts: Html) -> str:
    """The text of all parts without tags, with single spaces."""
    return " ".join(" ".join(" ".join(texts(part)) for part in parts).split())


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return simulated_study(tasks=4, evaluation_tasks=6, diverged=[("maml", 0, 3)])  # learner, seed, task


def test_accuracy_of_a_seed_is_paired_with_its_untrained_start(ds):
    cells = texts(accuracy_table(ds))
    maml = ds["evaluation_accuracy"].isel(learner=1) * 100
    end, start = maml.isel(checkpoint=-1).values, maml.isel(checkpoint=0).values
    one = mean_interval(end[0] - start[0])
    assert f"{one.mean:+.1f} ± {(one.high - one.low) / 2:.1f}".replace("-", MINUS) in cells
    over = mean_interval((end - start).mean(-1))
    assert f"{over.mean:+.1f} ± {(over.high - over.low) / 2:.1f}".replace("-", MINUS) in cells
    assert cells.count("untrained") == 4  # one for each of three seeds, and one for all of them


def test_the_accuracy_table_of_unusual_studies(ds):
    one = simulated_study(tasks=2, seeds=(0,), evaluation_tasks=3, learners=("maml",))
    assert "all" not in texts(accuracy_table(one))
    loss = ds.assign(evaluation_accuracy=ds["evaluation_accuracy"] * np.nan)
    assert "Query loss" in accuracy_table(loss).text
    empty = loss.assign(evaluation_loss=loss["evaluation_loss"] * np.nan)
    assert "Every evaluation diverged" in accuracy_table(empty).text
    undone = empty.assign(evaluation_done=empty["evaluation_done"] * 0)
    assert "No held-out task was evaluated" in accuracy_table(undone).text
    lost = ds.assign(evaluation_accuracy=ds["evaluation_accuracy"].where(ds["learner"] != "maml"))
    assert DASH in texts(accuracy_table(lost))


def test_an_interval_of_accuracies_ends_at_0_and_at_100_percent(ds):
    spread = ds["evaluation_accuracy"] * 0 + xr.DataArray([0.05, 0.95], dims="seed", coords={"seed": ds["seed"][:2]})
    cells = texts(accuracy_table(ds.sel(seed=ds["seed"][:2]).assign(evaluation_accuracy=spread)))
    assert "50.0 (0.0 to 100.0)" in cells
    assert "+0.0 ± 0.0" in cells
    assert "is written with its ends, cut there" in accuracy_table(ds).text


def test_accuracy_of_a_diverged_evaluation_counts_as_lost(ds):
    loss = ds["evaluation_loss"].copy()
    loss[1, 0, -1, :2] = np.inf
    cells = texts(accuracy_table(ds.assign(evaluation_loss=loss)))
    assert "4; 2 diverged" in cells
    one = mean_interval(ds["evaluation_accuracy"][1, 0, -1, 2:].values * 100)
    assert f"{one.mean:.1f} ± {(one.high - one.low) / 2:.1f}" in cells


def test_a_decided_outcome_on_two_seeds_says_so_in_the_answer():
    two = [replace(VERDICT, num_seeds=2), replace(VERDICT, steps="later steps", num_seeds=2)]
    assert "supported in all 2 comparisons (from two seeds; add seeds before relying on it)" in visible_text(
        answer(two)
    )
    mixed = visible_text(answer([two[0], replace(two[1], num_seeds=3)]))
    assert "(1 of these from two seeds; add seeds before relying on it)" in mixed
    undecided = [replace(verdict, outcome="inconclusive") for verdict in two]
    for verdicts in (undecided, [VERDICT]):
        assert "add seeds before" not in visible_text(answer(verdicts))


def test_outcomes_are_counted_after_the_correction_with_a_remark_on_those_that_it_changes():
    kept = replace(VERDICT, kind="primary", corrected_outcome="supported", num_corrected=9)
    lost = replace(kept, learner="fomaml", corrected_outcome="inconclusive")
    undecided = replace(lost, learner="anil", outcome="inconclusive")
    remark = "would be supported without the correction"
    for verdicts, inconclusive in (
        ([kept, lost, undecided], f"2 of 3 comparisons (FOMAML: step 0 raw; ANIL: step 0 raw; 1 of these {remark})"),
        ([kept, lost], f"1 of 2 comparisons (FOMAML: step 0 raw; it {remark})"),
    ):
        seen = visible_text(answer(verdicts))
        assert f"supported in 1 of {len(verdicts)} comparisons (MAML: step 0 raw), inconclusive in" in seen
        assert f"inconclusive in {inconclusive}" in seen
    assert f"inconclusive in all 2 comparisons (all of these {remark})" in visible_text(answer([lost, lost]))
    assert f"inconclusive in the only comparison (it {remark})" in visible_text(answer([lost]))
    assert remark not in visible_text(answer([kept, undecided]))
    # Two seeds are only remarked on where they decide.
    assert "two seeds" not in visible_text(answer([replace(lost, num_seeds=2)]))
    folded = visible_text(verdict_tables([*[kept] * 10, *[lost] * 3, undecided]))
    assert f"14 comparisons: 10 supported, 4 inconclusive (3 of these {remark})" in folded
    assert "13 comparisons: 13 supported Learner" in visible_text(verdict_tables([kept] * 13))


def test_an_obstacle_stands_below_the_outcome_where_there_are_numbers():
    weak = replace(VERDICT, comparison="against orthogonal", baseline="0", outcome="inconclusive", obstacle="A; so B")
    assert "inconclusive A " in visible_text(verdict_tables([weak]))
    assert texts(verdict_tables([weak])).count("A") == 1
    assert "inconclusive A" not in visible_text(verdict_tables([replace(weak, effect=float("nan"))]))
    assert "inconclusive A" not in visible_text(verdict_tables([replace(weak, obstacle=None)]))


def test_a_comparison_with_nothing_to_compare_shows_words_instead_of_numbers():
    nan = float("nan")
    empty = replace(
        VERDICT, comparison="equal support loss", outcome="inconclusive", num_seeds=0, share_compared=0.0, effect=nan
    )
    empty = replace(empty, low=nan, high=nan, bootstrap_low=nan, bootstrap_high=nan, baseline_value=nan)
    empty = replace(empty, trained_value=nan)
    for changes, words in (
        ({}, "no overlap in loss"),
        ({"share_compared": 0.41}, "too little overlap in loss"),
        ({"margin": nan, "num_diverged": 48}, "all units diverged"),
        ({"comparison": "against orthogonal", "obstacle": "one step; no alignment"}, "one step"),
    ):
        table = verdict_tables([replace(empty, **changes)])
        assert words in texts(table)
        assert f"0 {TIMES} {VERDICT.num_tasks}" not in table.text
        assert f"{DASH}<br>{DASH}" not in table.text


def test_the_scale_table_shows_how_growing_weights_alone_change_alpha_rho():
    study = simulated_study(tasks=4, seeds=(0, 1), growing_weights=True, evaluation_tasks=2, diverged=[("maml", 0, 3)])
    maml = study.isel(learner=1)
    raw = change(maml["alpha_rho"], slice(0, 1))
    unit = change(maml["rho_normalised"], slice(0, 1))
    assert raw.ratio == pytest.approx(0.55, abs=0.1)  # simulated: alpha rho falls from 1 by 0.45
    assert unit.ratio == pytest.approx(1.0, abs=0.1)
    name, growth = largest_growth(study, "maml")
    assert name.endswith("weight")
    assert growth.ratio == pytest.approx(0.55**-0.5, rel=1e-6)


def test_changes_of_scale_are_paired_by_task_and_weight_seeds_equally():
    values = xr.DataArray(np.ones((2, 2, 3, 2)), dims=("seed", "checkpoint", "task", "inner_step"))
    nan = np.nan
    values[0, 0], values[0, 1] = [[2, 9], [4, 9], [nan, 9]], [[6, 9], [nan, 9], [80, 9]]
    values[1, 1] = [[3, 9], [4, 9], [5, 9]]
    first = change(values, slice(0, 1))
    assert (first.untrained, first.trained) == (1.5, 5.0)  # seed 0 has one pair (2, 6); seed 1 has means 1, 4
    assert np.isnan(change(-values, slice(0, 1)).ratio)
    assert np.isnan(change(values * np.nan, slice(0, 1)).trained)


def test_the_scale_table_lists_trained_learners_only(ds):
    part = visible_text(*scale_section(ds))
    raw = change(ds["alpha_rho"].where(ds["status"] == MEASURED).isel(learner=1), slice(1, None))
    assert f"{number(raw.untrained)} → {number(raw.trained)} {number(raw.ratio)}" in part
    assert part.count("filters at unit norm") == len(trained_learners(ds))
    assert "norm of the layer that grew most: " in part
    alone = simulated_study(tasks=2, seeds=(0,), evaluation_tasks=3, learners=("untrained",))
    assert scale_section(alone) == []


def rows_of(html: Html) -> dict[str, list[str]]:
    """The cells of each row of a table by the row's name, without tags."""
    rows = re.findall(r'<tr[^>]*><th scope="row">(.*?)</th>(.*?)</tr>', html.text)
    return {name: [visible_text(Html(cell)) for cell in re.findall(r"<td>(.*?)</td>", rest)] for name, rest in rows}


def test_the_table_of_other_quantities_pairs_tasks_and_compares_seeds(ds):
    study = ds.sel(learner=["untrained", "maml", "maml-shot"])
    agreement = study["alignment"].copy(data=np.full(study["alignment"].shape, 0.5))
    # What training adds, by seed; the task that diverged and one that lacks a number are in neither mean.
    agreement.loc[{"learner": "maml", "checkpoint": 300}] = xr.DataArray([0.6, 0.7, 0.8], dims="seed")
    agreement.loc[{"learner": "maml", "checkpoint": 300, "seed": 1, "task": 0}] = np.nan
    agreement.loc[{"learner": "maml", "checkpoint": 0, "seed": 1, "task": 0}] = 99.0
    agreement.loc[{"learner": "maml-shot", "seed": 2}] = np.nan
    drop = study["alpha_rho"].copy(data=np.broadcast_to([1.0, 2.0, 4.0, np.nan], study["alpha_rho"].shape))
    explanation, table = other_quantities_section(study.assign(prototype_agreement=agreement, drop_ratio=drop))[1:]
    assert "exploratory" in explanation.text
    rows = rows_of(table)
    half = mean_interval(np.array([0.1, 0.2, 0.3]))
    assert rows["share"] == [f"0.5 → 0.7 +0.20 ± {(half.high - half.low) / 2:.2f}", "0.5 → 0.5 +0"]
    # The last point, from which no step is taken, is no later step.
    assert rows["step 0"] == ["1 → 1 +0", "1 → 1 +0"]
    assert rows["later steps"] == ["3 → 3 +0", "3 → 3 +0"]
    assert f"MAML 3 seeds MAML + SHOT 2{DASH}3 seeds" in visible_text(table)


def test_the_table_of_other_quantities_has_only_what_was_measured(ds):
    bare = ds.drop_vars(["drop_ratio", "path_ratio"], errors="ignore")
    assert other_quantities_section(bare) == []
    factors = {"alpha_factor": [0.25, 0.5, 1.0, 4.0]}
    swept = ds["alignment"] * 0 + xr.DataArray([0.3, 0.4, 0.5, 0.2], dims="alpha_factor", coords=factors)
    rows = rows_of(other_quantities_section(bare.assign(swept_query_accuracy=swept))[-1])
    assert {name: cells[0] for name, cells in rows.items()} == {
        "0.25 alpha": "0.3 → 0.3 +0",
        "alpha": "0.5 → 0.5 +0",
        "4 alpha": "0.2 → 0.2 +0",
    }
    values = bare.assign(path_ratio=bare["alignment"])
    assert other_quantities_section(values.sel(checkpoint=[300])) == []
    assert other_quantities_section(values.sel(learner=["untrained"])) == []


def test_the_other_quantities_stand_at_the_steps_and_pairs_that_their_rows_name(ds):
    study = ds.sel(learner=["untrained", "maml"])
    points, task = study["alpha_rho"] * 0, study["alignment"] * 0
    gradients = xr.DataArray([[1.0, 0.1, 0.2], [0.1, 1.0, 0.3], [0.2, 0.3, 1.0]], dims=("step_i", "step_j"))
    grid = {"shot_target": [1, 2], "shot_reference": [2, 3]}
    distances = xr.DataArray([[5.0, 6.0], [np.nan, 7.0]], grid)
    study = study.drop_vars(["gram", "gradient_cosine"]).assign(
        rho_over_lambda_max=points + xr.DataArray([0.5, 0.2, 0.2, 0.2], dims="inner_step"),
        lambda_max_normalised=points + xr.DataArray([8.0, 3.0, 3.0, 3.0], dims="inner_step"),
        frobenius_normalised=points + 9.0,
        trace_normalised=points + 11.0,
        lambda_min_normalised=points - 4.0,
        rho_rotated_normalised=points + 1.5,
        rho_head=points + xr.DataArray([30.0, 20.0, 20.0, 20.0], dims="inner_step"),
        hg_ratio_body=points + 40.0,
        trace_body_normalised=points + 50.0,
        grad_norm_ratio=points + xr.DataArray([1.0, 0.7, 0.6, 0.4], dims="inner_step"),
        gradient_cosine=task + gradients,
        shot_direction_cosine=task + 0.9,
        shot_direction_ratio=task + 0.3,
        meta_gradient_ratio=task + 1.5,
        alpha_rho_query=points + xr.DataArray([2.0, 0.6, 0.6, 0.6], dims="inner_step"),
        trace_query=points + 13.0,
        alpha_hg_ratio_other_task=points + 0.8,
        **{f"shot_{name}": task + distances for name in ("kl_reference_target", "kl_target_reference", "js", "l2")},
    )
    table = {part.title: part.rows for part in quantities(study)}
    means = {title: {name: float(rows[name].mean()) for name in rows} for title, rows in table.items()}
    assert means["Curvature along the gradient, relative to the sharpest direction"] == pytest.approx(
        {"step 0": 0.5, "later steps": 0.2}
    )
    normalised = means["The whole Hessian at unit filter norm"]
    assert normalised["largest eigenvalue, step 0"] == pytest.approx(8)
    assert normalised["largest eigenvalue, later steps"] == pytest.approx(3)
    assert normalised["smallest eigenvalue, step 0"] == pytest.approx(-4)
    assert {normalised[f"{name}, later steps"] for name in ("Frobenius norm", "trace")} == {9, 11}
    alpha = float(study["step_size"].mean())
    assert means["Curvature along rotated gradients at unit filter norm"] == pytest.approx(
        {"alpha rho of rotations, step 0": 1.5 * alpha, "alpha rho of rotations, later steps": 1.5 * alpha}
    )
    assert means["Head and body"] == pytest.approx(
        {
            "head: alpha rho, step 0": 30 * alpha,
            "head: alpha rho, later steps": 20 * alpha,
            "body: alpha |Hg| / |g|, step 0": 40 * alpha,
            "body: alpha |Hg| / |g|, later steps": 40 * alpha,
        }
    )
    assert means["Head and body at unit filter norm"] == pytest.approx(
        {"body: alpha tr H, step 0": 50 * alpha, "body: alpha tr H, later steps": 50 * alpha}
    )
    assert means["Curvature on other losses"] == pytest.approx(
        {
            "query: alpha rho, step 0": 2,
            "query: alpha rho, later steps": 0.6,
            "query: trace, step 0": 13,
            "query: trace, later steps": 13,
            "other task: alpha |Hg| / |g|, step 0": 0.8,
            "other task: alpha |Hg| / |g|, later steps": 0.8,
        }
    )
    assert means["Fall of the gradient"] == pytest.approx({"ratio": 0.4})
    assert means["Cosines of the inner gradients"] == pytest.approx({"g_0 and g_1": 0.1, "g_0 and g_2": 0.2})
    assert means["SHOT's difference and its expansion"] == pytest.approx({"cosine": 0.9, "actual / predicted": 0.3})
    assert means["Length of the full meta-gradient"] == pytest.approx({"full / first-order": 1.5})
    far = "T\xa0=\xa01, R\xa0=\xa03"
    assert means["SHOT's distance"] == {
        "KL, T\xa0=\xa01, R\xa0=\xa02": 5,
        f"KL, {far}": 6,
        "KL, T\xa0=\xa02, R\xa0=\xa03": 7,
        f"KL(target || reference), {far}": 6,
        f"Jensen-Shannon, {far}": 6,
        f"parameters, {far}": 6,
    }
    one_step = study.isel(step_i=[0], step_j=[0])
    assert "Cosines of the inner gradients" not in {part.title for part in quantities(one_step)}


def test_every_variable_of_the_package_is_read_by_a_claim_a_figure_or_a_table():
    """A quantity that costs products, and that no page shows, would be measured for nothing."""
    folder = Path(analysis.__file__).parent
    files = [path for part in ("claims", "drawing", "report") for path in (folder / part).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    variables = [variable for quantity in QUANTITIES.values() for variable in quantity.variables]
    errors = {variable.error for variable in variables}
    # Other variables hold the same numbers: the product of step_size and eigenvalue_max, and the errors of the means.
    errors |= {"alpha_lambda_max", "trace_sample", "density_width"}
    unread = [v.name for v in variables if v.name not in errors and not re.search(rf"\b{v.name}\b", text)]
    assert unread == []


def test_the_text_of_numbers_intervals_and_elements():
    assert number(1083.0, signed=True) == "+1080"
    assert number(2.5e7) == "2.5e+07"
    assert number(-0.25, signed=True) == f"{MINUS}0.25"
    assert number(1 / 3) == "0.333"
    assert interval(float("nan"), 1.0) == DASH
    assert element("a", "x", title='"<').text == '<a title="&quot;&lt;">x</a>'


@pytest.mark.parametrize(("predicted", "margin"), [("negative", f"{MINUS}0.1"), ("positive", "+0.1")])
def test_the_numbers_of_a_verdict_stand_below_the_names_of_their_columns(predicted, margin):
    verdict = replace(VERDICT, predicted=predicted, p=0.01, p_corrected=0.03)
    head, row = re.findall(r"<tr>(.*?)</tr>", verdict_tables([verdict]).text)[:2]
    names, cells = (re.split(r"(?<=.)(?=<t[hd])", part) for part in (head, row))
    numbers = dict(zip((visible_text(Html(x)) for x in names), (visible_text(Html(x)) for x in cells), strict=True))
    assert numbers == {
        "Learner against baseline": "MAML against its untrained start",
        "Outcome": "supported",
        "Where": "step 0",
        "Comparison": "raw",
        "Baseline, trained": "1 → 0.6",
        "Effect, 95 % interval over seeds": f"{MINUS}0.4 [{MINUS}0.5, {MINUS}0.3]",
        "Bootstrap over tasks": f"[{MINUS}0.45, {MINUS}0.35]",
        "Smallest effect of interest": margin,
        f"Seeds {TIMES} tasks": f"3 {TIMES} 16",
        "p, after Holm": "0.01 → 0.03",
    }


def test_the_gauss_newton_part_of_alpha_rho_is_scaled_by_each_learners_step_size():
    ds = simulated_study()
    ds["rho_gauss_newton"] = ds["rho"]
    (part,) = (each for each in quantities(ds) if each.title == "Gauss-Newton part of alpha rho")
    values = measured(ds, "rho").isel(inner_step=slice(0, 1))
    xr.testing.assert_allclose(part.rows["step 0"], ds["step_size"] * values)
    assert not np.allclose(part.rows["step 0"], values, equal_nan=True)
