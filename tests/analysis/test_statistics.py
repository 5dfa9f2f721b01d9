"""Tests of intervals, of the bootstrap over tasks, and of the advised number of seeds.

Student's t intervals over seeds cover at their nominal rate. The bootstrap does not, so it never decides a claim.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.statistics import (
    decide,
    holm,
    mean_interval,
    resampled_counts,
    seed_means,
    seeds_to_decide,
    slope_interval,
    student_half_width,
    task_bootstrap,
)
from hessian_tools.rng import numpy_stream

EFFECT = -0.3


def studies(num: int, seeds: int, *, tasks: int = 8, seed_sd: float = 0.2, task_sd: float = 0.1) -> np.ndarray:
    """The paired differences of many simulated studies [study, seed, task].

    Their expected value is EFFECT. By default, seeds differ more than the tasks of a seed.
    """
    stream = numpy_stream(0, "studies", seeds)
    return EFFECT + seed_sd * stream.randn(num, seeds, 1) + task_sd * stream.randn(num, seeds, tasks)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_student_t_on_seed_means_covers_at_every_number_of_seeds(seeds: int) -> None:
    """The nominal coverage is 95 %, and it is measured on 4000 studies.

    The bounds of 93 % and 97 % are 5.8 standard errors away, so the test fails by chance with probability 1e-8.
    """
    intervals = [mean_interval(seed_means(study)) for study in studies(4000, seeds)]
    covered = np.mean([i.low <= EFFECT <= i.high for i in intervals])
    assert 0.93 < covered < 0.97
    assert all(i.num == seeds for i in intervals)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_task_bootstrap_undercovers_the_effect_but_covers_the_mean_of_its_seeds(seeds: int) -> None:
    """It resamples tasks and not seeds, so it only says how well the mean of these seeds is known."""
    stream = numpy_stream(1, "fixed", seeds)
    deviation = 0.2 * stream.randn(200, seeds, 1)
    effects = EFFECT + deviation + 0.1 * stream.randn(200, seeds, 16)
    bounds = np.array([task_bootstrap(study, resamples=300, seed=i) for i, study in enumerate(effects)])
    mean_of_seeds = EFFECT + deviation.mean(axis=(1, 2))
    cover = lambda true: np.mean((bounds[:, 0] <= true) & (true <= bounds[:, 1]))  # noqa: E731
    assert cover(EFFECT) < 0.6
    assert 0.85 < cover(mean_of_seeds) < 0.99


def test_interval_against_scipy_and_degenerate_sizes() -> None:
    values = np.array([0.3, -0.1, 0.25, 0.6])
    interval = mean_interval(values, confidence=0.9)
    low, high = stats.t.interval(0.9, 3, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose([interval.low, interval.high], [low, high], rtol=1e-12)
    np.testing.assert_allclose(interval.sd, np.std(values, ddof=1), rtol=1e-12)
    assert mean_interval(np.append(values, np.nan), confidence=0.9) == interval
    one, none = mean_interval(np.array([0.5])), mean_interval(np.array([np.nan]))
    assert (one.mean, one.num, none.num) == (0.5, 1, 0)
    assert np.isnan([one.low, one.high, one.sd, none.mean]).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval(values, confidence=95.0)


def test_seed_means_leave_out_nan_tasks() -> None:
    effects = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
    np.testing.assert_array_equal(seed_means(effects), [2.0, np.nan])


def test_the_bootstrap_is_reproducible_ignores_nan_and_has_the_spread_of_a_closed_form() -> None:
    stream = numpy_stream(0, "spread")
    effects = stream.randn(3, 40)
    low, high = task_bootstrap(effects, resamples=4000)
    assert (low, high) == task_bootstrap(effects, resamples=4000)
    assert (low, high) != task_bootstrap(effects, resamples=4000, seed=1)
    # The bootstrap variance of the mean over S seeds is the sum of var_s / n_s, divided by S^2 (n_s = 40, S = 3).
    stderr = np.sqrt((effects.var(axis=1) / 40).sum()) / 3
    np.testing.assert_allclose(high - low, 2 * 1.96 * stderr, rtol=0.06)
    padded = np.concatenate([effects, np.full((3, 5), np.nan)], axis=1)
    assert task_bootstrap(padded, resamples=4000) == (low, high)
    assert np.isnan(task_bootstrap(np.full((2, 4), np.nan))).all()
    counts = resampled_counts(7, resamples=9, stream=stream)
    assert counts.shape == (7, 9)
    assert (counts.sum(axis=0) == 7).all()


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.05, 0.4, "supported"),
        (0.2, 0.4, "supported"),
        (-0.1, 0.4, "inconclusive"),
        (0.0, 0.4, "inconclusive"),
        (-0.3, -0.1, "not supported"),  # the effect is opposite to the claim
        (-0.05, 0.05, "not supported"),  # there is no effect
        (0.02, 0.08, "not supported"),  # the effect is certain, but smaller than the margin
        (float("nan"), float("nan"), "inconclusive"),
    ],
)
def test_the_decision_rule(low: float, high: float, outcome: str) -> None:
    assert decide(low, high, margin=0.1) == outcome


@settings(max_examples=150, deadline=None)
@given(mean=st.floats(-1, 1), sd=st.floats(0.01, 3), margin=st.floats(0.02, 0.5))
def test_seeds_to_decide_is_where_the_rule_first_decides(mean: float, sd: float, margin: float) -> None:
    def outcome(num: int) -> str:
        half = student_half_width(sd, num)
        return decide(mean - half, mean + half, margin=margin)

    num = seeds_to_decide(mean, sd, margin=margin)
    if num is None:
        assert outcome(10_000) == "inconclusive"
    else:
        assert outcome(num) != "inconclusive"
        assert outcome(num - 1) == "inconclusive"  # always so with one seed


def test_seeds_to_decide_in_limiting_cases() -> None:
    assert seeds_to_decide(0.1, float("nan"), margin=0.1) is None
    assert seeds_to_decide(1e-6, 10.0, margin=1e-6) is None
    assert seeds_to_decide(0.3, 0.3, margin=0.1, max_seeds=4) is None
    assert seeds_to_decide(0.3, 0.0, margin=0.1) == 2


def test_seeds_to_decide_is_right_about_new_studies() -> None:
    """About half of the studies with the advised number of seeds decide: the expected end of their interval lies at 0.

    Of the studies with half that number of seeds, clearly fewer decide.
    """
    num = seeds_to_decide(-EFFECT, 0.4, margin=0.1)
    assert num is not None
    rates = []
    for size in (num, num // 2):
        simulated = -studies(600, size, seed_sd=0.4, task_sd=1e-6)
        intervals = [mean_interval(seed_means(study)) for study in simulated]
        rates.append(np.mean([decide(i.low, i.high, margin=0.1) != "inconclusive" for i in intervals]))
    assert 0.4 < rates[0] < 0.75
    assert rates[1] < rates[0] - 0.15


def test_the_p_value_is_that_of_scipy_and_agrees_with_the_interval() -> None:
    values = np.array([0.3, -0.1, 0.25, 0.6])
    interval = mean_interval(values)
    np.testing.assert_allclose(interval.p, stats.ttest_1samp(values, 0).pvalue, rtol=1e-12)
    assert mean_interval(values, confidence=1 - interval.p).low == pytest.approx(0, abs=1e-9)
    assert np.isnan([mean_interval(values[:1]).p, mean_interval(np.zeros(3)).p]).all()
    assert mean_interval(np.full(3, 0.5)).p == 0.0


def test_a_slope_between_seeds_against_scipy() -> None:
    x, y = np.array([0.0, 1.0, 2.0, 4.0, np.nan]), np.array([0.1, 0.4, 0.3, 0.9, 5.0])
    fit = stats.linregress(x[:4], y[:4])
    interval = slope_interval(x, y, confidence=0.9)
    np.testing.assert_allclose([interval.mean, interval.p], [fit.slope, fit.pvalue], rtol=1e-10)
    half = stats.t.ppf(0.95, 2) * fit.stderr
    np.testing.assert_allclose([interval.low, interval.high], [fit.slope - half, fit.slope + half], rtol=1e-10)
    assert interval.num == 4
    assert np.isnan(slope_interval(x[:2], y[:2]).low)
    assert np.isnan(slope_interval(np.ones(4), y[:4]).mean)


def test_holms_correction_on_an_example_and_its_familywise_error() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]
    assert np.isnan(holm(np.array([np.nan, 0.02]))).tolist() == [True, False]
    assert holm(np.array([np.nan, 0.02]))[1] == 0.02  # what was not tested does not count
    p_values = numpy_stream(0, "holm").uniform(size=(4000, 12))
    assert np.mean([(holm(row) < 0.05).any() for row in p_values]) < 0.06
