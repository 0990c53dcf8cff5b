"""What value-aware losses see of the agent's value: at the real next states, and in the units of a member's predictions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws
from mbrl_jax.replay import weighted_mean

Value = Callable[[Array], Array]
"""``features [..., F] -> [...]``, what the agent's policy earns from there on; differentiable."""


class ValuedRows(NamedTuple):
    """Real next states and the value there."""

    next_observation: Array  # [..., D]
    value: Array  # [...]
    gradient: Array  # [..., D] of the value, by the normalised prediction; its mean square over the data and its axes is 1


class Valued(NamedTuple):
    """The value, and what is the same for all minibatches of a refit."""

    function: Value
    rows: ValuedRows  # leaves [N, ...] of all real rows, or [B, ...] of a minibatch
    scale: Array  # [D] units of a normalised prediction of the next state, 0 where a target does not vary
    variance: Array  # [] of the value over the data
    key: Array  # of the samples of a refit's predictions
    noise: Array | None = None  # [S, B, D] standard normal, of a minibatch


def prepare(value: Value, next_observation: Array, scale: Array, counted: Array, key: Array) -> Valued:
    """Evaluate a value and its gradient once for a whole refit.

    Args:
      value: the agent's.
      next_observation: [N, D] real.
      scale: [D] units of a normalised prediction, 0 where a target does not vary.
      counted: [N] bool, the rows that are trained on.
      key: of the samples of predictions.

    """
    tiny = jnp.finfo(next_observation.dtype).tiny
    weight = counted.astype(next_observation.dtype)
    values = value(next_observation)
    gradient = scale[None] * jax.grad(lambda seen: jnp.sum(value(seen)))(next_observation)
    square = weighted_mean(jnp.mean(jnp.square(gradient), axis=-1), weight)
    variance = weighted_mean(jnp.square(values - weighted_mean(values, weight)), weight)
    rows = ValuedRows(next_observation, values, gradient / jnp.sqrt(jnp.maximum(square, tiny)))
    return Valued(value, jax.lax.stop_gradient(rows), scale, jnp.maximum(variance, 1e-8), key)


def minibatch(valued: Valued, row: Array, samples: int, step: Array) -> tuple[ValuedRows, Array]:
    """The rows ``row`` [E, B] of a refit's data, leaves [E, B, ...], and fresh noise [samples, B, D] that all members share."""
    rows = jax.tree.map(lambda leaf: leaf.at[row].get(mode="promise_in_bounds"), valued.rows)
    size = valued.rows.next_observation.shape[-1]
    return rows, draws.normal(jax.random.fold_in(valued.key, step), (samples, row.shape[-1], size))
