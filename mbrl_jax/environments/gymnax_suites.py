"""Environments of gymnax whose reward or termination no observation tells: MinAtar, the behaviour suite, and a few more.

A world model learns both. Several have noise in their dynamics: its key is drawn with the reset and folded with the number of
the step, so an episode is a function of its reset and its actions, and no two resets share their noise.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.environments.protocol import Environment, EnvironmentSpec, EnvironmentState, Transition, in_units, restart
from mbrl_jax.environments.registry import register
from mbrl_jax.environments.simulators import lenient, like, strong

MINATAR = ("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar")
BSUITE = ("Catch-bsuite", "DeepSea-bsuite", "DiscountingChain-bsuite", "MemoryChain-bsuite", "UmbrellaChain-bsuite")
MISC = ("FourRooms-misc", "MetaMaze-misc", "PointRobot-misc", "Reacher-misc", "Swimmer-misc")


class Noisy(NamedTuple):
    """A simulator's state, and what the noise of its episode follows from."""

    simulator: Any
    key: Array  # [] uint32 [2], data of a threefry key


def make(config: EnvironmentConfig) -> Environment:
    """The task of gymnax that ``config`` names."""
    import gymnax  # takes seconds

    with lenient():
        simulator, parameters = gymnax.make(config.name)
        if config.time_limit is not None:
            parameters = parameters.replace(max_steps_in_episode=config.time_limit)
        seen, actions = simulator.observation_space(parameters), simulator.action_space(parameters)
    shape, continuous = tuple(seen.shape), not hasattr(actions, "n")
    spec = EnvironmentSpec(
        name=config.name,
        observation_size=int(np.prod(shape)),
        action_count=0 if continuous else int(actions.n),
        time_limit=int(parameters.max_steps_in_episode),
        observation_scale=_scale(seen.low, seen.high, shape),
        action_size=int(np.prod(actions.shape)) if continuous else 0,
        action_scale=_scale(actions.low, actions.high, actions.shape) if continuous else (),
        observation_shape=shape if len(shape) > 1 else (),
    )

    def observed(observation: Array) -> Array:
        return observation.astype(jnp.zeros(()).dtype).reshape(shape)

    def reset(key: Array) -> EnvironmentState:
        key_reset, key_noise = jax.random.split(key)
        with lenient():
            observation, inner = simulator.reset_env(key_reset, parameters)
        return EnvironmentState(Noisy(strong(inner), jax.random.key_data(key_noise)), observed(observation))

    def draw_resets(key: Array, lead: tuple[int, ...]) -> EnvironmentState:
        states = jax.vmap(reset)(jax.random.split(key, int(np.prod(lead, dtype=int))))
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), states)

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        before = state.inner.simulator
        elapsed = jnp.asarray(before.time, jnp.int32)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.inner.key, impl="threefry2x32"), elapsed)
        with lenient():
            following, inner, reward, terminated, _ = simulator.step_env(key, before, in_units(spec, action), parameters)
            truncated = simulator.is_truncated(inner, parameters)
        inner = like(inner, before)
        transition = Transition(
            observation=state.observation,
            action=action,
            reward=jnp.asarray(reward).astype(state.observation.dtype).reshape(()),
            next_observation=observed(following),
            terminated=jnp.asarray(terminated, bool),
            truncated=jnp.asarray(truncated, bool),
            elapsed=elapsed,
        )
        after = EnvironmentState(Noisy(inner, state.inner.key), transition.next_observation)
        return restart(after, fresh, transition.terminated | transition.truncated), transition

    return Environment(spec, draw_resets, step)


def _scale(low: Any, high: Any, shape: tuple[int, ...]) -> tuple[float, ...]:
    """The largest magnitude of each number of a space where it has bounds, else 1."""
    largest = np.maximum(np.abs(np.asarray(low, np.float64)), np.abs(np.asarray(high, np.float64)))
    bounded = np.isfinite(largest) & (largest > 0) & (largest < 1e6)
    return tuple(np.broadcast_to(np.where(bounded, largest, 1.0), shape).ravel().tolist())


for _name in (*MINATAR, *BSUITE, *MISC):
    register(_name, make)
