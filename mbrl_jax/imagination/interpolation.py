"""How far to trust the learned world and how far experience alone, by what needs no real dynamics.

Both errors are one-step errors of the Bellman equation at held-out real transitions ``(s, a, r, s')``, with the agent's value V
and the model's expectation E over its members:

    of the value   V(s)  -  E[r^ + g V(s^')](s, greedy a)
    of the model   E[r^ + g V(s^')](s, a)  -  (r + g V(s'))                      measure: held_out
                   the members' deviation in r^ + g V(s^') at (s, a)             measure: members

The first one is what the value has not learned of the model. The second one is what the model gets wrong as far as the value
can see it, by what came or by what its members do not agree on. The model's share in the sum of both magnitudes is near 1 where
more imagined data would teach the model's mistakes, and near 0 where they would teach what there is to learn. Where the world
itself is random, or the value sees what is, the error against what came never falls below that noise, and the members' deviation
does.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from mbrl_jax.imagination.mismatch import members_targets, target
from mbrl_jax.model.protocol import WorldModel
from mbrl_jax.replay import Rows, weighted_mean


def model_share(
    world: WorldModel,
    params: Any,
    greedy: Callable[[Array], Array],
    value: Callable[[Array], Array],
    discount: Array | float,
    rows: Rows,
    weight: Array,
    measure: str = "held_out",
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
      measure: of the model's error, ``held_out`` or ``members``.

    Raises:
      ConfigError: the world's features do not tell where a rollout stands.

    """

    def imagined(action: Array) -> Array:
        return members_targets(world, params, value, discount, rows.observation, action, "mixing")

    said = imagined(rows.action)  # [M, h]
    if measure == "members":
        of_model = jnp.std(said, axis=0)
    else:
        of_model = jnp.mean(said, axis=0) - target(value, discount, rows.reward, rows.terminated, rows.next_observation)
    of_value = value(rows.observation) - jnp.mean(imagined(greedy(rows.observation)), axis=0)
    model, valued = (weighted_mean(jnp.abs(error), weight) for error in (of_model, of_value))
    return model / jnp.maximum(model + valued, jnp.finfo(model.dtype).tiny)
