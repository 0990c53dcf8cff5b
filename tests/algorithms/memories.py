"""A task that only what remembers can do."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.environments import Environment, EnvironmentSpec, EnvironmentState, Transition, restart


class Inner(NamedTuple):
    cue: jax.Array
    time: jax.Array


def cue(limit=30):
    """An episode of two steps: a sign is shown, then it is hidden, and an action earns +1 if it fits the sign and -1 if not."""
    spec = EnvironmentSpec("a cue", observation_size=2, action_count=2, time_limit=limit, observation_scale=(1.0, 1.0))

    def draw_resets(key, shape):
        sign = jnp.where(jax.random.bernoulli(key, 0.5, shape), 1.0, -1.0)
        return EnvironmentState(Inner(sign, jnp.zeros(shape, jnp.int32)), jnp.stack([sign, jnp.zeros(shape)], axis=-1))

    def step(state, action, fresh):
        time = state.inner.time + 1
        observation = jnp.stack([jnp.zeros(()), time.astype(jnp.float32)])
        earned = state.inner.cue * (2 * action - 1).astype(jnp.float32)
        transition = Transition(
            observation=state.observation,
            action=action,
            reward=jnp.where(time == 2, earned, 0.0),
            next_observation=observation,
            terminated=time == 2,
            truncated=time >= limit,
            elapsed=state.inner.time,
        )
        return restart(EnvironmentState(Inner(state.inner.cue, time), observation), fresh, time >= 2), transition

    return Environment(spec, draw_resets, step)
