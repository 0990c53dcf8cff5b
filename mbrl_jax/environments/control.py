"""The swing-up tasks of the DeepMind Control suite (Tassa et al. 2018) as pure functions.

They move by :mod:`mbrl_jax.environments.mechanics`, so that a step agrees with the suite's. Neither task terminates; both last
1,000 steps, with one simulator step for each action (no action repeat).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax.config import EnvironmentConfig, PhysicsConfig
from mbrl_jax.environments.mechanics import cartpole_step, pendulum_step, scaled_cartpole, scaled_pendulum
from mbrl_jax.environments.protocol import Environment, EnvironmentSpec, EnvironmentState, Transition, restart
from mbrl_jax.environments.registry import TaskView, axis_curve, register

TIME_LIMIT = 1_000  # steps
UPRIGHT = math.cos(math.radians(8))  # the cosine of the angle from which a pendulum counts as upright


class Motion(NamedTuple):
    """Where the simulator's state is: generalised positions and velocities, and the steps since the reset."""

    position: Array  # [J]: the cart [m] and the pole's angle from upright [rad], or the angle alone
    velocity: Array  # [J]
    time: Array  # [] int32


# ---------------------------------------------------------------------------------------------------------------- cartpole


def _tolerance(value: Array, margin: float) -> Array:
    """The suite's Gaussian tolerance of a target 0: 1 there, and 0.1 at ``margin`` from it."""
    return jnp.exp(math.log(0.1) * jnp.square(value / margin))


def _cartpole_reward(s: Array, a: Array, s2: Array) -> Array:
    upright = (s2[..., 1] + 1) / 2
    centred = (1 + _tolerance(s2[..., 0], 2.0)) / 2
    small_control = (4 + jnp.maximum(1 - jnp.square(a[..., 0]), 0)) / 5
    small_velocity = (1 + _tolerance(s2[..., 4], 5.0)) / 2
    return upright * centred * small_control * small_velocity


def _cartpole_observation(position: Array, velocity: Array) -> Array:
    angle = position[..., 1]
    return jnp.stack([position[..., 0], jnp.cos(angle), jnp.sin(angle), velocity[..., 0], velocity[..., 1]], -1)


def _cartpole_motion(s: Array) -> tuple[Array, Array]:
    return jnp.stack([s[..., 0], jnp.arctan2(s[..., 2], s[..., 1])], -1), s[..., 3:5]


def _cartpole_reset(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    drawn = 0.01 * jax.random.normal(key, (*shape, 4))
    hanging = jnp.asarray(np.array([0, np.pi]), drawn.dtype).reshape((1,) * len(shape) + (2,))
    return drawn[..., :2] + hanging, drawn[..., 2:]


# ---------------------------------------------------------------------------------------------------------------- pendulum


def _pendulum_reward(s: Array, a: Array, s2: Array) -> Array:
    return (s2[..., 0] >= UPRIGHT).astype(s2.dtype)


def _pendulum_observation(position: Array, velocity: Array) -> Array:
    return jnp.concatenate([jnp.cos(position), jnp.sin(position), velocity], -1)


def _pendulum_motion(s: Array) -> tuple[Array, Array]:
    return jnp.arctan2(s[..., 1:2], s[..., 0:1]), s[..., 2:3]


def _pendulum_reset(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    angle = jax.random.uniform(key, (*shape, 1), minval=-np.pi, maxval=np.pi)
    return angle, jnp.zeros_like(angle)


# ------------------------------------------------------------------------------------------------------------------- tasks


class _Task(NamedTuple):
    observation_scale: tuple[float, ...]
    angles: tuple[tuple[int, int], ...]
    body: Callable[[PhysicsConfig], Any]  # what moves, with its numbers times the factors
    step: Callable[[Array, Array, Array, Any], tuple[Array, Array]]  # positions, velocities, actions and the body
    observe: Callable[[Array, Array], Array]
    motion: Callable[[Array], tuple[Array, Array]]  # positions and velocities of observations
    reset: Callable[[Array, tuple[int, ...]], tuple[Array, Array]]
    reward: Callable[[Array, Array, Array], Array]


_TASKS = {
    "control/cartpole-swingup": _Task(
        observation_scale=(1.8, 1.0, 1.0, 5.0, 10.0),
        angles=((1, 2),),
        body=scaled_cartpole,
        step=cartpole_step,
        observe=_cartpole_observation,
        motion=_cartpole_motion,
        reset=_cartpole_reset,
        reward=_cartpole_reward,
    ),
    "control/pendulum-swingup": _Task(
        observation_scale=(1.0, 1.0, 10.0),
        angles=((0, 1),),
        body=scaled_pendulum,
        step=pendulum_step,
        observe=_pendulum_observation,
        motion=_pendulum_motion,
        reset=_pendulum_reset,
        reward=_pendulum_reward,
    ),
}


def _never(s: Array, a: Array, s2: Array) -> Array:
    return jnp.zeros(s2.shape[:-1], bool)


def _make(config: EnvironmentConfig) -> Environment:
    """The task that ``config`` names."""
    task = _TASKS[config.name]
    body = task.body(config.physics)
    spec = EnvironmentSpec(
        name=config.name,
        observation_size=len(task.observation_scale),
        action_count=0,
        time_limit=TIME_LIMIT if config.time_limit is None else config.time_limit,
        observation_scale=task.observation_scale,
        action_size=1,
        angles=task.angles,
    )

    def draw_resets(key: Array, shape: tuple[int, ...]) -> EnvironmentState:
        position, velocity = task.reset(key, shape)
        return EnvironmentState(Motion(position, velocity, jnp.zeros(shape, jnp.int32)), task.observe(position, velocity))

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        inner: Motion = state.inner
        position, velocity = task.step(inner.position, inner.velocity, jnp.clip(action[..., 0], -1.0, 1.0), body)
        observation = task.observe(position, velocity)
        truncated = inner.time + 1 >= spec.time_limit
        transition = Transition(
            observation=state.observation,
            action=action,
            reward=task.reward(state.observation, action, observation),
            next_observation=observation,
            terminated=jnp.zeros_like(truncated),
            truncated=truncated,
            elapsed=inner.time,
        )
        after = EnvironmentState(Motion(position, velocity, inner.time + 1), observation)
        return restart(after, fresh, truncated), transition

    def dynamics(observation: Array, action: Array) -> Array:
        lead = jnp.broadcast_shapes(observation.shape[:-1], action.shape[:-1])
        position, velocity = task.motion(jnp.broadcast_to(observation, (*lead, observation.shape[-1])))
        force = jnp.clip(jnp.broadcast_to(action[..., 0], lead), -1.0, 1.0)
        return task.observe(*task.step(position, velocity, force, body))

    return Environment(spec, draw_resets, step, task.reward, _never, dynamics)


_VIEWS = {
    "control/cartpole-swingup": TaskView(
        "cartpole_swingup",
        50,
        ("position", "cos θ", "sin θ", "velocity", "angular velocity"),
        (0, 1, 2),
        {
            "angle from upright [degrees]": lambda states: np.degrees(np.arctan2(states[:, 2], states[:, 1])),
            "cart position [m]": axis_curve(0),
        },
    ),
    "control/pendulum-swingup": TaskView(
        "pendulum",
        50,
        ("cos θ", "sin θ", "angular velocity"),
        (0, 1),
        {
            "angle from upright [degrees]": lambda states: np.degrees(np.arctan2(states[:, 1], states[:, 0])),
            "velocity": axis_curve(2),
        },
    ),
}
_MARKS = {"control/cartpole-swingup": (800.0,), "control/pendulum-swingup": (700.0,)}  # about what model-free methods end at
_FACTORS = tuple(field.name for field in dataclasses.fields(PhysicsConfig))  # all there are
for _name in _TASKS:
    register(_name, _make, marks=_MARKS[_name], view=_VIEWS[_name], physics=_FACTORS)
