"""Loads saved policies and plays them, in gymnax or in gymnasium's own environments."""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError, RunConfig, check_whole
from mbrl_jax.environment import make_environment
from mbrl_jax.evaluation import play
from mbrl_jax.runs import results


class Policy:
    """The greedy policies of a run's seeds.

    Attributes:
      config: of the run.
      params: network parameters, leaves [seeds, ...].

    """

    def __init__(self, config: RunConfig, params: Any):
        """Made by :func:`load_policy`."""
        self.config, self.params = config, jax.tree.map(jnp.asarray, params)
        greedy = algorithm_of(config).greedy(config, make_environment(config.environment))
        self._spec = make_environment(config.environment).spec
        self._one = jax.jit(lambda params, seed, s: greedy(jax.tree.map(lambda leaf: leaf[seed], params), s))
        self._all = jax.jit(jax.vmap(greedy))

    def __len__(self) -> int:
        """How many seeds there are."""
        return len(jax.tree.leaves(self.params)[0])

    def __call__(self, observation: Any, seed: int | None = None) -> jax.Array:
        """Actions [...] of one seed's policy for observations [..., D]; without a seed, [seeds, ...] for [seeds, ..., D].

        Raises:
          ConfigError: there is no such seed, or these are no observations of the task.

        """
        observation = self._checked(observation)
        if seed is None:
            if observation.ndim < 2 or observation.shape[0] != len(self):
                raise ConfigError(
                    f"observation: shape {observation.shape} does not fit; without a seed its first axis must be the seeds', "
                    f"[{len(self)}, ..., {self._spec.observation_size}]"
                )
            return self._all(self.params, observation)
        check_whole(seed, "seed")
        if not 0 <= seed < len(self):
            raise ConfigError(f"seed: {seed!r} is out of range; it must be from 0 to {len(self) - 1}")
        return self._one(self.params, seed, observation)

    def _checked(self, observation: Any) -> jax.Array:
        """Observations [..., D] in float32, if they are such."""
        size, task = self._spec.observation_size, self._spec.name
        try:
            given = observation if isinstance(observation, jax.Array) else np.asarray(observation)
        except ValueError as error:
            raise ConfigError(f"observation: it is no array ({error}); it must be [..., {size}] numbers, as of {task}") from error
        if not (jnp.issubdtype(given.dtype, jnp.floating) or jnp.issubdtype(given.dtype, jnp.integer)):
            raise ConfigError(f"observation: dtype {given.dtype} does not fit; it must be floats, as of {task}")
        if given.ndim == 0 or given.shape[-1] != size:
            raise ConfigError(f"observation: shape {given.shape} does not fit; it must be [..., {size}], as of {task}")
        return jnp.asarray(given, jnp.float32)


def load_policy(folder: str | Path, which: Literal["chosen", "last"] | None = None) -> Policy:
    """The policies of a run, or of a run's last checkpoint if it is not finished.

    Args:
      folder: the run's.
      which: the ones chosen in imagination or those of the last update; none takes the chosen ones where there is a model.

    Raises:
      ConfigError: the folder holds no run, or it has no such policies.

    """
    config, policies = results.load_policies(folder)
    name = which or ("chosen" if "chosen" in policies else "last")
    if name not in policies:
        raise ConfigError(f"which: {name!r} does not fit; the run in {str(folder)!r} has the policies {', '.join(policies)}")
    return Policy(config, policies[name])


def play_policies(
    config: RunConfig, params: Any, episodes: int, simulator: Literal["gymnax", "gymnasium"], seed: int
) -> np.ndarray:
    """Returns [seeds, episodes] of greedy episodes of every seed's policy.

    Args:
      config: of the run.
      params: leaves [seeds, ...].
      episodes: at least 1.
      simulator: whose implementation of the task.
      seed: of the initial states.

    Raises:
      ConfigError: no episodes.

    """
    if episodes < 1:
        raise ConfigError(f"episodes: {episodes!r} is out of range; it must be at least 1")
    if simulator == "gymnasium":
        return _play_gymnasium(config, params, episodes, seed)
    task = make_environment(config.environment)
    greedy = algorithm_of(config).greedy(config, task)
    seeds = len(jax.tree.leaves(params)[0])

    def one(params: Any, key: jax.Array) -> jax.Array:
        return play(task, lambda s: greedy(params, s), task.draw_resets(key, (episodes,)))

    return np.asarray(jax.jit(jax.vmap(one))(params, seed_keys(seed, seeds)))


def _play_gymnasium(config: RunConfig, params: Any, episodes: int, seed: int) -> np.ndarray:
    import gymnasium

    task = make_environment(config.environment)
    greedy = jax.jit(jax.vmap(algorithm_of(config).greedy(config, task)))
    seeds = len(jax.tree.leaves(params)[0])
    environments: Any = gymnasium.make_vec(
        config.environment.name,
        num_envs=seeds * episodes,
        vectorization_mode="sync",
        max_episode_steps=task.spec.time_limit,
    )
    observation, _ = environments.reset(seed=seed)
    running, returns = np.ones(seeds * episodes, bool), np.zeros(seeds * episodes)
    while running.any():
        table = jnp.asarray(observation, jnp.float32).reshape(seeds, episodes, -1)
        action = np.asarray(greedy(params, table)).reshape(-1, *task.spec.action_shape)
        if task.spec.continuous:
            action = action * environments.single_action_space.high
        observation, reward, terminated, truncated, _ = environments.step(action)
        returns += np.where(running, reward, 0.0)
        running &= ~(terminated | truncated)
    environments.close()
    return returns.reshape(seeds, episodes)
