"""Probe environments: each isolates one thing that a value learner must get right."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.environments import Environment, EnvironmentSpec, EnvironmentState, Transition, restart

TIME_LIMIT = 20


class Inner(NamedTuple):
    phase: jax.Array
    time: jax.Array


def probe(name, reward, length):
    """An episode of ``length`` steps, or one that only the time limit ends if that is infinite, and whose phase stands still.

    The observation is (sign, phase): a sign drawn at the reset and the number of steps since. ``reward(s, a, s')`` is known.
    """
    spec = EnvironmentSpec(name, observation_size=2, action_count=2, time_limit=TIME_LIMIT, observation_scale=(1.0, 1.0))

    def terminated(s, a, s2):
        return s2[..., 1] > length - 0.5

    def draw_resets(key, shape):
        sign = jnp.where(jax.random.bernoulli(key, 0.5, shape), 1.0, -1.0)
        inner = Inner(jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
        return EnvironmentState(inner, jnp.stack([sign, jnp.zeros(shape)], axis=-1))

    def step(state, action, fresh):
        phase = state.inner.phase + jnp.where(jnp.isinf(length), 0.0, 1.0)
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


KINDS = {  # the reward of a step, and the length of an episode
    "constant reward": (lambda s, a, s2: jnp.ones(s.shape[:-1]), 1.0),  # the value is 1 everywhere
    "value from the observation": (lambda s, a, s2: s[..., 0], 1.0),  # the sign that it shows
    "discounting": (lambda s, a, s2: jnp.where(s2[..., 1] > 1.5, 1.0, 0.0), 2.0),  # the first step is worth the discount
    "action value": (lambda s, a, s2: (2 * a - 1).astype(s.dtype), 1.0),  # +1 for action 1 and -1 for action 0
    "both": (lambda s, a, s2: (2 * a - 1).astype(s.dtype) * s[..., 0], 1.0),  # +1 if the action fits the sign and -1 if not
    "endless": (lambda s, a, s2: jnp.ones(s.shape[:-1]), jnp.inf),  # the value is 1 / (1 - discount)
}


def make(name):
    """The probe of that name."""
    return probe(name, *KINDS[name])


def number(which):
    """The probe of a number, which may be traced: all probes are one program."""
    rewards, lengths = zip(*KINDS.values(), strict=True)
    return probe("a probe", lambda s, a, s2: jnp.stack([each(s, a, s2) for each in rewards])[which], jnp.array(lengths)[which])
