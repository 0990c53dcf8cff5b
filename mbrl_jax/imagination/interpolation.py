"""How far to trust the learned world and how far experience alone, by what needs no real dynamics.

Both errors are one-step errors of the Bellman equation at held-out real transitions ``(s, a, r, s')``, with the agent's value V
and the model's expectation E over its members:

    of the model   E[r^ + g V(s^')](s, a)  -  (r + g V(s'))
    of the value   V(s)  -  E[r^ + g V(s^')](s, greedy a)

The first one is what the model gets wrong as far as the value can see it. The second one is what the value has not learned of
the model. The share of the first in the sum of both magnitudes is near 1 where more imagined data would teach the model's
mistakes, and near 0 where they would teach what there is to learn. Where the world itself is random, the first one never falls
below its noise.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from mbrl_jax.model.protocol import WorldModel, members_step
from mbrl_jax.replay import Rows, weighted_mean


def model_share(
    world: WorldModel,
    params: Any,
    greedy: Callable[[Array], Array],
    value: Callable[[Array], Array],
    discount: Array | float,
    rows: Rows,
    weight: Array,
) -> Array:
    """[] the model's share, from 0 to 1, in the error of the agent's value at real transitions.

    Args:
      world: the world model.
      params: its, as imagination uses them.
      greedy: ``observations [..., D] -> actions [...]``.
      value: ``features [..., F] -> [...]``, the agent's.
      discount: the agent's.
      rows: [h] real transitions that the model is not trained on.
      weight: [h] 1 for those that are data, else 0.

    Raises:
      ConfigError: the world's features do not tell where a rollout stands.

    """

    def backup(reward: Array, over: Array, after: Array) -> Array:
        return reward + discount * (1 - over.astype(reward.dtype)) * value(after)

    def imagined(action: Array) -> Array:
        told = members_step(world, params, rows.observation, action, "mixing")
        return jnp.mean(backup(told.reward, told.terminated, world.features(told.belief)), axis=0)

    of_model = imagined(rows.action) - backup(rows.reward, rows.terminated, rows.next_observation)
    of_value = value(rows.observation) - imagined(greedy(rows.observation))
    model, valued = (weighted_mean(jnp.abs(error), weight) for error in (of_model, of_value))
    return model / jnp.maximum(model + valued, jnp.finfo(model.dtype).tiny)
