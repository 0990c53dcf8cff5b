"""Distractors: numbers in the observation that have nothing to do with the task, with which value-aware losses are studied
(Voelcker et al. 2022, arXiv:2204.01464).

Each of them is a Gaussian random walk from 0 that no action moves and no reward sees. A model that is fitted by its likelihood
spends its capacity on them as on the rest.
"""

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError
from mbrl_jax.environments.protocol import Environment, EnvironmentState, Transition, check_pure

STEP = 0.1  # standard deviation of a walk's step, in units of its scale


def distracted(environment: Environment, count: int) -> Environment:
    """A task whose observation [D] is followed by ``count`` random walks, which begin at 0 in every episode.

    Its known reward and termination still are functions of the observation; its dynamics no longer are, as walks are random. A
    task that has as many distractors already stays as it is.

    Raises:
      ConfigError: the task has others already, or it is no pure function.

    """
    spec = environment.spec
    if spec.distractors == count:
        return environment
    problem = f"environment.distractors: {count!r} does not fit; "
    if spec.distractors:
        raise ConfigError(f"{problem}the environment that is given has {spec.distractors} already")
    check_pure(environment, problem)
    size = spec.observation_size

    def seen(observation: Array, walk: Array) -> Array:
        return jnp.concatenate([observation, walk.astype(observation.dtype)], axis=-1)

    def draw_resets(key: Array, shape: tuple[int, ...]) -> EnvironmentState:
        own = environment.draw_resets(key, shape)
        noise = jax.random.key_data(jax.random.split(jax.random.fold_in(key, 0), shape))  # [..., 2], an episode's own
        walk = jnp.zeros((*shape, count), own.observation.dtype)
        return EnvironmentState(inner=(own, noise), observation=seen(own.observation, walk))

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        (own, noise), walk = state.inner, state.observation[size:]
        after, transition = environment.step(own, action, fresh.inner[0])
        key, key_now = jax.random.split(jax.random.wrap_key_data(noise))
        moved = walk + STEP * jax.random.normal(key_now, (count,), walk.dtype)
        told = transition._replace(observation=state.observation, next_observation=seen(transition.next_observation, moved))
        going_on = EnvironmentState(inner=(after, jax.random.key_data(key)), observation=told.next_observation)
        begun = EnvironmentState(inner=(after, fresh.inner[1]), observation=fresh.observation)
        ended = told.terminated | told.truncated
        return jax.tree.map(lambda new, old: jnp.where(ended, new, old), begun, going_on), told

    reward, terminated = environment.reward, environment.terminated
    return environment._replace(
        spec=spec._replace(
            observation_size=size + count,
            observation_scale=(*spec.observation_scale, *(1.0,) * count),
            observation_limits=None if spec.observation_limits is None else (*spec.observation_limits, *(float("inf"),) * count),
            axes=(*spec.axes, *(f"distractor {number}" for number in range(1, count + 1))) if spec.axes else (),
            observation_shape=(),
            distractors=count,
        ),
        draw_resets=draw_resets,
        step=step,
        reward=None if reward is None else lambda s, a, s2: reward(s[..., :size], a, s2[..., :size]),
        terminated=None if terminated is None else lambda s, a, s2: terminated(s[..., :size], a, s2[..., :size]),
        dynamics=None,
    )
