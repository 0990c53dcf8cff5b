"""Classic control seen as pictures: CartPole-v1 and Pendulum-v1 of 32 x 32 grey pixels, drawn in JAX from the simulator's state.

A pixel is from 0, the background, to 1, and the edges of what is drawn are smooth over one pixel. One picture does not tell how
fast anything moves. The simulators, their rewards and their time limits are those of the tasks themselves.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.environments import gymnax, registry
from mbrl_jax.environments.protocol import Environment, EnvironmentSpec, EnvironmentState, Transition

SIZE = 32  # pixels of a side
TRACK = 2 * gymnax.CARTPOLE_X  # metres that the width of a picture shows
FLOOR = 25.0  # rows from the top down to the cart's middle
POLE = 20.0  # pixels; the pole is drawn longer than to scale, so that a degree can be seen
CART = (3.0, 1.5)  # pixels, half of the cart's width and height
ROD = 12.0  # pixels of a pendulum
THICK = 1.0  # pixels, half of the width of a pole or a rod

_PLACES = np.arange(SIZE, dtype=np.float32) + 0.5  # of the pixels' middles


def _ink(outside: Array) -> Array:
    """[...] how dark pixels are whose middles are so far outside [...] of a shape's edge, in pixels."""
    return jnp.clip(0.5 - outside, 0.0, 1.0)


def bar(x: Array, y: Array, to_x: Array, to_y: Array) -> Array:
    """[SIZE, SIZE] a bar with round ends from one point to another; x to the right and y down from the top left corner."""
    across, down = jnp.asarray(_PLACES)[None, :] - x, jnp.asarray(_PLACES)[:, None] - y
    along_x, along_y = to_x - x, to_y - y
    share = jnp.clip((across * along_x + down * along_y) / (along_x**2 + along_y**2), 0.0, 1.0)
    far = jnp.sqrt(jnp.square(across - share * along_x) + jnp.square(down - share * along_y) + 1e-12)
    return _ink(far - THICK)


def box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    """[SIZE, SIZE] an upright box about a point."""
    across, down = jnp.abs(jnp.asarray(_PLACES) - x) - half_width, jnp.abs(jnp.asarray(_PLACES) - y) - half_height
    return _ink(across)[None, :] * _ink(down)[:, None]


def draw_cartpole(observation: Array) -> Array:
    """[SIZE, SIZE, 1] a cart and its pole from (position, velocity, angle, angular velocity) [4]."""
    x, angle = SIZE / 2 + observation[0] * SIZE / TRACK, observation[2]
    floor = jnp.full_like(x, FLOOR)
    pole = bar(x, floor, x + POLE * jnp.sin(angle), floor - POLE * jnp.cos(angle))
    return jnp.maximum(pole, box(x, floor, *CART))[..., None]


def draw_pendulum(observation: Array) -> Array:
    """[SIZE, SIZE, 1] a pendulum from (cosine, sine, angular velocity) [3] of its angle from upright."""
    middle = jnp.full_like(observation[0], SIZE / 2)
    return bar(middle, middle, middle - ROD * observation[1], middle - ROD * observation[0])[..., None]


_DRAWINGS: dict[str, Callable[[Array], Array]] = {"CartPole-v1": draw_cartpole, "Pendulum-v1": draw_pendulum}


def in_pixels(task: Environment, draw: Callable[[Array], Array], name: str) -> Environment:
    """A task whose observations [D] are drawn as pictures."""
    spec = EnvironmentSpec(
        name=name,
        observation_size=SIZE * SIZE,
        action_count=task.spec.action_count,
        time_limit=task.spec.time_limit,
        observation_scale=(1.0,) * (SIZE * SIZE),
        action_size=task.spec.action_size,
        observation_limits=(1.0,) * (SIZE * SIZE),
        action_scale=task.spec.action_scale,
        observation_shape=(SIZE, SIZE, 1),
    )

    def draw_resets(key: Array, shape: tuple[int, ...]) -> EnvironmentState:
        whole = task.draw_resets(key, shape)
        flat = whole.observation.reshape(-1, whole.observation.shape[-1])
        return EnvironmentState(whole, jax.vmap(draw)(flat).reshape(*shape, *spec.observation_shape))

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        whole, transition = task.step(state.inner, action, fresh.inner)
        after = draw(transition.next_observation)
        told = transition._replace(observation=state.observation, next_observation=after)
        ended = transition.terminated | transition.truncated
        return EnvironmentState(whole, jnp.where(ended, fresh.observation, after)), told

    return Environment(spec, draw_resets, step)


def _make(name: str, config: EnvironmentConfig) -> Environment:
    task: Any = registry.make_environment(dataclasses.replace(config, name=name, action_repeat=1, observed=None, delay=0))
    return in_pixels(task, _DRAWINGS[name], f"pixels/{name}")


for _name in _DRAWINGS:
    registry.register(f"pixels/{_name}", partial(_make, _name), marks=registry.success_marks(_name))
