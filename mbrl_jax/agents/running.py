"""Running statistics of observations, by which an agent standardises what it sees."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

SMALLEST_DEVIATION = 1e-3  # of an axis; one that varies less is divided by this


class Statistics(NamedTuple):
    """Mean and variance of the rows so far."""

    rows: Array  # [] by their weights
    mean: Array  # [D]
    variance: Array  # [D], ddof 0


def init(size: int) -> Statistics:
    """Of no rows: the identity for observations [..., size]."""
    return Statistics(jnp.zeros(()), jnp.zeros(size), jnp.ones(size))


def take_in(statistics: Statistics, observation: Array, weight: Array) -> Statistics:
    """The statistics with observations [B, D] of weights [B] taken in (Chan, Golub & LeVeque 1983)."""
    rows = jnp.sum(weight)
    share = (weight / jnp.maximum(rows, jnp.finfo(weight.dtype).tiny))[:, None]
    mean = jnp.sum(share * observation, axis=0)
    variance = jnp.sum(share * jnp.square(observation - mean[None]), axis=0)
    total = statistics.rows + rows
    new = rows / jnp.maximum(total, 1.0)  # the share of these rows in all
    moved = mean - statistics.mean
    return Statistics(
        rows=total,
        mean=statistics.mean + new * moved,
        variance=(1 - new) * statistics.variance + new * variance + new * (1 - new) * jnp.square(moved),
    )


def standardise(statistics: Statistics, observation: Array) -> Array:
    """Observations [..., D] less their mean, over their deviation."""
    last = (1,) * (observation.ndim - 1) + (-1,)
    deviation = jnp.maximum(jnp.sqrt(statistics.variance), SMALLEST_DEVIATION)
    return (observation - statistics.mean.reshape(last)) / deviation.reshape(last)
