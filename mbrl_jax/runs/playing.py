"""Plays saved policies, in gymnax or in gymnasium's own environments."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError, ModelFreeQConfig
from mbrl_jax.environment import make_environment
from mbrl_jax.evaluation import play


def play_policies(
    config: ModelFreeQConfig, params: Any, episodes: int, simulator: Literal["gymnax", "gymnasium"], seed: int
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
    learner = make_q_learner(config.agent, task.spec)
    seeds = len(jax.tree.leaves(params)[0])

    def one(params: Any, key: jax.Array) -> jax.Array:
        return play(task, lambda s: learner.greedy(params, s), task.draw_resets(key, (episodes,)))

    return np.asarray(jax.jit(jax.vmap(one))(params, seed_keys(seed, seeds)))


def _play_gymnasium(config: ModelFreeQConfig, params: Any, episodes: int, seed: int) -> np.ndarray:
    import gymnasium

    task = make_environment(config.environment)
    learner = make_q_learner(config.agent, task.spec)
    greedy = jax.jit(jax.vmap(learner.greedy))
    seeds = len(jax.tree.leaves(params)[0])
    environments = gymnasium.make_vec(
        config.environment.name,
        num_envs=seeds * episodes,
        vectorization_mode="sync",
        max_episode_steps=task.spec.time_limit,
    )
    observation, _ = environments.reset(seed=seed)
    running, returns = np.ones(seeds * episodes, bool), np.zeros(seeds * episodes)
    while running.any():
        table = jnp.asarray(observation, jnp.float32).reshape(seeds, episodes, -1)
        observation, reward, terminated, truncated, _ = environments.step(np.asarray(greedy(params, table)).reshape(-1))
        returns += np.where(running, reward, 0.0)
        running &= ~(terminated | truncated)
    environments.close()
    return returns.reshape(seeds, episodes)
