"""Tests of the claims on studies with a planted effect, without one, and with artefacts that look like one."""

import dataclasses
import json
import re
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import xarray as xr
from claim_scenarios import SCENARIOS, WITH_SHOT, many_verdicts, rates
from claims_document import claims_part, part, power_part
from planted_studies import Plant, planted_study
from quick_plan import quick_plan

from analysis.claims import (
    CLAIMS,
    Verdict,
    findings,
    holm,
    judge,
    load_plan,
    unjudged,
    verdict_lines,
    verdicts_from_json,
    verdicts_to_json,
)
from analysis.claims.equal_accuracy import at_equal_score
from analysis.claims.falls import Change
from analysis.claims.findings import held_throughout
from analysis.claims.intervention import learners_by_weight, seed_slopes
from analysis.claims.learning import reached
from analysis.schema import DIVERGED
from analysis.statistics import holm as adjusted
from analysis.statistics import t_test

TOO_WEAK = ("against orthogonal", "between seeds")  # the untrained network passes it, too; needs more seeds


def verdicts_on(claim: str, learners: dict[str, Plant], **options: Any) -> list[Verdict]:
    """The verdicts of one claim on a study of 12 seeds, by the bundled plan."""
    ds = planted_study(learners, **({"seeds": 12} | options))
    return judge(ds, quick_plan(claim))


@pytest.mark.parametrize("claim", SCENARIOS)
def test_a_planted_effect_is_supported_and_its_absence_is_not(claim: str) -> None:
    without, with_effect, options = SCENARIOS[claim]
    for learners, supported in ((with_effect, True), (without, False)):
        verdicts = [v for v in verdicts_on(claim, learners, **options) if v.comparison not in TOO_WEAK]
        if claim in ("suppression", "suppression-hg", "shot", "shot-hg"):
            # These studies are too small for a match in loss; see the tests of artefacts and test_equal_loss.py.
            verdicts = [v for v in verdicts if v.comparison != "equal support loss"]
        assert verdicts
        for verdict in verdicts:
            if supported and claim != "shot-accuracy":  # its power is low at the planted effect of two points
                assert verdict.outcome == "supported", verdict.sentence
            if not supported:  # of many comparisons without an effect, some are supported by chance
                assert verdict.outcome != "supported" or verdict.p > 0.01, verdict.sentence
            assert "nan" not in verdict.sentence
            assert len(verdict.effects) == 12


def test_every_claim_has_a_scenario_but_the_one_that_a_benchmark_answers() -> None:
    assert set(CLAIMS) - set(SCENARIOS) == {"shot-cost"}


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.parametrize("claim", SCENARIOS)
def test_a_claim_without_an_effect_has_the_nominal_size(claim: str) -> None:
    """At least 4,000 studies of 3, 5 and 10 seeds are made; 6.4 % is four standard errors above the nominal 5 %."""
    for verdict in many_verdicts(claim, true=False, seeds=40_000):
        if verdict.comparison in TOO_WEAK:
            continue
        for num in (3, 5, 10):
            significant, supported = rates(verdict, num)
            assert significant <= 0.064, (verdict.comparison, verdict.steps, num)
            assert supported <= 0.064, (verdict.comparison, verdict.steps, num)


@pytest.mark.heavy
@pytest.mark.slow
def test_a_curvature_that_falls_with_the_loss_alone_has_the_nominal_size_at_equal_support_loss() -> None:
    """At least 1,500 studies of 3, 5 and 10 seeds are made, of the seeds in which enough points have a match.

    The scenarios above replace this comparison, because it is slow.
    """
    ds = planted_study({"maml": Plant(loss=0.12)}, seeds=40_000, tasks=8, loss_driven=True, seed_spread=0.1)
    with patch("analysis.claims.comparison.task_bootstrap", lambda *_, **__: (np.nan, np.nan)):
        verdicts = [v for v in judge(ds, quick_plan("suppression")) if v.comparison == "equal support loss"]
    assert len(verdicts) == 2
    for verdict in verdicts:
        effects = tuple(effect for effect in verdict.effects if np.isfinite(effect))
        assert len(effects) >= 15_000
        for num in (3, 5, 10):
            significant, supported = rates(replace(verdict, effects=effects), num)
            assert significant <= 0.064, (verdict.steps, num)
            assert supported <= 0.064, (verdict.steps, num)


# ---- artefacts


@pytest.mark.parametrize("suffix", ["", "-hg"])
def test_growing_weights_are_not_called_suppression(suffix: str) -> None:
    verdicts = verdicts_on(f"suppression{suffix}", {"maml": Plant(along=0.5, growth=0.5)}, tasks=8)
    outcomes = {(v.comparison, v.steps): v.outcome for v in verdicts}
    for steps in ("step 0", "later steps"):
        assert outcomes["raw", steps] == "supported"
        assert outcomes["unit filter norm", steps] != "supported"
    assert held_throughout(verdicts) == []
    assert "for no learner do all comparisons support it" in findings(verdicts)[0]
    share = verdicts_on("weight-growth", {"maml": Plant(along=0.5, growth=0.5)})
    assert {v.outcome for v in share} == {"not supported"}
    assert all(0.8 < percent(v.sentence, "growing weights explain") / 100 < 1.2 for v in share)


def percent(sentence: str, words: str) -> float:
    """The number of per cent that follows some words."""
    return float(sentence.split(words)[1].split("%")[0].replace("\N{MINUS SIGN}", "-"))


@pytest.mark.parametrize("suffix", ["", "-hg"])
def test_a_fall_of_the_loss_alone_is_not_called_suppression(suffix: str) -> None:
    falling = {"maml": Plant(loss=0.12)}
    options = {"tasks": 24, "seeds": 12, "seed_spread": 0.02, "loss_driven": True}
    verdicts = verdicts_on(f"suppression{suffix}", falling, **options)
    outcomes = {(v.comparison, v.steps): v.outcome for v in verdicts}
    for steps in ("step 0", "later steps"):
        assert outcomes["raw", steps] == "supported"
        assert outcomes["equal support loss", steps] == "not supported"
    assert held_throughout(verdicts) == []
    # A fall that is not one of the loss is supported at equal loss too.
    both = verdicts_on(f"suppression{suffix}", {"maml": Plant(loss=0.12, along=0.4)}, **options)
    assert held_throughout(both) == [("maml", "step 0"), ("maml", "later steps")]


def test_a_loss_or_a_scale_that_falls_everywhere_is_not_more_along_the_trajectory() -> None:
    """Everything falls by the same factor, as by growing weights or by a falling loss."""
    everywhere = {"maml": Plant(along=0.7, elsewhere=0.7, growth=0.7)}
    assert "supported" not in {v.outcome for v in verdicts_on("trajectory", everywhere)}
    driven = verdicts_on("trajectory", {"maml": Plant(loss=0.3)}, loss_driven=True, tasks=16)
    assert "supported" not in {v.outcome for v in driven}


def test_curvature_that_rises_less_than_elsewhere_is_no_suppression() -> None:
    """The relative fall is larger along the gradient, but it is no fall: the claim requires that too."""
    verdicts = verdicts_on("trajectory", {"maml": Plant(along=-0.2, elsewhere=-0.8)})
    assert all(v.low > 0 for v in verdicts)
    assert {v.outcome for v in verdicts} == {"not supported"}
    assert all(
        "the claim also requires that the quantity itself falls, which is not so" in v.sentence for v in verdicts
    )
    unsure = verdicts_on("trajectory", {"maml": Plant(along=0.0, elsewhere=-0.8)})
    assert all(v.outcome != "supported" for v in unsure)
    assert any("which is not sure" in v.sentence for v in unsure)


def test_a_quantity_whose_untrained_mean_is_near_zero_has_no_relative_fall() -> None:
    ds = planted_study({"maml": Plant(along=0.8)}, seeds=6, tasks=8)
    signs = np.where(np.arange(8) % 2, 1.0, -1.0)[:, None]
    ds["rho_rotated"] = ds["rho_rotated"] * xr.DataArray(signs[:, 0], dims="task", coords={"task": ds["task"]})
    verdicts = judge(ds, quick_plan("trajectory"))
    outcomes = {v.comparison: (v.outcome, v.obstacle) for v in verdicts}
    assert outcomes["against rotated gradients"][0] == "inconclusive"
    assert "not clearly different from 0" in (outcomes["against rotated gradients"][1] or "")
    assert outcomes["against random directions"] == ("supported", None)


def test_learners_are_compared_with_their_own_untrained_start() -> None:
    """The start of the second learner is that of the third, because it begins from a trained network."""
    ds = planted_study({"maml": Plant(along=0.5), "late": Plant(along=0.5), "own": Plant()}, seeds=6)
    first = {"learner": 1, "checkpoint": 0}
    for name in ("rho", "rho_normalised", "alpha_rho"):
        ds[name][first] = 1e4  # the network from which it begins, which must not be read
    ds["untrained_start"][1] = "own"
    for claim in ("suppression", "trajectory", "stability", "weight-growth"):
        for verdict in judge(ds, quick_plan(claim)):
            assert abs(verdict.baseline_value) < 150, (claim, verdict.sentence)
    ds["untrained_start"][1] = ""
    for claim in ("suppression", "suppression-hg", "trajectory", "stability", "weight-growth", "meta-gradient"):
        assert {v.learner for v in judge(ds, quick_plan(claim))} == {"maml", "own"}


def test_controls_and_dosed_learners_are_no_primary_comparisons_of_suppression() -> None:
    learners = {
        "maml": Plant(along=0.5),
        "maml-shot": Plant(along=0.7, **WITH_SHOT),
        "supervised": Plant(along=0.1, control="supervised", algorithm="supervised"),
        "shuffled": Plant(along=0.1, control="shuffled"),
    }
    ds = planted_study(learners, seeds=6)
    verdicts = judge(ds, load_plan())
    primary = {(v.claim, v.learner) for v in verdicts if v.kind == "primary"}
    assert primary == {
        ("suppression", "maml"),
        ("suppression-hg", "maml"),
        ("trajectory", "maml"),
        ("shot", "maml-shot"),
        ("shot-hg", "maml-shot"),
        ("shot-equal-accuracy", "maml-shot"),
    }
    assert {v.comparison for v in verdicts if v.claim == "suppression" and v.kind == "primary"} == {
        "raw",
        "equal support loss",
    }
    against = {(v.learner, v.baseline) for v in verdicts if v.claim == "supervised"}
    assert against == {("maml", "supervised"), ("maml", "shuffled")}


def test_a_negative_weight_of_shot_belongs_to_the_intervention_alone() -> None:
    learners = {"maml": Plant(), "maml-shot": Plant(**WITH_SHOT), "anti": Plant(without="maml", shot=-0.1)}
    verdicts = judge(planted_study(learners, seeds=3), quick_plan(*CLAIMS))
    of_anti = {v.claim for v in verdicts if v.learner == "anti"}
    assert of_anti.isdisjoint({"shot", "shot-hg", "shot-equal-accuracy", "shot-accuracy", "shot-speed"})
    assert {v.claim for v in verdicts if v.comparison == "weights of SHOT"} == {"intervention", "manipulation"}


# ---- absent variables, learners and settings


@pytest.mark.parametrize(
    "variable",
    ["alpha_hg_ratio", "rho_rotated", "frobenius", "hg_ratio_normalised", "rho_normalised", "rho_head", "alpha_rho",
     "meta_gradient_cosine", "shot_direction_cosine", "evaluation_accuracy", "eigenvalue", "hg_ratio", "rho"],
)  # fmt: skip
def test_a_claim_without_its_variable_yields_nothing_and_says_why(variable: str) -> None:
    learners = {"maml": Plant(along=0.5), "maml-shot": Plant(along=0.6, **WITH_SHOT)}
    whole = planted_study(learners, seeds=2, tasks=2)
    plan = quick_plan(*CLAIMS, resamples=100)
    ds = whole.drop_vars(variable)
    verdicts = judge(ds, plan)
    reasons = unjudged(ds, plan, verdicts)
    assert set(reasons) | {v.claim for v in verdicts} == set(CLAIMS)
    needing = [name for name, claim in CLAIMS.items() if variable in claim.variables]
    for name in needing:
        assert reasons[name].startswith("the study did not measure")
        assert variable in reasons[name]
    assert reasons["shot-cost"].startswith("the study has no record of what a meta-iteration costs")
    assert not any(v.quantity == variable for v in verdicts)
    unmeasured = whole.assign({variable: whole[variable] * np.nan})  # a variable that the study did not ask for
    assert [repr(v) for v in judge(unmeasured, plan)] == [repr(v) for v in verdicts]


def test_a_study_without_the_later_coordinates_is_judged_by_what_it_has() -> None:
    from analysis.schema import LATER_COORDINATES

    whole = planted_study({"maml": Plant(along=0.5), "maml-shot": Plant(along=0.6, **WITH_SHOT)}, seeds=3)
    verdicts = judge(whole.drop_vars(LATER_COORDINATES), quick_plan(*CLAIMS))
    assert {v.claim for v in verdicts} >= {"suppression", "shot", "trajectory", "association"}
    assert {v.claim for v in verdicts}.isdisjoint({"intervention", "manipulation", "first-order", "head-and-body"})


def test_regression_is_matched_by_its_loss_and_has_no_claim_on_accuracy() -> None:
    learners = {"maml": Plant(along=0.5), "maml-shot": Plant(along=0.8, **WITH_SHOT)}
    ds = planted_study(learners, seeds=8, checkpoints=(0, 10, 40, 100))
    loss = ds.assign(evaluation_accuracy=ds["evaluation_accuracy"] * np.nan)
    matched = [judge(one, quick_plan("shot-equal-accuracy")) for one in (ds, loss)]
    # The simulated loss is 2 minus the accuracy, so both orders agree.
    np.testing.assert_allclose([v.effect for v in matched[0]], [v.effect for v in matched[1]])
    for claim in ("intervention", "association", "shot-accuracy", "shot-speed"):
        assert judge(loss, quick_plan(claim)) == []


def test_quantities_measured_for_a_part_of_the_tasks_are_compared_on_these() -> None:
    ds = planted_study({"maml": Plant(along=0.8, elsewhere=0.2, meta=0.1)}, seeds=6, tasks=6)
    for name in ("frobenius", "meta_gradient_cosine"):
        ds[name][{"task": slice(3, None)}] = np.nan
    verdicts = judge(ds, quick_plan("trajectory", "meta-gradient"))
    tasks = {v.comparison: v.num_tasks for v in verdicts}
    assert (tasks["against random directions"], tasks["against rotated gradients"]) == (3, 6)
    assert tasks["against untrained"] == 3
    assert {v.num_undefined for v in verdicts} == {0}


# ---- estimators against closed forms


def test_the_relative_fall_is_a_jackknife_estimate() -> None:
    untrained, trained = np.array([[2.0, 4.0, 9.0]]), np.array([[1.0, 1.0, np.nan]])
    keep = np.array([[True, True, False]])
    change = Change(untrained, trained, ~keep)
    plain, without_first, without_second = 1 - 2 / 6, 1 - 1 / 4, 1 - 1 / 2
    assert change.fall(keep)[0] == pytest.approx(2 * plain - (without_first + without_second) / 2)
    one = np.array([[True, False, False]])
    assert change.fall(one)[0] == pytest.approx(0.5)
    assert np.isnan(change.fall(np.zeros((1, 3), dtype=bool))[0])


def test_learners_are_matched_where_the_better_one_last_passed_the_other_s_accuracy() -> None:
    one, other = np.array([[10.0, 6.0, 2.0]]), np.array([[10.0, 8.0, 4.0]])
    score, other_score = np.array([[0.2, 0.4, 0.6]]), np.array([[0.2, 0.3, 0.5]])
    np.testing.assert_allclose(at_equal_score(one, other, score, other_score), [[4.0], [4.0]])
    np.testing.assert_allclose(at_equal_score(other, one, other_score, score), [[4.0], [4.0]])
    np.testing.assert_allclose(at_equal_score(one, other, score, score), [[2.0], [4.0]])  # both as they end
    never = at_equal_score(one, other, score, np.array([[0.2, 0.3, 0.1]]))
    assert np.isnan(never).all()
    # The score passes 0.35 three times; the last passage is between the last two checkpoints.
    values, wavy = np.array([[0.0, 1.0, 2.0, 3.0]]), np.array([[0.3, 0.4, 0.3, 0.4]])
    level = np.array([[0.3, 0.3, 0.3, 0.35]])
    np.testing.assert_allclose(at_equal_score(values, values, wavy, level), [[2.5], [3.0]])


def test_the_first_meta_iteration_that_reaches_an_accuracy_is_interpolated() -> None:
    checkpoints = np.array([0.0, 10.0, 100.0])
    curves = np.array([[0.2, 0.4, 0.6], [0.2, 0.2, 0.2], [0.2, 0.5, 0.1], [0.2, 0.3, 0.5]])
    np.testing.assert_allclose(reached(curves, 0.4, checkpoints), [10.0, np.nan, 20 / 3, 55.0])


def test_slow_seeds_are_named_and_too_many_of_them_leave_no_verdict() -> None:
    learners = {"maml": Plant(), "maml-shot": Plant(accuracy=0.21, **WITH_SHOT)}
    ds = planted_study(learners, seeds=6, checkpoints=(0, 20, 100), score_spread=0.001)
    slow = ds["evaluation_accuracy"].copy()
    slow[0, :2, 1:] = slow[0, :2, 0]  # two seeds of maml learn nothing
    verdict = judge(ds.assign(evaluation_accuracy=slow), quick_plan("shot-speed"))[0]
    assert "which 0 seeds with and 2 seeds without SHOT never reached" in verdict.sentence
    assert verdict.num_seeds == 6
    slow[0, :, 1:] = 0.1
    verdict = judge(ds.assign(evaluation_accuracy=slow), quick_plan("shot-speed"))[0]
    assert verdict.outcome == "inconclusive"
    assert verdict.obstacle is not None


def test_doses_are_ordered_and_the_slope_of_each_seed_is_exact() -> None:
    learners, _, _ = SCENARIOS["intervention"]
    ds = planted_study(learners, seeds=2)
    assert learners_by_weight(ds, "b", "penalty") == {-0.1: "a", 0.0: "b", 0.1: "c", 1.0: "d"}
    assert learners_by_weight(ds, "b", "dose") == {0.0: "b"}
    x = np.array([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0]])
    slopes = seed_slopes(x, 2 * x + 1)
    assert slopes[0] == pytest.approx(2.0)
    assert np.isnan(slopes[1])


def test_an_intervention_that_moves_nothing_gives_no_verdict_on_the_accuracy() -> None:
    learners = {name: dataclasses.replace(plant, along=0.3) for name, plant in SCENARIOS["intervention"][1].items()}
    verdicts = verdicts_on("intervention", learners, seed_spread=0.01)
    assert {v.obstacle for v in verdicts} == {
        "the weights hardly move the curvature; so its effect on the accuracy cannot be seen"
    }


# ---- verdicts as text and as JSON


def test_all_claims_together_are_listed_counted_and_stored() -> None:
    learners = {
        "maml": Plant(along=0.5, accuracy=0.2),
        "fomaml": Plant(along=0.8, first_order=True),
        "maml-shot": Plant(along=0.7, **WITH_SHOT),
        "maml-anti": Plant(along=0.2, without="maml", shot=-0.1),
        "anil": Plant(part=0.5, algorithm="anil", family="anil"),
        "supervised": Plant(along=0.1, control="supervised", algorithm="supervised", family="supervised"),
    }
    ds = planted_study(learners, seeds=5, checkpoints=(0, 10, 40, 100))
    verdicts = judge(ds, quick_plan(*CLAIMS))
    assert set(CLAIMS) - {v.claim for v in verdicts} == {"shot-cost"}
    lines, sentences = list(verdict_lines(verdicts)), findings(verdicts)
    headings = [line for line in lines if not line.startswith("  ")]
    assert len(headings) == len(sentences) == len(CLAIMS) - 1
    rows = [line for line in lines if line.startswith("  ") and "exploratory" not in line]
    assert len(rows) == sum(v.kind == "primary" for v in verdicts)
    assert len({row.split("  ")[1:3][0] + row for row in rows}) == len(rows)
    primary = [name for name, claim in load_plan().claims.items() if claim.kind == "primary"]
    assert len([s for s in sentences[: len(primary)] if "Holm" in s]) > 0
    for text in [*lines, *sentences, *(v.sentence for v in verdicts)]:
        assert "nan" not in text.replace("anan", ""), text
        assert "_" not in text, text
    assert [repr(v) for v in verdicts_from_json(verdicts_to_json(verdicts))] == [repr(v) for v in verdicts]
    every = list(verdict_lines(verdicts, longest=10_000))
    assert len(every) == len(headings) + len(verdicts)
    width = {line[:90] for line in every if line.startswith("  ")}
    assert len(width) == len(verdicts)  # every line names another comparison


# ---- the document


def test_the_document_lists_the_claims_of_the_plan() -> None:
    assert part("claims") == claims_part(load_plan()), "run python tests/analysis/claims_document.py"


@pytest.mark.heavy
@pytest.mark.slow
def test_the_document_shows_the_power_of_the_claims() -> None:
    """The powers are simulated anew; the sizes are those of the test of the size above."""
    shown, made = (np.array(percentages(text)) for text in (part("power"), power_part(size_seeds=100)))
    assert shown.shape == made.shape == (len(SCENARIOS), 6)
    assert (shown[:, :3] <= 6.4).all()
    np.testing.assert_allclose(shown[:, 3:], made[:, 3:], atol=1)


def percentages(table: str) -> list[list[float]]:
    """The percentages in each row of a table that has any."""
    rows = [[float(text) for text in re.findall(r"([\d.]+) %", row)] for row in table.splitlines()]
    return [row for row in rows if row]


# ---- the correction


def test_primary_verdicts_are_corrected_together_over_studies() -> None:
    names = ("one", "two")
    studies = [
        (name, judge(planted_study({"maml": Plant(along=0.15)}, seeds=5, seed=seed), quick_plan("suppression")))
        for seed, name in enumerate(names)
    ]
    together = holm(studies)
    assert [name for name, _ in together] == list(names)
    primary = [v for _, verdicts in together for v in verdicts if v.kind == "primary"]
    np.testing.assert_array_equal([v.p_corrected for v in primary], adjusted(np.array([v.p for v in primary])))
    for (_, before), (_, after) in zip(studies, together, strict=True):
        for old, new in zip(before, after, strict=True):
            assert (old.outcome, old.p) == (new.outcome, new.p)
            assert old.sentence.partition(": ")[2] == new.sentence.partition(": ")[2]
            if new.kind == "exploratory":
                assert np.isnan(new.p_corrected)
                assert new.corrected_outcome is None
                continue
            assert new.num_corrected == sum(np.isfinite(v.p) for v in primary)
            survives = new.p_corrected < 0.05
            expected = "inconclusive" if new.outcome == "supported" and not survives else new.outcome
            assert new.corrected_outcome == expected
    assert any(v.corrected_outcome != v.outcome for v in primary)
    again = holm(together)
    assert [repr(v) for _, rows in again for v in rows] == [repr(v) for _, rows in together for v in rows]


def test_a_verdict_that_the_correction_changes_says_so_and_how_many_seeds_would_pass() -> None:
    verdicts = judge(planted_study({"maml": Plant(along=0.15)}, seeds=5), quick_plan("suppression"))
    primary = [v for v in verdicts if v.kind == "primary"]
    lost = [v for v in primary if v.corrected_outcome != v.outcome]
    num_left = sum(v.p_corrected >= 0.05 for v in primary)
    for v in lost:
        assert v.sentence.startswith("Supported with 5 seeds without the correction for the number of ")
        assert f"about {v.seeds_to_decide} seeds would pass" in v.sentence
        assert any(f"about {v.seeds_to_decide} seeds would pass" in line for line in verdict_lines([v]))
        mean, sd = np.mean(v.effects), np.std(v.effects, ddof=1)
        passes = [t_test(mean, sd / num**0.5, num - 1) * num_left < 0.05 for num in range(2, v.seeds_to_decide + 1)]
        assert passes.index(True) == len(passes) - 1
    # Comparisons that are rejected in any case leave the level at which the others are tested as it is (Holm 1979).
    rejected = [replace(lost[0], p=1e-12)] * 20
    again = holm([("", [*rejected, *primary])])[0][1][20:]
    assert [v.seeds_to_decide for v in again] == [v.seeds_to_decide for v in primary]
    # Without the correction for many comparisons, the sentence and the number are those of a supported verdict.
    assert lost
    alone = holm([("", lost[:1])])[0][1][0]
    assert alone.sentence.startswith("Supported with 5 seeds: ")
    assert alone.seeds_to_decide is None
    # With a mean below the smallest effect of interest, more seeds would make the verdict "not supported".
    small = replace(lost[0], margin=1.01 * abs(lost[0].effect))
    again = holm([("", [v if v is not lost[0] else small for v in verdicts])])[0][1]
    assert next(v for v in again if v.margin == small.margin and v.p == small.p).seeds_to_decide is None
    # A p-value that rests on a second test, or on no mean over seeds, has no number; a sentence of one's own stays.
    for other in (
        replace(lost[0], effects=()),
        replace(lost[0], p=1.01 * lost[0].p),
        replace(lost[0], sentence="Mine."),
    ):
        again = holm([("", [v if v is not lost[0] else other for v in verdicts])])[0][1]
        changed = next(v for v in again if v.p == other.p and v.effects == other.effects)
        assert changed.corrected_outcome == "inconclusive"
        if other.sentence == "Mine.":
            assert changed.sentence == "Mine."
        else:
            assert changed.seeds_to_decide is None
            assert "without the correction for the number of comparisons, but not after it: " in changed.sentence


def test_the_correction_is_shown_in_lines_and_findings() -> None:
    verdicts = judge(planted_study({"maml": Plant(along=0.15)}, seeds=5), quick_plan("suppression"))
    lost = [v for v in verdicts if v.corrected_outcome not in (None, v.outcome)]
    assert lost
    lines = [line for line in verdict_lines(verdicts) if "Holm p" in line]
    assert len(lines) == sum(np.isfinite(v.p_corrected) for v in verdicts)
    assert sum("(inconclusive)" in line for line in lines) == len(lost)
    supported = [v for v in verdicts if v.kind == "primary" and v.outcome == "supported"]
    num = verdicts[0].num_corrected
    kept = f"supported in {len(supported) - len(lost)} " if len(supported) > len(lost) else ""
    assert f"primary comparisons, it is {kept}" in findings(verdicts)[0]
    correction = f"(after Holm's correction for {num} comparisons; without it, supported in {len(supported)})"
    assert correction in findings(verdicts)[0]


def test_verdicts_of_version_0_1_are_still_read() -> None:
    verdict = judge(planted_study({"maml": Plant()}, seeds=3), quick_plan("suppression"))[0]
    later = ("effects", "p", "kind", "p_corrected", "corrected_outcome", "num_corrected", "measure", "against")
    stored = json.loads(verdicts_to_json([verdict]))
    stored["verdicts"] = [{key: value for key, value in row.items() if key not in later} for row in stored["verdicts"]]
    (old,) = verdicts_from_json(json.dumps(stored))
    assert (old.effect, old.outcome, old.sentence) == (verdict.effect, verdict.outcome, verdict.sentence)
    assert (old.kind, old.effects) == ("exploratory", ())
    assert np.isnan(old.p)


# ---- unusual studies


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("case", ["all diverged", "one seed diverged", "no evaluation", "constant"])
def test_unusual_studies_have_verdicts_with_plain_sentences(seeds: int, case: str) -> None:
    learners = {
        "maml": Plant(along=0.5),
        "maml-shot": Plant(along=0.7, **WITH_SHOT),
        "anti": Plant(without="maml", shot=-0.1),
        "fomaml": Plant(first_order=True),
        "supervised": Plant(control="supervised"),
    }
    ds = planted_study(learners, seeds=seeds, tasks=2, checkpoints=(0, 5, 10))
    if "diverged" in case:
        status = ds["status"].copy()
        status[:, slice(None) if case == "all diverged" else 0, -1] = DIVERGED
        ds = ds.assign(status=status)
    if case == "no evaluation":
        ds["evaluation_accuracy"][0] = np.nan
    if case == "constant":
        ds = ds.assign({name: ds[name] * 0 + 1 for name in ("rho", "alpha_rho", "hg_ratio", "rho_normalised")})
    verdicts = judge(ds, quick_plan(*CLAIMS, resamples=100))
    assert verdicts
    for text in [*verdict_lines(verdicts), *findings(verdicts), *(v.sentence for v in verdicts)]:
        assert "nan" not in text, text
    if case == "all diverged" or seeds == 1:
        assert {v.outcome for v in verdicts} == {"inconclusive"}
