"""Figures over seeds against scipy and against formulas of the reference's own."""

import numpy as np
import pytest
import scipy.stats

from mbrl_jax import statistics
from mbrl_jax.reference import statistics as reference

from .agreement import Agreement


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 7, 64, 101])
def test_the_interquartile_mean_is_scipys_trimmed_mean(rng: np.random.Generator, agree: Agreement, seeds: int) -> None:
    scores = rng.uniform(0, 500, seeds)
    agree("interquartile mean", statistics.interquartile_mean(scores), scipy.stats.trim_mean(scores, 0.25), 1e-12, "scipy")
    agree("interquartile mean", statistics.interquartile_mean(scores), reference.iqm(scores), 1e-12)
    agree("mean and median", statistics.mean(scores), reference.mean(scores), 1e-12)
    agree("mean and median", statistics.median(scores), reference.median(scores), 1e-12)


def test_shares_count_scores_at_the_mark_itself(rng: np.random.Generator, agree: Agreement) -> None:
    scores = rng.integers(190, 200, 50).astype(float)
    assert (scores == 195).any()
    ours = statistics.fraction_at_least(195)(scores)
    agree("shares at or above a mark", ours, reference.share_at_least(195)(scores), 0)
    agree("shares at or above a mark", ours, 1 - scipy.stats.percentileofscore(scores, 195, "strict") / 100, 1e-12, "scipy")


@pytest.mark.parametrize("seeds", [10, 64])
def test_bootstrap_intervals_are_the_percentiles_of_resampled_figures(
    rng: np.random.Generator, agree: Agreement, seeds: int
) -> None:
    first, second = rng.uniform(0, 500, seeds), rng.uniform(0, 500, seeds)
    indices = np.random.default_rng(3).integers(0, seeds, (2_000, seeds, 1))[..., 0]  # ours has an axis of tasks
    pairs = ((statistics.interquartile_mean, reference.iqm), (statistics.mean, reference.mean))
    for ours, theirs in pairs:
        got = statistics.bootstrap(first, ours, seed=3)
        agree("bootstrap intervals, same resamples", tuple(got), tuple(reference.bootstrap(first, theirs, indices)), 1e-12)
        difference = statistics.paired_difference(first, second, ours, seed=3)
        expected = reference.paired_difference(first, second, theirs, indices)
        agree("paired differences, same resamples", tuple(difference), tuple(expected), 1e-12)


def test_bootstrap_intervals_are_scipys_but_for_the_resamples(rng: np.random.Generator, agree: Agreement) -> None:
    scores = rng.normal(300, 80, 64)
    ours = statistics.bootstrap(scores, statistics.mean, resamples=20_000)
    options = {"n_resamples": 20_000, "method": "percentile", "rng": np.random.default_rng(int(rng.integers(2**31)))}
    theirs = scipy.stats.bootstrap((scores,), np.mean, **options).confidence_interval
    width = theirs.high - theirs.low
    agree("bootstrap intervals, own resamples", np.array([ours.low, ours.high]) / width, np.array(theirs) / width, 0.02, "scipy")
