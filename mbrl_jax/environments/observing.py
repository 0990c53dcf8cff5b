"""Partial observation: a policy sees some numbers of a task's observation, or sees them some steps late.

What is left does not tell the state, so the task's known reward, termination and dynamics, which are functions of the whole
observation, are no longer offered: a world model learns them. The simulator itself is the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax.config import ConfigError
from mbrl_jax.environments.protocol import Environment, EnvironmentSpec, EnvironmentState, Transition, check_pure


def masked(environment: Environment, axes: tuple[int, ...]) -> Environment:
    """A task of which only some numbers of the observation are seen, in the order given.

    A task that is masked so already stays as it is.

    Args:
      environment: the task, whose observations are vectors [D].
      axes: numbers of the axes that are seen, each below D and none twice.

    Raises:
      ConfigError: an axis is not there or named twice, the task is masked otherwise already, or it is no pure function.

    """
    spec = environment.spec
    if spec.observed == axes:
        return environment
    problem = f"environment.observed: {list(axes)!r} does not fit; "
    if spec.observed:
        raise ConfigError(f"{problem}of the environment that is given only {list(spec.observed)} are seen already")
    check_pure(environment, problem)
    size = spec.observation_size
    if not axes or max(axes) >= size or min(axes) < 0 or len(set(axes)) != len(axes):
        raise ConfigError(f"{problem}of {spec.name!r} it must be numbers from 0 to {size - 1}, none of them twice")
    places = np.asarray(axes)

    def seen(observation: Array) -> Array:
        return observation[..., places]

    def draw_resets(key: Array, shape: tuple[int, ...]) -> EnvironmentState:
        whole = environment.draw_resets(key, shape)
        return EnvironmentState(inner=whole, observation=seen(whole.observation))

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        whole, transition = environment.step(state.inner, action, fresh.inner)
        told = transition._replace(observation=seen(transition.observation), next_observation=seen(transition.next_observation))
        return EnvironmentState(inner=whole, observation=seen(whole.observation)), told

    return environment._replace(
        spec=_spec_of(spec, axes), draw_resets=draw_resets, step=step, reward=None, terminated=None, dynamics=None
    )


def delayed(environment: Environment, steps: int) -> Environment:
    """A task whose observations are seen ``steps`` steps late; until then the first one of the episode is.

    Rewards and the episode's end are told at once. A task that is delayed so already stays as it is.

    Raises:
      ConfigError: the task is delayed otherwise already, or it is no pure function.

    """
    spec = environment.spec
    if spec.delay == steps:
        return environment
    problem = f"environment.delay: {steps!r} does not fit; "
    if spec.delay:
        raise ConfigError(f"{problem}the environment that is given delays its observations by {spec.delay} steps already")
    check_pure(environment, problem)

    def draw_resets(key: Array, shape: tuple[int, ...]) -> EnvironmentState:
        now = environment.draw_resets(key, shape)
        waiting = jnp.repeat(now.observation[..., None, :], steps, axis=-2)  # [..., steps, D], the oldest first
        return EnvironmentState(inner=(now, waiting), observation=now.observation)

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        now, waiting = state.inner
        after, transition = environment.step(now, action, fresh.inner[0])
        queue = jnp.concatenate([waiting, transition.next_observation[None]])
        told = transition._replace(observation=state.observation, next_observation=queue[0])
        ended = told.terminated | told.truncated
        going_on = EnvironmentState(inner=(after, queue[1:]), observation=queue[0])
        begun = EnvironmentState(inner=(after, fresh.inner[1]), observation=fresh.observation)
        return jax.tree.map(lambda new, old: jnp.where(ended, new, old), begun, going_on), told

    return environment._replace(
        spec=spec._replace(delay=steps), draw_resets=draw_resets, step=step, reward=None, terminated=None, dynamics=None
    )


def beneath(state: EnvironmentState) -> Array:
    """[..., D'] the whole observation of a running episode, of which wrappers hide some, delay it, draw it, or add to it."""
    inner = (
        state.inner[0] if type(state.inner) is tuple and state.inner else state.inner
    )  # a wrapper's own state stands beside it
    return beneath(inner) if isinstance(inner, EnvironmentState) else state.observation


def _spec_of(spec: EnvironmentSpec, axes: tuple[int, ...]) -> EnvironmentSpec:
    """The spec of the axes that are seen."""
    place = {axis: number for number, axis in enumerate(axes)}
    return spec._replace(
        observation_size=len(axes),
        observation_scale=tuple(spec.observation_scale[axis] for axis in axes),
        observation_limits=None if spec.observation_limits is None else tuple(spec.observation_limits[axis] for axis in axes),
        angles=tuple((place[cos], place[sin]) for cos, sin in spec.angles if cos in place and sin in place),
        axes=tuple(spec.axes[axis] for axis in axes) if spec.axes else (),
        observation_shape=(),
        observed=axes,
    )
