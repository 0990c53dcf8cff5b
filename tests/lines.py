"""A walk on a line without any chance, once as pure functions and once as a simulator of Gymnasium's interface.

The observation is (place / 4, steps / 8): numbers that float32 has exactly, so that both give the same bits.
"""

import gymnasium
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from mbrl_jax.environments import Environment, EnvironmentSpec, EnvironmentState, Transition, restart

EDGE, LIMIT = 3, 7
SPEC = EnvironmentSpec("line", 2, action_count=2, time_limit=LIMIT, observation_scale=(1.0, 1.0), observation_limits=(1.0, 1.0))


def pure():
    """The walk as pure functions, with unknown reward and termination."""

    def state_of(inner):
        return EnvironmentState(inner, inner.astype(jnp.float32) * jnp.array([0.25, 0.125], jnp.float32))

    def draw_resets(key, shape):
        inner = jnp.zeros((*shape, 2), jnp.int32)
        return EnvironmentState(inner, inner.astype(jnp.float32))

    def step(state, action, fresh):
        move = jnp.stack([2 * action - 1, jnp.ones_like(action)])
        after = state_of(state.inner + move)
        place, time = after.inner
        transition = Transition(
            observation=state.observation,
            action=action,
            reward=0.5 * place.astype(jnp.float32),
            next_observation=after.observation,
            terminated=jnp.abs(place) >= EDGE,
            truncated=time >= LIMIT,
            elapsed=state.inner[1],
        )
        return restart(after, fresh, transition.terminated | transition.truncated), transition

    return Environment(SPEC, draw_resets, step)


class Line(gymnasium.Env):
    """The same walk. Python floats, as many simulators give them; what it is told to do wrong it does at its n-th step."""

    observation_space = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 1.0]), dtype=np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, fault=None, at=None, seeds=None):
        self.fault, self.at, self.seeds, self.made = fault, at, seeds, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.time = 0
        if self.seeds is not None and seed is not None:
            self.seeds.append(seed)
        return self.observation(), {}

    def observation(self):
        return np.array([self.place / 4, self.time / 8])

    def step(self, action):
        assert isinstance(action, np.int64), type(action)
        self.place, self.time, self.made = self.place + 2 * int(action) - 1, self.time + 1, self.made + 1
        told = self.observation(), self.place / 2, abs(self.place) >= EDGE, False, {}
        return told if self.fault is None or self.made != self.at else self.fault(told)


def line(fault=None, at=None, seeds=None):
    """The walk, which is cut after LIMIT steps."""
    return gymnasium.wrappers.TimeLimit(Line(fault, at, seeds), LIMIT)


def walk():
    """The same, as the name tests.lines:walk has it."""
    return line()
