"""Figures across seeds, by formulas of their own: means, shares, the interquartile mean, bootstrap intervals."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], float]
"""From scores [n] to one figure."""


class Interval(NamedTuple):
    """A figure and its bootstrap interval."""

    value: float
    low: float
    high: float


def mean(scores: np.ndarray) -> float:
    """The mean of scores [n]."""
    return float(sum(scores.tolist()) / len(scores))


def median(scores: np.ndarray) -> float:
    """The median of scores [n]."""
    ordered = sorted(scores.tolist())
    middle = len(ordered) // 2
    return float(ordered[middle]) if len(ordered) % 2 else float((ordered[middle - 1] + ordered[middle]) / 2)


def iqm(scores: np.ndarray) -> float:
    """The interquartile mean of scores [n]: the mean of what is left when n // 4 are cut off at each end."""
    cut = len(scores) // 4
    kept = sorted(scores.tolist())[cut : len(scores) - cut]
    return float(sum(kept) / len(kept))


def share_at_least(mark: float) -> Statistic:
    """The statistic that is the share of scores [n] at or above ``mark``."""
    return lambda scores: float(np.count_nonzero(scores >= mark) / len(scores))


def resample_indices(n: int, resamples: int, seed: int) -> np.ndarray:
    """[resamples, n] numbers of the scores in each bootstrap resample."""
    return np.random.default_rng(seed).integers(0, n, (resamples, n))


def bootstrap(scores: np.ndarray, statistic: Statistic, indices: np.ndarray, confidence: float = 0.95) -> Interval:
    """``statistic`` of scores [n] with the percentile interval over the resamples ``indices`` [resamples, n]."""
    resampled = np.array([statistic(scores[row]) for row in indices])
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(statistic(scores), float(low), float(high))


def paired_difference(
    first: np.ndarray, second: np.ndarray, statistic: Statistic, indices: np.ndarray, confidence: float = 0.95
) -> Interval:
    """``statistic`` of first - second, arms [n] that share their seeds, with its interval over resampled seeds.

    Raises:
      ValueError: the arms do not have the same number of seeds.

    """
    if first.shape != second.shape:
        raise ValueError(f"paired arms need the same seeds, not {first.shape} and {second.shape}")
    return bootstrap(first - second, statistic, indices, confidence)
