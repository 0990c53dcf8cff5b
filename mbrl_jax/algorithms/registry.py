"""Which algorithm a configuration configures, and what the host side must know of it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from mbrl_jax.agents.policy_gradient import PolicyGradient
from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.algorithms import dyna_q, imagined_pg, model_free_pg, model_free_q, mpc
from mbrl_jax.algorithms.selection import GreedyOf
from mbrl_jax.algorithms.training import Train
from mbrl_jax.config import DynaQConfig, ImaginedPGConfig, ModelFreePGConfig, ModelFreeQConfig, MPCConfig, RunConfig
from mbrl_jax.environment import Environment


class Algorithm(NamedTuple):
    """One training loop."""

    make_train: Callable[..., Train]
    metrics: type  # the NamedTuple that its rounds return
    greedy: Callable[[Any, Environment], GreedyOf]  # (config, task) -> what a policy of given parameters does


def _greedy_q(config: ModelFreeQConfig, task: Environment) -> GreedyOf:
    return make_q_learner(config.agent, task.spec).greedy


def _greedy_actor(config: ImaginedPGConfig | ModelFreePGConfig, task: Environment) -> GreedyOf:
    return PolicyGradient(config.agent, task.spec).greedy


def _greedy_planner(config: MPCConfig, task: Environment) -> GreedyOf:
    return functools.partial(mpc.greedy, config, task)


ALGORITHMS: dict[type[RunConfig], Algorithm] = {
    DynaQConfig: Algorithm(dyna_q.make_train, dyna_q.Metrics, _greedy_q),
    ModelFreeQConfig: Algorithm(model_free_q.make_train, model_free_q.Metrics, _greedy_q),
    ImaginedPGConfig: Algorithm(imagined_pg.make_train, imagined_pg.Metrics, _greedy_actor),
    ModelFreePGConfig: Algorithm(model_free_pg.make_train, model_free_pg.Metrics, _greedy_actor),
    MPCConfig: Algorithm(mpc.make_train, mpc.Metrics, _greedy_planner),
}


def algorithm_of(config: RunConfig) -> Algorithm:
    """The algorithm that ``config`` configures."""
    return ALGORITHMS[type(config)]
