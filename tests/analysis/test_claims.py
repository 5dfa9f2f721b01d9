"""Tests of the three claims on simulated studies in which each of them is true, false or undecided.

They also cover diverged units, groups of inner steps that are judged together, and verdicts as JSON.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import xarray as xr
from quick_plan import EARLIER, quick_plan
from simulated_studies import Effect, simulated_study, truth

from analysis.claims import (
    CLAIMS,
    Verdict,
    judge,
    verdict_lines,
    verdicts_from_json,
    verdicts_to_json,
)
from analysis.claims.comparison import Question, compare_task_by_task
from analysis.claims.verdict import conclude
from analysis.schema import STATUS_MEANINGS
from analysis.statistics import decide, student_half_width
from hessian_tools.rng import numpy_stream

QUICK = quick_plan()  # the other claims have tests of their own
# The true changes of alpha rho at step 0 and at later steps, and of the alignment of the inner gradients.
EFFECTS = {
    "maml": Effect(first=-0.4, later=-0.2, alignment=0.2),
    "maml-shot": Effect(first=-0.6, later=-0.32, alignment=0.4),
}
NAMES = ("untrained", "maml", "maml-shot")


def study(**options: Any) -> xr.Dataset:
    """A small simulated study; the options are those of ``simulated_study``."""
    common: dict[str, Any] = {"learners": NAMES, "effects": EFFECTS, "checkpoints": (0, 100), "evaluation_tasks": 2}
    return simulated_study(**(common | options))


def pick(verdicts: list[Verdict], **where: str) -> list[Verdict]:
    """The verdicts whose fields have the given values; at least one."""
    picked = [v for v in verdicts if all(getattr(v, key) == value for key, value in where.items())]
    assert picked, where
    return picked


def test_true_claims_are_supported_and_the_simulated_effects_are_recovered() -> None:
    ds = study(seeds=range(5), checkpoints=(0, 30, 100))
    verdicts = judge(ds, QUICK)
    for verdict in verdicts:
        # The untrained network has an alignment of 0.25, so that one above 0 says nothing of training.
        weak = verdict.comparison == "against orthogonal"
        assert verdict.outcome == ("inconclusive" if weak else "supported"), verdict.sentence
    # Suppression has 6 comparisons for each of 2 learners, SHOT has 6 for one, and alignment has 2 for each of 2.
    assert len(verdicts) == 2 * 6 + 6 + 2 * 2
    true = truth(ds)["effects"]
    for verdict in verdicts:
        if verdict.comparison in ("against orthogonal", "equal support loss"):
            continue
        key = (
            "alignment" if verdict.claim == "alignment" else {"step 0": "first", "later steps": "later"}[verdict.steps]
        )
        expected = true[verdict.learner][key] - (true["maml"][key] if verdict.claim == "shot" else 0)
        # This comparison judges rho and not alpha rho (alpha is 0.1), and the simulated filters have norm 3.
        scale = 3.0**2 / 0.1 if verdict.comparison == "unit filter norm" else 1.0
        assert verdict.effect / scale == pytest.approx(expected, abs=0.06)
        assert verdict.low < verdict.effect < verdict.high
        assert verdict.effect == pytest.approx(verdict.trained_value - verdict.baseline_value)
        assert (verdict.num_seeds, verdict.num_tasks, verdict.num_diverged, verdict.share_compared) == (5, 16, 0, 1.0)
        assert verdict.seeds_to_decide is None


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_verdict_intervals_cover_at_every_number_of_seeds(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 2500 studies is taken from its points to its verdict, and the nominal coverage is 95 %.

    The bounds of 93 % and 97 % are 4.6 standard errors away, so the test fails by chance with probability 4e-6.
    """
    # The bootstrap is slow, and it does not influence the interval that is tested.
    monkeypatch.setattr("analysis.claims.comparison.task_bootstrap", lambda *_, **__: (np.nan, np.nan))
    verdict = judge(study(seeds=(0,)), QUICK)[0]  # a verdict has the fields of its question
    question = Question(**{f.name: getattr(verdict, f.name) for f in dataclasses.fields(Question)})
    stream = numpy_stream(0, "coverage", seeds)
    # The axes are study, seed, task and step.
    baseline = stream.randn(2500, seeds, 8, 1) + 3.0 * stream.randn(2500, seeds, 1, 1)
    trained = baseline - 0.3 + 0.2 * stream.randn(2500, seeds, 1, 1) + 0.1 * stream.randn(2500, seeds, 8, 1)
    verdicts = [
        conclude(question, compare_task_by_task(t, b, QUICK), margin=0.1, confidence=0.95)
        for t, b in zip(trained, baseline, strict=True)
    ]
    assert 0.93 < np.mean([v.low <= -0.3 <= v.high for v in verdicts]) < 0.97
    assert np.mean([v.outcome == "not supported" for v in verdicts]) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("claim", EARLIER)
@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_a_false_claim_is_not_supported(claim: str, sign: float) -> None:
    """sign: 0 for a study without effects, and -1 for effects opposite to those that the claims predict."""
    effects = {name: Effect(sign * e.first, sign * e.later, sign * e.alignment) for name, e in EFFECTS.items()}
    ds = study(seeds=range(6), seed_spread=0.01, effects=effects)
    for verdict in CLAIMS[claim](ds, QUICK):
        # Even untrained, gradients align, which is an obstacle to the comparison with orthogonal ones.
        expected = "inconclusive" if verdict.comparison == "against orthogonal" else "not supported"
        assert verdict.outcome == expected, verdict.sentence
    if sign:
        words = [v.sentence for v in CLAIMS[claim](ds, QUICK) if v.comparison == "raw"]
        assert all("opposite to the claim" in text for text in words)


def test_gradients_that_are_orthogonal_or_oscillate_are_not_aligned() -> None:
    ds = study(
        seeds=range(6), seed_spread=0.01, effects={"maml": Effect(alignment=-0.25), "maml-shot": Effect(alignment=-0.5)}
    )
    ds["alignment"][{"checkpoint": 0}] -= 0.25  # else the untrained network passes; see the next test
    verdicts = pick(judge(ds, QUICK), comparison="against orthogonal")
    assert [v.outcome for v in verdicts] == ["not supported", "not supported"]
    assert verdicts[1].effect < -0.2
    assert "opposite to the claim" in verdicts[1].sentence


@pytest.mark.parametrize("effect", [-0.5, 0.0, 0.4])
def test_alignment_that_the_untrained_network_has_as_well_is_never_supported_by_it(effect: float) -> None:
    """Only the untrained network counts: the obstacle is there whatever training has done to the alignment."""
    ds = study(seeds=range(4), seed_spread=0.01, effects={"maml": Effect(alignment=effect)})

    def weak(ds: xr.Dataset) -> Verdict:
        return pick(judge(ds, QUICK), learner="maml", comparison="against orthogonal")[0]

    untrained = {"learner": 1, "checkpoint": 0}
    values = ds["alignment"][untrained]
    level = float(values.mean())
    # The untrained network's mean is set to a little less and a little more than the margin of 0.05.
    for shift, passes in ((0.0, True), (0.0501 - level, True), (0.0499 - level, False), (-1.0, False)):
        planted = ds.copy(deep=True)
        planted["alignment"][untrained] = values + shift
        verdict = weak(planted)
        assert (verdict.obstacle is not None) is passes
        if passes:
            assert (verdict.outcome, verdict.seeds_to_decide) == ("inconclusive", None)
            assert np.isnan(verdict.p)
            words = "the untrained network passes as well; so the comparison says nothing of training"
            assert verdict.obstacle == words
            assert verdict.sentence.startswith(f"Inconclusive: {words}; the alignment A of maml")
            assert list(verdict_lines([verdict]))[1].endswith("  the untrained network passes as well")
        else:
            assert verdict.outcome == ("not supported" if effect < 0 else "supported")
        # The numbers are those of the trained network, and the other comparison has no obstacle.
        assert verdict.trained_value == pytest.approx(float(ds["alignment"][1, :, -1].mean()))
        assert pick(judge(planted, QUICK), learner="maml", comparison="against untrained")[0].obstacle is None
    without_start = ds.copy(deep=True)
    without_start["untrained_start"][1] = ""
    assert [v.comparison for v in pick(judge(without_start, QUICK), claim="alignment", learner="maml")] == [
        "against orthogonal"
    ]
    assert weak(without_start).obstacle is None


def test_only_units_of_the_untrained_network_that_can_be_compared_count_as_its_alignment() -> None:
    """Units that diverged, or whose gradients are all zero, have no alignment on one of the sides."""
    ds = study(diverged=[("maml", 0, 1)])
    untrained = {"learner": 1, "checkpoint": 0}
    ds["alignment"][untrained] = 0.0
    ds["alignment"][untrained | {"seed": 0, "task": 1}] = 1e3  # the trained network diverged there

    def obstacle() -> str | None:
        return pick(judge(ds, QUICK), learner="maml", comparison="against orthogonal")[0].obstacle

    assert obstacle() is None
    zero = untrained | {"seed": 1, "task": 2}
    for name in ("alpha_rho", "rho_normalised", "alignment", "grad_norm"):
        ds[name][zero] = 0.0 if name == "grad_norm" else np.nan
    assert obstacle() is None
    ds["alignment"][untrained] = ds["alignment"][untrained] + 0.06  # the unit without an alignment stays without
    assert obstacle() is not None
    ds["status"][untrained] = STATUS_MEANINGS.index("diverged")  # nothing is known of the untrained network
    assert obstacle() is None


@pytest.mark.slow
@pytest.mark.parametrize("claim", EARLIER)
def test_too_few_seeds_are_inconclusive_and_the_verdict_says_how_many_would_decide(claim: str) -> None:
    """Two seeds disagree. The rule decides with the advised number of seeds, and not with one fewer."""
    undecided = []
    for seed in range(4):
        verdicts = CLAIMS[claim](study(seeds=(0, 1), seed_spread=0.25, seed=seed), QUICK)
        undecided += [
            v for v in verdicts if v.outcome == "inconclusive" and v.share_compared == 1.0 and v.obstacle is None
        ]
    assert undecided
    for verdict in undecided:
        assert f"about {verdict.seeds_to_decide} seeds would decide in about half of such studies" in verdict.sentence
        mean = verdict.effect if verdict.predicted == "positive" else -verdict.effect
        sd = (verdict.high - verdict.low) / 2 / student_half_width(1.0, 2)
        rule = []
        for num in (verdict.seeds_to_decide - 1, verdict.seeds_to_decide):
            half = student_half_width(sd, num)
            rule.append(decide(mean - half, mean + half, margin=verdict.margin))
        assert rule[0] == "inconclusive" != rule[1]
        assert 3 <= verdict.seeds_to_decide <= 10_000


def test_one_seed_is_inconclusive_with_nan_bounds_and_survives_json() -> None:
    verdicts = judge(study(seeds=(0,)), QUICK)
    assert {v.outcome for v in verdicts} == {"inconclusive"}
    assert all(np.isnan([v.low, v.high]).all() and np.isfinite(v.effect) for v in verdicts)
    assert all(v.seeds_to_decide is None for v in verdicts)
    # The untrained network's alignment is an obstacle whatever the number of seeds is.
    one_seed, weak = [[v for v in verdicts if (v.obstacle is not None) is has] for has in (False, True)]
    assert all("at least 2" in v.sentence for v in one_seed)
    assert [v.comparison for v in weak] == 2 * ["against orthogonal"]
    text = verdicts_to_json(verdicts)
    assert "NaN" not in text
    assert "null" in text
    again = verdicts_from_json(text)
    assert [repr(v) for v in again] == [repr(v) for v in verdicts]
    assert again[0] != verdicts[0] or np.isfinite(again[0].low)  # NaN does not equal itself, hence repr above


def test_step_0_and_later_steps_are_judged_separately() -> None:
    ds = study(seeds=range(6), seed_spread=0.01, effects={"maml": Effect(first=-0.5, later=0.0)})
    verdicts = pick(judge(ds, QUICK), claim="suppression", learner="maml", comparison="raw")
    assert {v.steps: v.outcome for v in verdicts} == {"step 0": "supported", "later steps": "not supported"}


def test_the_margin_is_a_fraction_of_the_baselines_mean_magnitude() -> None:
    ds = study(seeds=(0, 1, 2))
    # Half of the values become negative. The margin scales with their magnitudes, which do not cancel.
    ds["alpha_rho"][{"task": slice(0, 8), "checkpoint": 0}] *= -1
    verdict = pick(judge(ds, QUICK), claim="suppression", learner="maml", steps="step 0", comparison="raw")[0]
    scale = abs(ds["alpha_rho"].isel(learner=1, checkpoint=0, inner_step=0)).mean()
    assert verdict.margin == pytest.approx(0.1 * float(scale))
    assert pick(judge(ds, QUICK), claim="alignment")[0].margin == 0.05


def test_weights_that_only_grow_lower_alpha_rho_but_not_rho_at_unit_filter_norm() -> None:
    ds = study(seeds=range(5), seed_spread=0.01, growing_weights=True)
    for claim in ("suppression", "shot"):
        verdicts = pick(judge(ds, QUICK), claim=claim)
        assert {v.outcome for v in verdicts if v.comparison == "raw"} == {"supported"}
        normed = [v for v in verdicts if v.comparison == "unit filter norm"]
        assert len(normed) == sum(v.comparison == "raw" for v in verdicts)
        for verdict in normed:
            assert verdict.outcome == "not supported", verdict.sentence
            assert verdict.sentence.count("rho at unit filter norm") == 1
            assert verdict.quantity == "rho_normalised"
    normed = pick(judge(ds, QUICK), claim="suppression", learner="maml", steps="step 0", comparison="unit filter norm")
    scale = abs(ds["rho_normalised"].isel(learner=1, checkpoint=0, inner_step=0)).mean()
    assert normed[0].margin == pytest.approx(0.1 * float(scale))


def test_differences_are_taken_task_by_task_and_seed_by_seed() -> None:
    """Tasks and seeds differ by far more than the effect, so that only paired differences give narrow intervals.

    This must also hold where a point is NaN.
    """
    stream = np.random.RandomState(0)
    baseline = 5.0 * stream.randn(3, 12, 1) + 20.0 * stream.randn(3, 1, 1) + np.zeros((3, 12, 2))
    trained = baseline - 0.5 + 0.001 * stream.randn(3, 12, 2)
    trained[0, 3, 1] = np.nan  # one step is lost, so all steps of this seed and task are left out on both sides
    comparison = compare_task_by_task(trained, baseline, QUICK, diverged=np.isnan(trained).any(axis=-1))
    np.testing.assert_allclose(comparison.effects, -0.5, atol=0.002)
    np.testing.assert_allclose(comparison.trained - comparison.baseline, comparison.effects)
    assert comparison.bootstrap[1] - comparison.bootstrap[0] < 0.002
    assert (comparison.num_diverged, comparison.num_undefined, comparison.num_units) == (1, 0, 36)


def test_diverged_units_are_left_out_counted_and_named() -> None:
    plain, ds = study(), study(diverged=[("maml", 0, 1), ("maml", 2, 5)])
    where = {"claim": "suppression", "learner": "maml", "steps": "later steps", "comparison": "raw"}
    verdict = pick(judge(ds, QUICK), **where)[0]
    difference = plain["alpha_rho"].isel(learner=1, checkpoint=-1) - plain["alpha_rho"].isel(learner=1, checkpoint=0)
    unit = difference.isel(inner_step=slice(1, None)).mean("inner_step").values
    unit[0, 1] = unit[2, 5] = np.nan
    assert verdict.effect == pytest.approx(np.nanmean(unit, axis=1).mean())
    assert verdict.num_diverged == 2
    assert "2 of 48 units" in verdict.sentence
    for other in pick(judge(ds, QUICK), learner="maml"):
        assert other.num_diverged == 2  # also at step 0, which has a number: the unit's status decides


def test_seeds_and_learners_all_of_whose_units_diverged() -> None:
    lost = [("maml", 0, task) for task in range(16)]
    first = judge(study(diverged=lost), QUICK)[0]
    assert first.num_seeds == 2
    assert "1 seed was left out" in first.sentence
    everything = [("maml", seed, task) for seed in range(3) for task in range(16)]
    for verdict in pick(judge(study(diverged=everything), QUICK), learner="maml"):
        assert verdict.outcome == "inconclusive"
        assert "all 48 units diverged" in verdict.sentence
        assert verdict.num_seeds == 0
        assert verdict.num_diverged == 48
        assert verdict.seeds_to_decide is None
        assert list(verdict_lines([verdict]))[1].endswith("nothing to compare")


def test_one_inner_step_has_no_alignment() -> None:
    verdicts = pick(judge(study(steps=1), QUICK), claim="alignment")
    assert all(v.outcome == "inconclusive" and "at least two inner steps" in v.sentence for v in verdicts)
    assert all(v.num_diverged == 0 for v in verdicts)


def test_judging_changes_nothing_and_repeats() -> None:
    ds = study(diverged=[("maml", 0, 1)])
    before = ds.copy(deep=True)
    first = judge(ds, QUICK)
    xr.testing.assert_identical(ds, before)
    assert judge(ds, QUICK) == first


def test_sides_that_are_equal_to_the_last_bit_are_inconclusive() -> None:
    """If SHOT changed nothing, a difference of 0 without any spread would wrongly count as "not supported"."""
    ds = study(seeds=(0, 1, 2))
    for variable in ds.data_vars.values():
        if "learner" in variable.dims:
            variable[{"learner": 2}] = variable.isel(learner=1)  # "maml-shot" gets the numbers of "maml"
    verdicts = pick(judge(ds, QUICK), claim="shot")
    assert len(verdicts) == 6
    for verdict in verdicts:
        assert (verdict.outcome, verdict.seeds_to_decide) == ("inconclusive", None)
        assert "identical to the last bit; so there is no difference to test" in verdict.sentence
        assert list(verdict_lines([verdict]))[1].endswith("  both sides are identical to the last bit")
    ds["alpha_rho"][{"learner": 2, "checkpoint": -1}] += 1e-12
    obstacles = {v.comparison: v.obstacle for v in pick(judge(ds, QUICK), claim="shot")}
    assert obstacles["raw"] is None
    assert obstacles["equal support loss"] is None
    assert obstacles["unit filter norm"] is not None
    again = verdicts_from_json(verdicts_to_json(judge(ds, QUICK)))
    assert [v.obstacle for v in again] == [v.obstacle for v in judge(ds, QUICK)]


def test_sentences_have_real_minus_signs() -> None:
    verdict = judge(study(), QUICK)[0]
    assert verdict.effect < 0
    assert f"a difference of \N{MINUS SIGN}{-verdict.effect:.3g} (" in verdict.sentence
    assert not any("-" in v.sentence.replace("maml-shot", "") for v in judge(study(), QUICK))


def test_listing_names_every_comparison_in_aligned_lines() -> None:
    verdicts = judge(study(), QUICK)
    lines = list(verdict_lines(verdicts))
    rows = [line for line in lines if line.startswith("  ")]
    assert len(lines) == len(rows) + 3  # a heading for each claim
    # Characters 17 to 70 of a row name its comparison.
    assert len({row[17:70] for row in rows}) == len(rows) == len(verdicts)
    assert "(alpha rho; rho at unit filter norm, learner minus baseline" in lines[0]
    assert rows[1][17:].startswith("maml against untrained, step 0, unit filter norm ")
    assert "rho" not in lines[-5].split("?")[1]  # the heading of alignment, before its 4 rows
