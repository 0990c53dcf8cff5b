"""What the report measures, on numpy arrays: comparisons of runs, calibration of predictions, and when trajectories part."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_jax import statistics
from mbrl_jax.runs.run import Run
from mbrl_jax.statistics import Estimate

Floats = NDArray[np.float64]

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""The nominal levels of the central intervals whose coverage is measured."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike, *, resamples: int = 2_000, seed: int = 0) -> Estimate:
    """The probability that a seed of one arm returns more than one of another, a tie counting one half, and its 95 % interval.

    P(X > Y) + P(X = Y) / 2 over all pairs of seeds (Agarwal et al. 2021, arXiv:2108.13264). For the interval the seeds of each
    arm are resampled on their own, so the arms need neither share seeds nor have as many.

    Args:
      ours: [n] scores X.
      theirs: [m] scores Y, of the same task.
      resamples: bootstrap samples.
      seed: of the resampling.

    Raises:
      ValueError: an arm has no scores, or one that is not finite.

    """
    x, y = (np.asarray(scores, np.float64) for scores in (ours, theirs))
    if any(scores.ndim != 1 or scores.size == 0 or not np.all(np.isfinite(scores)) for scores in (x, y)):
        raise ValueError(f"scores must be finite, of shape [seeds] and not empty; got shapes {x.shape} and {y.shape}")
    wins = np.where(x[:, None] > y[None], 1.0, np.where(x[:, None] == y[None], 0.5, 0.0))
    generator = np.random.default_rng(seed)
    often_x, often_y = (generator.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), resamples) for scores in (x, y))
    resampled = np.sum((often_x @ wins) * often_y, axis=1) / wins.size
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(float(np.mean(wins)), float(low), float(high))


def performance_profile(returns: ArrayLike, marks: ArrayLike) -> Floats:
    """[3, marks] the share of seeds whose return [seeds] is at least each of the marks, and its pointwise 95 % interval."""
    reached = np.asarray(returns, np.float64)[:, None] >= np.asarray(marks, np.float64)[None]
    return statistics.running_interval(reached, statistics.mean)


def median_seed(returns: ArrayLike) -> int:
    """The number of the seed with the median return of [seeds]; of two in the middle the lower one, of equal ones the first."""
    scores = np.asarray(returns, np.float64)
    return int(np.argsort(scores, kind="stable")[(len(scores) - 1) // 2])


def finite_seeds(*measured: Any) -> NDArray[np.bool_]:
    """[seeds] whether everything that was measured of a seed, arrays [seeds, ...], is finite."""
    each = [np.all(np.isfinite(np.asarray(array).reshape(len(array), -1)), axis=1) for array in measured]
    return np.logical_and.reduce(each)


# ---------------------------------------------------------------------------------------------------------------- calibration


def positions(truth: ArrayLike, mean: ArrayLike, deviation: ArrayLike) -> tuple[Floats, Floats]:
    """Where the truth falls in what was predicted, as a value of the predicted distribution function: uniform if calibrated.

    Args:
      truth: [..., T, D].
      mean: [..., M, T, D] of each member's Gaussian.
      deviation: [..., M, T, D] its standard deviations.

    Returns:
      [..., M, T, D] in each member's Gaussian, and [..., T, D] in the equal mixture of all of them.

    """
    z = member_scores(truth, mean, deviation)
    each = 0.5 * (1 + _erf(z / math.sqrt(2)))
    return each, np.mean(each, axis=-3)


def coverage(position: ArrayLike, levels: Sequence[float] = LEVELS) -> Floats:
    """[seeds, levels] the share of positions [seeds, ...] that lie in the central interval of each level."""
    where = np.asarray(position, np.float64)
    off_centre = np.abs(2 * where.reshape(len(where), -1) - 1)
    return np.mean(off_centre[:, :, None] <= np.asarray(levels)[None, None], axis=1)


def member_scores(truth: ArrayLike, mean: ArrayLike, deviation: ArrayLike) -> Floats:
    """[..., M, T, D] z-scores of the truth in each member's Gaussian; arguments as of :func:`positions`."""
    return (np.expand_dims(np.asarray(truth, np.float64), -3) - np.asarray(mean, np.float64)) / np.asarray(deviation, np.float64)


def mixture_scores(truth: ArrayLike, mean: ArrayLike, deviation: ArrayLike) -> Floats:
    """[..., T, D] z-scores by the mean and the whole variance of the members' mixture; arguments as of :func:`positions`."""
    means, deviations = np.asarray(mean, np.float64), np.asarray(deviation, np.float64)
    variance = np.mean(np.square(deviations), axis=-3) + np.var(means, axis=-3)
    return (np.asarray(truth, np.float64) - np.mean(means, axis=-3)) / np.sqrt(variance)


def root_mean_square(scores: ArrayLike) -> Floats:
    """[seeds, D] of z-scores [seeds, ..., D], over all axes but the first and the last."""
    z = np.asarray(scores, np.float64)
    return np.sqrt(np.mean(np.square(z.reshape(len(z), -1, z.shape[-1])), axis=1))


# --------------------------------------------------------------------------------------------------------------- trajectories


def distances(real: ArrayLike, imagined: ArrayLike, scale: ArrayLike) -> Floats:
    """[steps] how far two trajectories [steps, D] are apart: the largest difference of an axis, in units of that axis's scale."""
    apart = np.abs(np.asarray(real, np.float64) - np.asarray(imagined, np.float64))
    return np.max(apart / np.asarray(scale, np.float64), axis=-1)


def departure(real: ArrayLike, imagined: ArrayLike, scale: ArrayLike, mark: float) -> int | None:
    """The first step at which an imagined trajectory is further than ``mark`` from the real one, none if it never is.

    A trajectory that ends before the real one has left it when it ends.

    Args:
      real: [n, D] states from the start on.
      imagined: [m, D], m at most n.
      scale: [D] of the axes.
      mark: in units of the scale.

    """
    path, own = np.asarray(real), np.asarray(imagined)
    beyond = np.flatnonzero(distances(path[: len(own)], own, scale) > mark)
    if len(beyond):
        return int(beyond[0])
    return len(own) - 1 if len(own) < len(path) else None


def chosen_so_far(run: Run) -> np.ndarray | None:
    """[seeds, rounds] the curve return of the snapshot that was the chosen one at the end of each round; none where
    none is chosen.
    """
    metrics = run.result.metrics
    if getattr(metrics, "is_chosen", None) is None:
        return None
    rounds = np.arange(metrics.is_chosen.shape[1])
    since = np.maximum.accumulate(np.where(metrics.is_chosen, rounds[None], 0), axis=1)
    return np.take_along_axis(metrics.curve_return, since, axis=1)


def mean_depth(run: Run) -> float:
    """Mean depth of the imagined rows that a model-based run kept, over seeds and time; a root's first step counts 1."""
    log = run.result.metrics.lanes
    kept = np.asarray(log.kept, np.float64)
    total = kept.sum()
    return float((np.asarray(log.depth, np.float64) * kept).sum() / total) if total else float("nan")
