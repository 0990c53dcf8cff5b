"""What the model gets wrong where it is used: the real dynamics asked about imagined states.

For looking only. Nothing here reaches what an agent learns from.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError, LanesConfig
from mbrl_jax.environments import Environment, EnvironmentSpec
from mbrl_jax.imagination import disagreement, lanes
from mbrl_jax.imagination.horizon import HorizonController
from mbrl_jax.imagination.horizon.protocol import predictions_at
from mbrl_jax.imagination.lanes import Act, Dynamics
from mbrl_jax.model.protocol import WorldModel, members_step
from mbrl_jax.replay import ReplayState, Rows

DEPTHS = 50  # depths that are told apart
STEPS = 240  # imagined steps of every lane that are looked at, about
MAP_POINTS = 25  # along each side of the map


class ByDepth(NamedTuple):
    """Means over the imagined rows at depths 1 to L, as the controller lets rollouts get there.

    Where there is no row they are minus infinity as they leave compiled code, and NaN in a :class:`mbrl_jax.Run`.
    """

    rows: Array  # [L] how many
    disagreement: Array  # [L] of the members, `std`
    one_step_error: Array  # [L] between s' and where the real dynamics lead from s
    compounded_error: Array  # [L] between s' and where they lead from the root by the same actions, until they terminate


class ErrorMap(NamedTuple):
    """Over a plane of the state space, all other axes at 0 and averaged over actions. Rows are the second axis."""

    disagreement: Array  # [n, n] `std`
    one_step_error: Array  # [n, n] mean over members of the error of their mean prediction


class Diagnosis(NamedTuple):
    """Errors are root mean squares over axes, in units of the real data's deviation of the state change, as disagreement is.

    An axis whose change does not vary in the data has no such unit, and its error is in the task's own.
    """

    by_depth: ByDepth
    map: ErrorMap


def diagnose(
    config: LanesConfig,
    task: Environment,
    world: WorldModel,
    controller: HorizonController,
    state: lanes.Lanes,
    params: Any,
    act: Act,
    real: ReplayState,
    time: Array,
    key: Array,
) -> Diagnosis:
    """How wrong the members are along the rollouts that would come next, and over the state space; arguments as of :func:`roll`.

    Raises:
      ConfigError: as :func:`check_task`.

    """
    dynamics = check_task(task)
    rows = roll(config, task.spec, world, controller, state, params, act, real, time, key, dynamics)
    return Diagnosis(judge(task, world, params, rows), error_map(task, world, params))


def check_task(task: Environment) -> Dynamics:
    """The real dynamics of a task that can be diagnosed.

    Raises:
      ConfigError: it does not tell them, or its termination.

    """
    if task.dynamics is None:
        raise ConfigError(f"environment.name: {task.spec.name!r} does not fit; a diagnosis needs known real dynamics")
    if task.terminated is None:
        raise ConfigError(f"environment.name: {task.spec.name!r} does not fit; a diagnosis needs a known termination function")
    return task.dynamics


def error(imagined: Array, true: Array, scale: Array) -> Array:
    """[...] distance of states [..., D] in units of ``scale`` [D]."""
    scale = scale.reshape((1,) * (imagined.ndim - 1) + (-1,))
    return jnp.sqrt(jnp.mean(jnp.square((imagined - true) / scale), axis=-1))


def roll(
    config: LanesConfig,
    spec: EnvironmentSpec,
    world: WorldModel,
    controller: HorizonController,
    state: lanes.Lanes,
    params: Any,
    act: Act,
    real: ReplayState,
    time: Array,
    key: Array,
    dynamics: Dynamics,
) -> Rows:
    """The rows [T, K, ...] that imagination goes on to make, in the order of time; arguments as of :func:`lanes.advance`."""
    real_steps = -(-STEPS // config.steps)
    draws = lanes.draw(config, spec, world, key, (real_steps,))

    def step(carry: tuple[lanes.Lanes, Array], draw: lanes.LaneDraws) -> tuple[tuple[lanes.Lanes, Array], Rows]:
        state, time = carry
        state, rows, _ = lanes.advance(config, world, controller, state, params, act, real, time, draw, dynamics)
        return (state, time + 1), rows

    begin = state._replace(depth=jnp.zeros_like(state.depth), idle=jnp.zeros_like(state.idle))
    _, rows = jax.lax.scan(step, (begin, time), draws)
    return jax.tree.map(lambda leaf: leaf.reshape(real_steps * config.steps, *leaf.shape[2:]), rows)


def judge(task: Environment, world: WorldModel, params: Any, rows: Rows) -> ByDepth:
    """Errors by depth of imagined rows [T, K, ...], of which the first are at depth 0.

    A lane whose real twin has terminated has no compounded error until its next root.
    """
    dynamics, terminated, scale = task.dynamics, task.terminated, world.scale(params)
    assert dynamics is not None, "a diagnosis needs known real dynamics"
    assert terminated is not None, "a diagnosis needs a known termination"
    everyone = predictions_at(world, params, rows)
    one_step = error(rows.next_observation, dynamics(rows.observation, rows.action), scale)

    def follow(carry: tuple[Array, Array], row: Rows) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        twin, over = carry
        begins = row.depth == 0
        twin = jnp.where(begins[:, None], row.observation, twin)
        after = dynamics(twin, row.action)
        over = over & ~begins
        told = (error(row.next_observation, after, scale), ~over)
        return (after, over | terminated(twin, row.action, after)), told

    start = (rows.observation[0], jnp.zeros(rows.reward.shape[1:], bool))
    _, (compounded, running) = jax.lax.scan(follow, start, rows)

    depth = jnp.arange(DEPTHS, dtype=jnp.int32)
    at = (rows.depth.reshape(-1)[None] == depth[:, None]).astype(one_step.dtype)  # [L, T K]

    def mean(values: Array, counted: Array) -> Array:
        weight = at * counted.reshape(1, -1).astype(at.dtype)
        total = jnp.sum(weight, axis=1)
        sums = jnp.sum(weight * jnp.where(counted, values, 0.0).reshape(1, -1), axis=1)
        return jnp.where(total > 0, sums / jnp.maximum(total, 1.0), -jnp.inf)

    everywhere = jnp.ones_like(running)
    return ByDepth(
        rows=jnp.sum(at, axis=1),
        disagreement=mean(disagreement.std(everyone), everywhere),
        one_step_error=mean(one_step, everywhere),
        compounded_error=mean(compounded, running),
    )


class Coordinate(NamedTuple):
    """A side of the map."""

    axes: tuple[int, ...]  # of the state: one, or the cosine and the sine of an angle
    limit: float  # it goes from minus this to this; radians of an angle, else the task's own scale


def map_coordinates(spec: EnvironmentSpec) -> tuple[Coordinate, Coordinate]:
    """What is mapped against what: angles before all else, and where there are none the first axis and the third or what comes
    nearest to it. On CartPole x and theta, on Pendulum the angle and its rate.
    """
    if not spec.angles:
        first, second = (Coordinate((axis,), spec.observation_scale[axis]) for axis in (0, min(2, spec.observation_size - 1)))
        return first, second
    paired = {axis for pair in spec.angles for axis in pair}
    others = (axis for axis in range(spec.observation_size) if axis not in paired)
    found = [Coordinate(pair, math.pi) for pair in spec.angles]
    found += [Coordinate((axis,), spec.observation_scale[axis]) for axis in others]
    return found[0], found[min(1, len(found) - 1)]


def map_states(spec: EnvironmentSpec) -> Array:
    """[MAP_POINTS, MAP_POINTS, D] the states of the map, the first coordinate along its columns; all others are 0."""
    shape = (MAP_POINTS, MAP_POINTS)
    first, second = map_coordinates(spec)
    state = jnp.zeros((*shape, spec.observation_size))
    for cosine, _ in spec.angles:
        state = state.at[..., cosine].set(1.0)
    for coordinate, lead in ((first, (None, slice(None))), (second, (slice(None), None))):
        values = jnp.broadcast_to(jnp.linspace(-coordinate.limit, coordinate.limit, MAP_POINTS)[lead], shape)
        told = (values,) if len(coordinate.axes) == 1 else (jnp.cos(values), jnp.sin(values))
        for axis, value in zip(coordinate.axes, told, strict=True):
            state = state.at[..., axis].set(value)
    return state


def error_map(task: Environment, world: WorldModel, params: Any) -> ErrorMap:
    """Disagreement and true error in :func:`map_states`."""
    assert task.dynamics is not None, "a diagnosis needs known real dynamics"
    spec, grid = task.spec, map_states(task.spec)
    if spec.continuous:  # at either end and in the middle
        actions = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, 3, dtype=grid.dtype)[:, None], (3, spec.action_size))
    else:
        actions = jnp.arange(spec.action_count, dtype=jnp.int32)
    observation = jnp.broadcast_to(grid[None], (len(actions), *grid.shape))
    action = jnp.broadcast_to(actions[:, None, None], (*observation.shape[:-1], *spec.action_shape))
    imagined = members_step(world, params, observation, action, "a diagnosis")
    assert imagined.everyone is not None, "expect tells what every member says"
    wrong = error(world.features(imagined.belief), task.dynamics(observation, action)[None], world.scale(params))
    return ErrorMap(jnp.mean(disagreement.std(imagined.everyone), axis=0), jnp.mean(wrong, axis=(0, 1)))
