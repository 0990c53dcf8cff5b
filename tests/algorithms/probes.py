"""Probe environments: each isolates one thing that a value learner must get right."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.environments import Environment, EnvironmentSpec, EnvironmentState, Transition, restart

TIME_LIMIT = 20


class Inner(NamedTuple):
    phase: jax.Array
    time: jax.Array


def probe(name, reward, length, *, random_start=True, reward_of_action=False):
    """An episode of ``length`` steps, or one that only the time limit ends if that is none.

    The observation is (sign, phase): a sign drawn at the reset and the number of steps since. ``reward(s, a, s')`` is known.
    """
    spec = EnvironmentSpec(name, observation_size=2, action_count=2, time_limit=TIME_LIMIT, observation_scale=(1.0, 1.0))

    def terminated(s, a, s2):
        never = jnp.zeros(s2.shape[:-1], bool)
        return never if length is None else s2[..., 1] > length - 0.5

    def draw_resets(key, shape):
        sign = jnp.where(jax.random.bernoulli(key, 0.5, shape), 1.0, -1.0) if random_start else jnp.ones(shape)
        inner = Inner(jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
        return EnvironmentState(inner, jnp.stack([sign, jnp.zeros(shape)], axis=-1))

    def step(state, action, fresh):
        phase = state.inner.phase + (0.0 if length is None else 1.0)
        observation = jnp.stack([state.observation[0], phase])
        time = state.inner.time + 1
        ended, cut = terminated(state.observation, action, observation), time >= TIME_LIMIT
        transition = Transition(
            observation=state.observation,
            action=action,
            reward=reward(state.observation, action, observation),
            next_observation=observation,
            terminated=ended,
            truncated=cut,
            elapsed=state.inner.time,
        )
        return restart(EnvironmentState(Inner(phase, time), observation), fresh, ended | cut), transition

    return Environment(spec, draw_resets, step, reward, terminated)


def constant_reward():
    """One step, reward 1: the value is 1 everywhere."""
    return probe("constant reward", lambda s, a, s2: jnp.ones(s.shape[:-1]), 1)


def observation_value():
    """One step, the reward is the sign that the observation shows."""
    return probe("value from the observation", lambda s, a, s2: s[..., 0], 1)


def discounting():
    """Two steps, reward 1 at the second: the first is worth the discount."""
    return probe("discounting", lambda s, a, s2: jnp.where(s2[..., 1] > 1.5, 1.0, 0.0), 2)


def action_value():
    """One step, the reward is +1 for action 1 and -1 for action 0."""
    return probe("action value", lambda s, a, s2: (2 * a - 1).astype(s.dtype), 1)


def observation_and_action():
    """One step, the reward is +1 if the action fits the sign and -1 if not."""
    return probe("both", lambda s, a, s2: (2 * a - 1).astype(s.dtype) * s[..., 0], 1)


def endless():
    """Reward 1 a step, and only the time limit ends an episode: the value is 1 / (1 - discount)."""
    return probe("endless", lambda s, a, s2: jnp.ones(s.shape[:-1]), None)
