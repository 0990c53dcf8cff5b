"""How much the members of an ensemble disagree, one number for every place that they were asked about.

All measures are of predictions in normalised units, a member saying that the targets are ``N(mean, diag exp(log_variance))``.
Where all members say the same, each of them is 0, but for ``max_aleatoric``, which is of the noise that they expect.
"""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from mbrl_jax.model.fusion import fuse, seen_from_first, variance
from mbrl_jax.model.protocol import Prediction

Measure = Callable[[Prediction, Array], Array]  # (leaves [M, ..., D'], drawn member [...] int32) -> [...]


def std(prediction: Prediction, member: Array | None = None) -> Array:
    """[...] the root mean square over targets of the standard deviation (ddof 0) of the members' means."""
    return jnp.sqrt(jnp.mean(jnp.var(seen_from_first(prediction.mean), axis=0), axis=-1))


def max_pairwise(prediction: Prediction, member: Array | None = None) -> Array:
    """[...] the largest distance between two members' means (MOReL, Kidambi et al. 2020, arXiv:2005.05951)."""
    distances = [jnp.sum(jnp.square(a - b), axis=-1) for a, b in itertools.combinations(prediction.mean, 2)]
    return jnp.sqrt(jnp.max(jnp.stack(distances), axis=0))


def max_aleatoric(prediction: Prediction, member: Array | None = None) -> Array:
    """[...] the largest norm of a member's predicted deviations (MOPO, Yu et al. 2020, arXiv:2005.13239)."""
    return jnp.sqrt(jnp.max(jnp.sum(variance(prediction), axis=-1), axis=0))


def gjs(prediction: Prediction, member: Array | None = None) -> Array:
    """[...] the geometric Jensen-Shannon divergence with weight one half, mean over pairs (MACURA, Frauenknecht et al. 2024).

    For that weight it is the Bhattacharyya distance. In this form no large terms cancel.
    """
    mean, log_variance, each = prediction.mean, prediction.log_variance, variance(prediction)
    assert log_variance is not None
    pairs = []
    for e, f in itertools.combinations(range(mean.shape[0]), 2):
        apart = jnp.square(mean[e] - mean[f]) / (4 * (each[e] + each[f]))
        # ln((v + w) / (2 sqrt(v w))) = ln cosh(half the difference of the log-variances), and cosh x - 1 = 2 sinh^2(x / 2)
        unlike = jnp.log1p(2 * jnp.square(jnp.sinh(0.25 * (log_variance[e] - log_variance[f]))))
        pairs.append(jnp.sum(apart + 0.5 * unlike, axis=-1))
    return jnp.mean(jnp.stack(pairs), axis=0)


def one_vs_rest(prediction: Prediction, member: Array) -> Array:
    """[...] KL divergence of the drawn member from the Gaussian that matches the others' mixture (M2AC, Pan et al. 2020).

    Args:
      prediction: leaves [M, ..., D'], M at least 2.
      member: [...] int32.

    """
    mean, each = seen_from_first(prediction.mean), variance(prediction)
    count = mean.shape[0]
    index = jnp.arange(count, dtype=jnp.int32).reshape((count,) + (1,) * member.ndim)
    drawn = (index == member[None]).astype(mean.dtype)[..., None]  # [M, ..., 1]
    other = (1 - drawn) / (count - 1)
    mean_m, variance_m = jnp.sum(drawn * mean, axis=0), jnp.sum(drawn * each, axis=0)
    mean_r = jnp.sum(other * mean, axis=0)
    wider = jnp.sum(other * ((each - variance_m[None]) + jnp.square(mean - mean_r[None])), axis=0)
    variance_r = variance_m + wider
    excess = -wider / variance_r  # the ratio of variances less 1, by which small divergences keep their digits
    return 0.5 * jnp.sum(excess - jnp.log1p(excess) + jnp.square(mean_m - mean_r) / variance_r, axis=-1)


def information_loss(prediction: Prediction, resolution: Array | float) -> Array:
    """[..., D'] bits that one imagined step loses for the members' disagreement, at a resolution in normalised units; never
    negative.
    """
    entropy = 0.5 * jnp.log2(2 * jnp.pi * jnp.e * fuse(prediction).remaining)
    return jnp.maximum(entropy - jnp.log2(jnp.asarray(resolution, entropy.dtype)), 0.0)


def quantile_of_valid(values: Array, valid: Array, quantile: Array | float) -> Array:
    """[...] a quantile, linearly interpolated, of those values [N, ...] that are valid [N], of which there is at least one."""
    ordered = jnp.sort(jnp.where(valid.reshape((-1,) + (1,) * (values.ndim - 1)), values, jnp.inf), axis=0)
    last = jnp.sum(valid, dtype=jnp.int32) - 1
    place = jnp.asarray(quantile, values.dtype) * last.astype(values.dtype)
    below = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, last)
    low, high = ordered[below], ordered[jnp.minimum(below + 1, last)]
    return low + (place - below.astype(values.dtype)) * (high - low)


MEASURES: dict[str, Measure] = {
    "std": std,
    "max_pairwise": max_pairwise,
    "max_aleatoric": max_aleatoric,
    "gjs": gjs,
    "one_vs_rest": one_vs_rest,
}
GAUSSIAN_MEASURES = ("max_aleatoric", "gjs", "one_vs_rest")  # these need predicted variances
