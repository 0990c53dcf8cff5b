"""Statistics over seeds: robust averages with intervals, never the best seed (Agarwal et al. 2021, arXiv:2108.13264)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # [..., n] -> [...]


class Estimate(NamedTuple):
    """A statistic and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As ``492.2 [474.5, 499.3]``, a dash where there is no number."""
        return "-" if np.isnan(self.value) else f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"

    def as_json(self) -> dict[str, Any]:
        """As it stands in ``summary.json`` and ``comparison.json``."""
        return {"value": self.value, "ci95": [self.low, self.high]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None) -> Self | None:
        """The estimate that :meth:`as_json` gave, NaN where a number is null; none where there is no estimate at all."""
        if content is None:
            return None
        return cls(*(np.nan if number is None else number for number in (content["value"], *content["ci95"])))


def interquartile_mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """[...] the mean of the middle half of scores [..., n]; a quarter of n, rounded down, is cut at each end."""
    n = scores.shape[-1]
    cut = n // 4
    return np.mean(np.sort(scores, axis=-1)[..., cut : n - cut], axis=-1)


def mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """[...] the mean of scores [..., n]."""
    return np.mean(scores, axis=-1)


def median(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """[...] the median of scores [..., n]."""
    return np.median(scores, axis=-1)


def fraction_at_least(mark: float) -> Statistic:
    """The statistic that gives the share of scores at or above ``mark``."""
    return lambda scores: np.mean(scores >= mark, axis=-1)


def bootstrap(scores: ArrayLike, statistic: Statistic = interquartile_mean, *, resamples: int = 2_000, seed: int = 0) -> Estimate:
    """A statistic over seeds with its 95 % interval, by the percentile bootstrap.

    Seeds are resampled with replacement within each task (stratified), and the tasks' resampled scores are pooled. The same input
    gives the same interval.

    Args:
      scores: [seeds] or [seeds, tasks], finite.
      statistic: maps pooled scores [..., n] to [...].
      resamples: bootstrap samples.
      seed: of the resampling.

    Raises:
      ValueError: no scores, too many axes, or a score that is not finite.

    """
    table = np.asarray(scores, np.float64)
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.size == 0 or not np.all(np.isfinite(table)):
        raise ValueError(f"scores must be finite, of shape [seeds] or [seeds, tasks] and not empty; got shape {table.shape}")
    seeds, tasks = table.shape
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, seeds, (resamples, seeds, tasks))
    resampled = np.take_along_axis(table[None], chosen, axis=1).reshape(resamples, -1)
    low, high = np.quantile(statistic(resampled), [0.025, 0.975])
    return Estimate(float(statistic(table.reshape(-1))), float(low), float(high))


def paired_difference(
    ours: ArrayLike, theirs: ArrayLike, statistic: Statistic = mean, *, resamples: int = 2_000, seed: int = 0
) -> Estimate:
    """A statistic of the per-seed differences ``ours - theirs`` of two arms that share seeds.

    Args:
      ours: [seeds].
      theirs: [seeds], in the same order.
      statistic: of the differences; the mean tests what the arms' means differ by.
      resamples: bootstrap samples.
      seed: of the resampling.

    Raises:
      ValueError: the arms do not have the same seeds.

    """
    return bootstrap(_differences(ours, theirs), statistic, resamples=resamples, seed=seed)


def estimate(scores: NDArray[np.float64], statistic: Statistic = interquartile_mean) -> Estimate:
    """A statistic over scores [seeds] with its 95 % interval, NaN in every place if a score is not finite."""
    return bootstrap(scores, statistic) if np.all(np.isfinite(scores)) else Estimate(np.nan, np.nan, np.nan)


def _differences(ours: ArrayLike, theirs: ArrayLike) -> NDArray[np.float64]:
    """[seeds] ``ours - theirs``."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired arms need the same seeds; got shapes {a.shape} and {b.shape}")
    return a - b


def paired_p_value(ours: ArrayLike, theirs: ArrayLike, *, flips: int = 20_000, seed: int = 0) -> float:
    """The two-sided p-value of the mean per-seed difference of two arms that share seeds, by random flips of its signs.

    Args:
      ours: [seeds].
      theirs: [seeds], in the same order.
      flips: random sign patterns, the observed one being counted with them.
      seed: of the flips.

    Raises:
      ValueError: the arms do not have the same seeds, there are none, or a score is not finite.

    """
    difference = _differences(ours, theirs)
    if not difference.size or not np.all(np.isfinite(difference)):
        raise ValueError(f"a p-value needs finite scores of one seed at least; the differences are {difference.tolist()}")
    signs = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), (flips, len(difference)))
    at_least = np.abs(signs @ difference) >= np.abs(np.sum(difference)) * (1 - 1e-12)
    return float((1 + np.sum(at_least)) / (1 + flips))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """[n] p-values corrected for their number by Holm's step-down method (Holm 1979), from p-values [n].

    Raises ValueError: one is not within [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p-values must be from 0 to 1; got {p.tolist()}")
    order = np.argsort(p)
    stepped = np.minimum(1.0, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    corrected = np.empty_like(p)
    corrected[order] = stepped
    return corrected


def running_interval(scores: ArrayLike, statistic: Statistic = interquartile_mean) -> NDArray[np.float64]:
    """[3, points] a statistic and its interval at every point of curves [seeds, points]."""
    curves = np.asarray(scores, np.float64)
    return np.array([bootstrap(curves[:, i], statistic, resamples=500) for i in range(curves.shape[1])]).T
