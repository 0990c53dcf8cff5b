"""Greedy episodes by one launch: imagined ones that score a policy, and real ones of the learning curve."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from mbrl_jax.cuda.kernels import score_kernel
from mbrl_jax.cuda.parameters import flat
from mbrl_jax.cuda.setup import Setup, largest_that_fits, world_operands
from mbrl_jax.cuda.sizes import ScoreSizes, check_score
from mbrl_jax.environments import EnvironmentState
from mbrl_jax.model.ensemble import Members
from mbrl_jax.networks import Params


def sizes_of(setup: Setup, *, episodes: int = 0, played: int = 0) -> ScoreSizes:
    """The sizes of the kernel for so many imagined and so many real episodes. Raises ConfigError: they do not fit."""
    steps, limit = setup.config.selection.steps, setup.task.spec.time_limit
    sizes = ScoreSizes(**setup.networks, **setup.playing, episodes=episodes, steps=steps, played=played, time_limit=limit)
    check_score(sizes)
    return largest_that_fits(setup.gpu, (sizes,), "agent.hidden, model.hidden and selection.episodes")


def score_of(setup: Setup) -> Callable[[Members, Params, Array, Any], Array]:
    """:attr:`mbrl_jax.engine.Engine.score`. Raises ConfigError: the episodes do not fit."""
    sizes = sizes_of(setup, episodes=setup.config.selection.episodes)

    def score(model: Members, policy: Params, start: Array, draws: Any) -> Array:
        operands = [flat(policy), *world_operands(model), start, draws.noise, jnp.zeros(1), setup.settings()]
        return setup.launch(score_kernel(sizes))(*operands)[0]

    return score


def play_of(setup: Setup) -> Callable[[Params, EnvironmentState], Array]:
    """:attr:`mbrl_jax.engine.Engine.play`, from states that have just been reset. Raises ConfigError: the episodes do not fit."""
    evaluation = setup.config.evaluation
    for episodes in (evaluation.episodes, evaluation.curve_episodes):
        sizes_of(setup, played=episodes)

    def play(policy: Params, starts: EnvironmentState) -> Array:
        sizes = sizes_of(setup, played=starts.observation.shape[0])
        nothing = [jnp.zeros(1)] * 5  # of imagined episodes
        return setup.launch(score_kernel(sizes))(flat(policy), *nothing, starts.observation, setup.settings())[1]

    return play
