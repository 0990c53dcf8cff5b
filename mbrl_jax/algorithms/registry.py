"""Which algorithm a configuration configures, and what the host side must know of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mbrl_jax.agents.protocol import Policy, without_memory
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.algorithms import dmo, dreamer, dyna_q, imagined_pg, model_free_pg, model_free_q, mpc, recurrent_sac
from mbrl_jax.algorithms.hosted import Behaviour, agent_behaviour
from mbrl_jax.algorithms.phases import world_of
from mbrl_jax.algorithms.training import Train
from mbrl_jax.config import (
    DMOConfig,
    DreamerConfig,
    DynaQConfig,
    ImaginedPGConfig,
    ModelFreePGConfig,
    ModelFreeQConfig,
    MPCConfig,
    RecurrentSACConfig,
    RunConfig,
)
from mbrl_jax.environments import Environment

__all__ = ["ALGORITHMS", "TD", "Algorithm", "algorithm_of", "world_of"]


class Algorithm(NamedTuple):
    """One training loop."""

    make_train: Callable[..., Train]
    metrics: type  # the NamedTuple that its rounds return
    policy: Callable[[Any, Environment], Policy]  # (config, task) -> what plays
    params: Callable[[Any, Environment], Any]  # (config, task) -> shapes and dtypes of the parameters that it plays by
    has_model: bool  # whether it learns a world model
    imagines: bool  # whether it learns, and chooses its policy, in imagined lanes
    loss: str  # what its updates' loss is called
    behaviour: Callable[[Any, Environment], Behaviour] = agent_behaviour  # (config, task) -> what acts while it learns
    takes_engine: bool = False  # whether its make_train takes an ``engine``
    remembers: bool = False  # whether its policies have a memory


def _agent_policy(config: Any, task: Environment) -> Policy:
    return without_memory(make_agent(config.agent, task.spec).mode)


def _agent_params(config: Any, task: Environment) -> Any:
    agent = make_agent(config.agent, task.spec)
    return jax.eval_shape(lambda key: agent.judged(agent.init(key)), jax.random.key(0))


TD, CRITIC = "TD loss", "critic's loss"
_AGENT: dict[str, Any] = {"policy": _agent_policy, "params": _agent_params}
ALGORITHMS: dict[type[RunConfig], Algorithm] = {
    DynaQConfig: Algorithm(
        dyna_q.make_train, dyna_q.Metrics, has_model=True, imagines=True, loss=TD, takes_engine=True, **_AGENT
    ),
    ModelFreeQConfig: Algorithm(
        model_free_q.make_train, model_free_q.Metrics, has_model=False, imagines=False, loss=TD, **_AGENT
    ),
    ImaginedPGConfig: Algorithm(
        imagined_pg.make_train, imagined_pg.Metrics, has_model=True, imagines=True, loss=CRITIC, **_AGENT
    ),
    ModelFreePGConfig: Algorithm(
        model_free_pg.make_train, model_free_pg.Metrics, has_model=False, imagines=False, loss=CRITIC, **_AGENT
    ),
    MPCConfig: Algorithm(
        mpc.make_train,
        mpc.Metrics,
        mpc.policy_of,
        mpc.params_of,
        has_model=True,
        imagines=False,
        loss=TD,
        behaviour=mpc.behaviour_of,
        remembers=True,
    ),
    DMOConfig: Algorithm(
        dmo.make_train, dmo.Metrics, has_model=True, imagines=False, loss=CRITIC, behaviour=dmo.behaviour_of, **_AGENT
    ),
    DreamerConfig: Algorithm(
        dreamer.make_train,
        dreamer.Metrics,
        dreamer.policy_of,
        dreamer.params_of,
        has_model=True,
        imagines=False,
        loss=CRITIC,
        remembers=True,
    ),
    RecurrentSACConfig: Algorithm(
        recurrent_sac.make_train,
        recurrent_sac.Metrics,
        recurrent_sac.policy_of,
        recurrent_sac.params_of,
        has_model=False,
        imagines=False,
        loss=CRITIC,
        remembers=True,
    ),
}


def algorithm_of(config: RunConfig) -> Algorithm:
    """The algorithm that ``config`` configures."""
    return ALGORITHMS[type(config)]
