"""Small tasks of one's own: points that are to be kept near the middle, moved by one number of the action each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.environments import Environment, EnvironmentSpec, EnvironmentState, Transition, restart

TIME_LIMIT = 10


class Inner(NamedTuple):
    time: jax.Array


def points(actions=1, *, discrete=False, axis=None):
    """``actions`` points in [-1, 1]; ``axis`` adds one more to the observation: (value at a reset, growth of each step, scale).

    Continuous actions pull each point by a number of its own, the two discrete ones pull all points to either side. Episodes
    end at the time limit alone. The reward is minus the points' mean square.
    """
    extra = [] if axis is None else [axis]
    size = actions + len(extra)
    spec = EnvironmentSpec(
        "points",
        observation_size=size,
        action_count=2 if discrete else 0,
        time_limit=TIME_LIMIT,
        observation_scale=(1.0,) * actions + tuple(scale for _, _, scale in extra),
        action_size=0 if discrete else actions,
    )

    def dynamics(s, a):
        pull = (2 * a - 1).astype(s.dtype)[..., None] if discrete else jnp.clip(a, -1.0, 1.0)
        lead = (1,) * (s.ndim - 1) + (-1,)
        growth = jnp.asarray([growth for _, growth, _ in extra], s.dtype).reshape(lead)
        return jnp.concatenate([0.9 * s[..., :actions] + 0.1 * pull, s[..., actions:] + growth], axis=-1)

    def reward(s, a, s2):
        return -jnp.mean(jnp.square(s2[..., :actions]), axis=-1)

    def terminated(s, a, s2):
        return jnp.zeros(s2.shape[:-1], bool)

    def draw_resets(key, shape):
        places = jax.random.uniform(key, (*shape, actions), minval=-1.0, maxval=1.0)
        values = jnp.asarray([value for value, _, _ in extra], places.dtype)
        observation = jnp.concatenate([places, jnp.broadcast_to(values, (*shape, len(extra)))], axis=-1)
        return EnvironmentState(Inner(jnp.zeros(shape, jnp.int32)), observation)

    def step(state, action, fresh):
        observation = dynamics(state.observation, action)
        time = state.inner.time + 1
        transition = Transition(
            observation=state.observation,
            action=action,
            reward=reward(state.observation, action, observation),
            next_observation=observation,
            terminated=jnp.zeros((), bool),
            truncated=time >= TIME_LIMIT,
            elapsed=state.inner.time,
        )
        return restart(EnvironmentState(Inner(time), observation), fresh, transition.truncated), transition

    return Environment(spec, draw_resets, step, reward, terminated, dynamics)
