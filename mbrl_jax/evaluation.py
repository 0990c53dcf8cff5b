"""Judging policies: greedy episodes in the real environment, and in imagination to choose among snapshots."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws, replay
from mbrl_jax.environment import Environment, EnvironmentState
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble, Members

Greedy = Callable[[Array], Array]  # observations [..., D] -> actions [...] int32


def play(environment: Environment, greedy: Greedy, starts: EnvironmentState) -> Array:
    """Returns [n] of one real episode from each of the starts [n], up to the time limit."""

    def step(carry: tuple[EnvironmentState, Array, Array], _: None) -> tuple[Any, None]:
        states, running, returns = carry
        after, transition = jax.vmap(environment.step)(states, greedy(states.observation), states)
        returns = returns + jnp.where(running, transition.reward, 0.0)
        running = running & ~transition.terminated & ~transition.truncated
        return (after, running, returns), None

    count = starts.observation.shape[0]
    carry = (starts, jnp.ones(count, bool), jnp.zeros(count, starts.observation.dtype))
    (_, _, returns), _ = jax.lax.scan(step, carry, None, length=environment.spec.time_limit)
    return returns


def sample_first_observations(real: replay.Replay, bits: Array) -> Array:
    """Observations [..., D] drawn uniformly from the first states of the real episodes in a replay.

    Args:
      real: holds at least one first state that has not been overwritten.
      bits: [...] uint32.

    """
    rows = replay.unpack(real.rows)
    first = (rows.depth == 0) & (jnp.arange(real.rows.shape[0], dtype=jnp.int32) < replay.size(real))
    places = jnp.nonzero(first, size=real.rows.shape[0], fill_value=0)[0]
    chosen = places[bits % jnp.sum(first, dtype=jnp.uint32)]
    return rows.observation[chosen]


def play_imagined(ensemble: Ensemble, members: Members, greedy: Greedy, first: Array, key: Array, steps: int) -> Array:
    """Returns [n] of one imagined episode from each of the first observations, dealt evenly to members that stay with them.

    Args:
      ensemble: the shape of the world model.
      members: M of them.
      greedy: the policy.
      first: [n, D], n a multiple of M.
      key: consumed for the Gaussian members' noise.
      steps: after which an episode is cut.

    """
    count = ensemble.sampling_members
    observation = first.reshape(count, -1, first.shape[-1])
    noise = None
    if ensemble.config.kind == "gaussian":
        noise = draws.normal(key, (steps, *observation.shape))

    def step(carry: tuple[Array, Array, Array], noise: Array | None) -> tuple[tuple[Array, Array, Array], None]:
        observation, running, returns = carry
        action = greedy(observation)
        prediction = ens.predict(ensemble, members, observation, action)
        imagined = ens.decode(ensemble, members.normaliser, prediction, observation, action, noise)
        returns = returns + jnp.where(running, imagined.reward, 0.0)
        return (imagined.next_observation, running & ~imagined.terminated, returns), None

    carry = (observation, jnp.ones(observation.shape[:2], bool), jnp.zeros(observation.shape[:2], first.dtype))
    (_, _, returns), _ = jax.lax.scan(step, carry, noise, length=steps)
    return returns.reshape(-1)
