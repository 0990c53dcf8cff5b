"""What the members of an ensemble know together."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError
from mbrl_jax.model.protocol import Prediction


def variance(prediction: Prediction) -> Array:
    """[M, ..., D'] the variances that the members predict.

    Raises:
      ConfigError: the members are deterministic.

    """
    if prediction.log_variance is None:
        raise ConfigError(
            "model.prediction: 'deterministic' does not fit; this needs predicted variances, so it must be 'gaussian'"
        )
    return jnp.exp(prediction.log_variance)


def seen_from_first(mean: Array) -> Array:
    """Means [M, ...] as seen from the first member's, so that members who agree differ by exactly 0."""
    return mean - mean[:1]


class Fusion(NamedTuple):
    """What members that err independently know together (Infoprop, Frauenknecht et al. 2025, arXiv:2501.16918)."""

    mean: Array  # [..., D'] precision-weighted
    variance: Array  # [..., D'] harmonic mean of the members' variances
    gain: Array  # [..., D'] share of the whole variance that is not the members' disagreement
    remaining: Array  # [..., D'] variance that is left when a member's sample is known, (1 - gain) * variance


def fuse(prediction: Prediction) -> Fusion:
    """The members' fusion, from leaves [M, ..., D']."""
    each, apart = variance(prediction), seen_from_first(prediction.mean)
    together = 1 / jnp.mean(1 / each, axis=0)
    shift = together * jnp.mean(apart / each, axis=0)
    spread = jnp.mean(jnp.square(apart - shift[None]), axis=0)
    whole = together + spread
    return Fusion(prediction.mean[0] + shift, together, together / whole, together * spread / whole)
