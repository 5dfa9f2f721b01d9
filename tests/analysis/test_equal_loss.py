"""Tests of the comparison at equal support loss.

It matches each trained point with baseline points of nearly the same log loss. The match is exact where curvature is
linear in the log loss, and no effect is found where curvature changes only because the loss does.
"""

import numpy as np
import pytest
from quick_plan import quick_plan
from simulated_studies import Effect, simulated_study

from analysis.claims import Verdict, judge, verdict_lines
from analysis.claims.comparison import Comparison, Question
from analysis.claims.equal_loss import compare_at_equal_loss, interpolate_baseline, matched_means
from analysis.claims.verdict import conclude
from hessian_tools.rng import numpy_stream

# The same plan with fewer resamples, so that the tests are fast.
QUICK = quick_plan()
QUESTION = Question(
    claim="suppression",
    title="lower",
    learner="maml",
    baseline="untrained",
    steps="step 0",
    comparison="equal support loss",
    quantity="alpha_rho",
    units="1",
    predicted="negative",
)
NAMES = ("untrained", "maml", "maml-shot")
EFFECTS = {"maml": Effect(first=-0.2, later=-0.12), "maml-shot": Effect(first=-0.36, later=-0.2)}


def raw_and_equal_loss_verdicts(loss_driven: bool) -> list[tuple[Verdict, Verdict]]:
    """Pairs of a raw verdict and the verdict at equal loss, from a study with 5 seeds that scatter little.

    There is a pair for suppression and for SHOT, for each learner, at step 0 and at the later steps.
    """
    ds = simulated_study(
        learners=NAMES, effects=EFFECTS, seeds=range(5), tasks=40, checkpoints=(0, 100), seed_spread=0.01,
        evaluation_tasks=2, loss_driven=loss_driven,
    )  # fmt: skip
    verdicts = [v for v in judge(ds, QUICK) if v.claim != "alignment"]
    # Verdicts come in threes: raw, at unit filter norm, and at equal support loss.
    return list(zip(verdicts[::3], verdicts[2::3], strict=True))


def test_a_fall_of_curvature_that_only_follows_the_loss_vanishes_at_equal_loss() -> None:
    for raw, equal in raw_and_equal_loss_verdicts(loss_driven=True):
        assert (raw.comparison, equal.comparison) == ("raw", "equal support loss")
        assert raw.outcome == "supported"
        assert abs(equal.effect) < 0.15 * abs(raw.effect)
        assert equal.outcome in ("not supported", "inconclusive"), equal.sentence
        if equal.share_compared > 0.8:
            assert equal.outcome == "not supported", equal.sentence


def test_a_fall_of_curvature_that_does_not_follow_the_loss_stays_at_equal_loss() -> None:
    for raw, equal in raw_and_equal_loss_verdicts(loss_driven=False):
        assert raw.outcome == equal.outcome == "supported"
        assert equal.effect == pytest.approx(raw.effect, abs=0.03)
        assert equal.margin == raw.margin
        assert 0.8 < equal.share_compared <= 1.0
        assert equal.effect == pytest.approx(equal.trained_value - equal.baseline_value)
        assert equal.bootstrap_low < equal.effect < equal.bootstrap_high
        assert f"{equal.share_compared:.0%} of the points" in equal.sentence


def test_losses_that_hardly_overlap_are_inconclusive() -> None:
    effects = {"maml": Effect(first=-0.7, later=-0.3)}
    ds = simulated_study(learners=NAMES[:2], effects=effects, seeds=range(4), tasks=12, loss_driven=True)
    verdict = next(v for v in judge(ds, QUICK) if v.comparison == "equal support loss" and v.steps == "step 0")
    assert verdict.share_compared < 0.5
    assert verdict.outcome == "inconclusive"
    assert verdict.seeds_to_decide is None
    assert "the losses hardly overlap" in verdict.sentence
    assert "more seeds would not help" in verdict.sentence


def test_bracketed_is_exact_on_a_line_and_needs_neighbours_on_both_sides() -> None:
    """A log loss without a baseline point within the caliper on each side has no match."""
    x0 = np.array([[0.0, 0.02], [0.05, 0.09], [0.5, 0.52]])
    y0 = 3.0 + 2.0 * x0
    x = np.array([-0.01, 0.0, 0.03, 0.07, 0.2, 0.51, 0.53, -np.inf])
    values = interpolate_baseline(x, x0, y0, np.ones((3, 1)), caliper=0.1)[:, 0]
    inside = [1, 2, 3, 5]
    np.testing.assert_allclose(values[inside], 3.0 + 2.0 * x[inside], rtol=1e-12)
    assert np.isnan(np.delete(values, inside)).all()
    assert np.isnan(interpolate_baseline(x[2:3], x0, y0, np.ones((3, 1)), caliper=0.005)).all()


def test_curved_dependence_at_the_edge_of_the_overlap_leaves_little_bias() -> None:
    """The trained log losses are lower by one standard deviation, and curvature is exp(2 log loss).

    The plain mean of all baseline points within the caliper finds about 5 times as much false suppression as matching.
    """
    stream = numpy_stream(0, "edge")
    x0, x = 0.15 * stream.randn(3000, 12, 1), 0.15 * stream.randn(3000, 12, 1) - 0.15
    bias, naive = [], []
    for loss, loss0 in zip(x[:400], x0[:400], strict=True):
        value, value0, _ = matched_means(
            loss, np.exp(2 * loss), loss0, np.exp(2 * loss0), np.ones((12, 1)), caliper=0.1
        )
        bias.append(value[0] - value0[0])
        near = np.abs(loss - loss0.T) <= 0.1
        some = near.any(axis=1)
        mean0 = (near @ np.exp(2 * loss0))[some, 0] / near[some].sum(axis=1)
        naive.append((np.exp(2 * loss)[some, 0] - mean0).mean() if some.any() else np.nan)
    assert np.nanmean(naive) < -0.015
    assert abs(np.nanmean(bias)) < 0.3 * abs(np.nanmean(naive))


def test_a_resample_by_counts_equals_one_with_repeated_tasks() -> None:
    stream = numpy_stream(0, "counts")
    x, y, x0, y0 = (stream.randn(5, 3) * 0.1 for _ in range(4))
    counts = np.array([2, 0, 1, 1, 1])
    again = [np.repeat(side, counts, axis=0) for side in (x, y, x0, y0)]
    weighted = matched_means(x, y, x0, y0, counts[:, None].astype(float), caliper=0.1)
    np.testing.assert_allclose(weighted, matched_means(*again, np.ones((5, 1)), caliper=0.1), rtol=1e-12)


def test_points_count_whether_they_have_a_match_or_not() -> None:
    loss0 = np.exp(np.array([-0.05, -0.03, -0.01, 0.03, 0.05, 0.01])).reshape(1, 6, 1)
    loss = np.exp(np.array([-1.0, -0.04, 0.0, 0.04, 1.0, 0.0])).reshape(1, 6, 1)
    value = np.zeros((1, 6, 1))
    loss[0, 0] = 0.0  # a loss of 0 has no logarithm and no match, but counts as a point
    value[0, 5] = np.nan  # this task has diverged and does not count as a point
    lost = np.arange(6)[None] == 5
    comparison = compare_at_equal_loss(value, np.ones((1, 6, 1)), loss, loss0, QUICK, diverged=lost)
    assert comparison.share == pytest.approx(3 / 5)
    assert (comparison.num_diverged, comparison.num_undefined, comparison.num_units) == (1, 0, 6)
    assert comparison.obstacle is None
    np.testing.assert_allclose(comparison.effects, -1.0)


def test_points_are_matched_within_their_own_seed_only() -> None:
    """The second seed's baseline covers the first seed's losses; that must not help."""
    loss = np.ones((2, 4, 1)) * np.array([1.0, 9.0])[:, None, None]
    comparison = compare_at_equal_loss(np.zeros_like(loss), np.ones_like(loss), loss, loss[::-1], QUICK)
    assert comparison.share == 0.0
    assert np.isnan(comparison.effects).all()


def comparison_with_overlap(*shares: float) -> Comparison:
    """A comparison with an effect of -1 in every seed, each of which has 10 points.

    shares: for each seed, the fraction of its points that have a match. The losses of the other points are far away.
    """
    spread = np.linspace(-0.05, 0.05, 10)
    loss0 = np.exp(np.tile(spread, (len(shares), 1)))[..., None]
    loss = np.exp(np.array([np.where(np.arange(10) < round(10 * share), 0.8 * spread, 5.0) for share in shares]))
    value = np.random.RandomState(0).randn(len(shares), 10, 1) * 1e-3
    return compare_at_equal_loss(value - 1.0, value, loss[..., None], loss0, QUICK)


def test_a_seed_with_too_few_matches_is_left_out_and_counted() -> None:
    """Half of all points have a match, but in the third and the fourth seed only 20 and 10 % have one."""
    comparison = comparison_with_overlap(0.9, 0.8, 0.2, 0.1)
    assert comparison.share == pytest.approx(0.5)
    np.testing.assert_array_equal(np.isnan(comparison.effects), [False, False, True, True])
    np.testing.assert_array_equal(np.isnan(comparison.trained), np.isnan(comparison.baseline))
    np.testing.assert_allclose(comparison.effects[:2], -1.0, atol=0.01)
    assert (comparison.num_unmatched_seeds, comparison.obstacle) == (2, None)
    verdict = conclude(QUESTION, comparison, margin=0.1, confidence=0.95)
    assert (verdict.outcome, verdict.num_seeds, verdict.share_compared) == ("supported", 2, comparison.share)
    assert "2 seeds were left out because too few points have a match" in verdict.sentence
    assert "left to compare" not in verdict.sentence


@pytest.mark.parametrize(
    ("shares", "num_left", "words"),
    [((0.9, 0.4, 0.4), 1, "the losses overlap in one seed only"), ((0.4, 0.4), 0, "the losses hardly overlap: 40%")],
)
def test_fewer_than_two_seeds_left_are_an_obstacle(shares: tuple[float, ...], num_left: int, words: str) -> None:
    comparison = comparison_with_overlap(*shares)
    verdict = conclude(QUESTION, comparison, margin=0.1, confidence=0.95)
    assert (verdict.outcome, verdict.num_seeds, verdict.seeds_to_decide) == ("inconclusive", num_left, None)
    assert verdict.sentence.startswith(f"Inconclusive: {words}")
    assert verdict.obstacle == comparison.obstacle
    assert words in list(verdict_lines([verdict]))[1]


def test_a_single_seed_whose_losses_overlap_has_no_obstacle() -> None:
    comparison = comparison_with_overlap(0.9)
    assert (comparison.num_unmatched_seeds, comparison.obstacle) == (0, None)


def test_a_diverged_seed_does_not_count_as_a_seed_without_overlap() -> None:
    loss = np.exp(np.tile(np.linspace(-0.05, 0.05, 10), (2, 1)))[..., None]
    lost = np.tile([[True], [False]], (1, 10))
    comparison = compare_at_equal_loss(np.zeros_like(loss), np.ones_like(loss), loss, loss, QUICK, diverged=lost)
    assert (comparison.num_unmatched_seeds, comparison.num_diverged, comparison.obstacle) == (0, 10, None)
    assert comparison.share > 0.7
