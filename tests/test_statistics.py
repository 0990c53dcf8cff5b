import itertools

import numpy as np
import pytest
import scipy.stats

from mbrl_jax import statistics
from mbrl_jax.environments import success_marks
from mbrl_jax.statistics import bootstrap, fraction_at_least, interquartile_mean, mean, median, paired_difference


def returns(*shape, seed=0):
    return np.random.default_rng(seed).gamma(4.0, 50.0, shape)


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 5, 10, 63, 64])
def test_the_interquartile_mean_is_scipys_trimmed_mean(seeds):
    scores = returns(3, seeds)
    np.testing.assert_allclose(interquartile_mean(scores), scipy.stats.trim_mean(scores, 0.25, axis=-1), rtol=1e-12)


def test_one_wild_seed_in_eight_leaves_the_interquartile_mean_alone():
    scores = np.arange(8.0)
    wild = np.array([*scores[:-1], 1e9])
    assert interquartile_mean(wild) == interquartile_mean(scores) == 3.5


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(mean, np.mean), (median, np.median), (interquartile_mean, lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis))],
)
def test_a_bootstrap_interval_is_close_to_scipys(ours, theirs):
    scores = returns(40)
    found = bootstrap(scores, ours, resamples=20_000)
    reference = scipy.stats.bootstrap(
        (scores,), theirs, n_resamples=20_000, method="percentile", confidence_level=0.95, rng=np.random.default_rng(1)
    ).confidence_interval
    width = reference.high - reference.low
    assert found.value == pytest.approx(theirs(scores, axis=-1))
    assert found.low == pytest.approx(reference.low, abs=0.04 * width)
    assert found.high == pytest.approx(reference.high, abs=0.04 * width)


def test_the_interquartile_mean_is_the_default():
    scores = returns(20)
    assert bootstrap(scores) == bootstrap(scores, interquartile_mean)
    assert bootstrap(scores) != bootstrap(scores, mean)


def test_seeds_are_resampled_within_each_task():
    scores = np.tile([[0.0, 100.0, 1_000.0]], (10, 1))  # tasks differ, seeds do not: nothing is uncertain
    assert bootstrap(scores, mean) == (pytest.approx(1_100 / 3),) * 3
    pooled = bootstrap(scores.ravel(), mean)
    assert pooled.high - pooled.low > 100


def test_the_tasks_of_a_resample_are_drawn_independently():
    scores = np.stack([np.arange(30.0), -np.arange(30.0)], axis=1)  # drawn together they would cancel
    found = bootstrap(scores, mean)
    assert found.value == 0
    assert found.low < -1
    assert found.high > 1


def test_the_same_scores_give_the_same_interval():
    scores = returns(30)
    assert bootstrap(scores) == bootstrap(scores.copy())
    assert bootstrap(scores) != bootstrap(scores, seed=1)


def test_an_interval_narrows_with_the_root_of_the_seeds():
    few, many = (bootstrap(returns(n), mean) for n in (50, 5_000))
    assert 6 < (few.high - few.low) / (many.high - many.low) < 16


def test_success_is_a_return_at_or_above_the_mark():
    scores = np.array([194.9, 195.0, 474.0, 475.0, 500.0])
    shares = [float(fraction_at_least(mark)(scores)) for mark in success_marks("CartPole-v1")]
    assert shares == [0.8, 0.4]
    found = bootstrap(scores, fraction_at_least(195))
    assert found.value == 0.8
    assert 0 < found.low < 0.8 < found.high == 1
    assert success_marks("Pendulum-v1") == (-200,)
    assert success_marks("a task of one's own") == ()


@pytest.mark.parametrize(
    "scores",
    [[], [[]], [1.0, np.nan], [1.0, np.inf], 3.0, np.zeros((2, 2, 2))],
    ids=["none", "no seeds", "NaN", "infinite", "one number", "3 axes"],
)
def test_bad_scores_are_refused(scores):
    with pytest.raises(ValueError, match="scores must be finite"):
        bootstrap(scores)


def test_a_constant_shift_between_paired_arms_is_certain():
    theirs = np.random.default_rng(0).integers(0, 500, 25).astype(float)
    assert paired_difference(theirs + 7, theirs) == (7, 7, 7)


def test_a_paired_difference_keeps_the_seeds_together():
    theirs = returns(30)
    ours = theirs + np.random.default_rng(1).normal(5, 1, 30)
    paired = paired_difference(ours, theirs)
    assert paired == bootstrap(ours - theirs, mean)
    assert 4 < paired.low < paired.value < paired.high < 6
    shuffled = paired_difference(ours, theirs[::-1])
    assert shuffled.value == pytest.approx(paired.value)
    assert shuffled.high - shuffled.low > 10 * (paired.high - paired.low)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0, 2.0], [1.0]), ([[1.0]], [[1.0]]), ([1.0, 2.0], 1.0)])
def test_arms_without_the_same_seeds_are_refused(ours, theirs):
    with pytest.raises(ValueError, match="the same seeds"):
        paired_difference(ours, theirs)


def test_a_running_interval_is_the_interval_of_every_point():
    curves = returns(12, 4)
    bands = statistics.running_interval(curves)
    assert bands.shape == (3, 4)
    for point in range(4):
        assert tuple(bands[:, point]) == bootstrap(curves[:, point], resamples=500)


def test_an_estimate_reads_as_value_and_interval():
    assert str(statistics.Estimate(201.25, 190.0, 210.06)) == "201.2 [190.0, 210.1]"


def test_the_paired_p_value_is_that_of_all_sign_patterns():
    ours, theirs = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.0]), np.array([2.0, 2.5, 1.0, 1.0, 4.0, 2.5])
    difference = ours - theirs
    patterns = np.array(list(itertools.product((-1, 1), repeat=6)))
    exact = np.mean(np.abs(patterns @ difference) >= abs(difference.sum()) - 1e-9)
    assert abs(statistics.paired_p_value(ours, theirs) - exact) < 0.02
    assert statistics.paired_p_value(ours, theirs) == statistics.paired_p_value(theirs, ours)
    assert statistics.paired_p_value(ours, ours) == 1.0


def test_a_paired_p_value_of_other_seeds_is_refused():
    with pytest.raises(ValueError, match=r"paired arms need the same seeds; got shapes \(3,\) and \(2,\)"):
        statistics.paired_p_value([1.0, 2.0, 3.0], [1.0, 2.0])


@pytest.mark.parametrize("scores", [[np.nan, 100.0, 120.0], [-np.inf, 100.0, 120.0]])
def test_a_paired_p_value_of_a_score_that_is_not_finite_is_refused(scores):
    with pytest.raises(ValueError, match="finite scores of one seed at least; the differences are"):
        statistics.paired_p_value(scores, [99.0, 101.0, 119.0])
    with pytest.raises(ValueError, match="finite scores of one seed at least"):
        statistics.paired_p_value([], [])


@pytest.mark.parametrize("values", [[0.1, -0.1], [0.1, 2.0], [0.1, np.nan]])
def test_what_are_no_p_values_are_not_corrected(values):
    with pytest.raises(ValueError, match="p-values must be from 0 to 1"):
        statistics.holm(values)


def test_holms_correction_steps_down():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.6, 0.7]), [1.0, 1.0])
