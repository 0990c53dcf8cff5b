"""Agents by their kind: from settings and a task to a :class:`mbrl_jax.agents.protocol.Agent`."""

from collections.abc import Callable
from typing import Any

from mbrl_jax.agents.cloning import CloningConfig, cloning_agent
from mbrl_jax.agents.crossq import CrossQConfig, crossq_agent
from mbrl_jax.agents.policy_gradient import policy_gradient_agent
from mbrl_jax.agents.protocol import Agent
from mbrl_jax.agents.q_learning import q_agent
from mbrl_jax.agents.sac import SACConfig, sac_agent
from mbrl_jax.config import AGENTS, AgentConfig, PolicyGradientConfig, QLearningConfig
from mbrl_jax.environments import EnvironmentSpec

Make = Callable[[Any, EnvironmentSpec], Agent]

_MAKE: dict[type[AgentConfig], Make] = {}


def register(kind: str, settings: type[AgentConfig], make: Make) -> None:
    """Let presets and commands name a kind of agent.

    Args:
      kind: as ``agent.kind`` has it.
      settings: its own, made by :func:`mbrl_jax.config.settings`; where agents learn from transitions, ``updates_per_step``
        among them tells how many updates a step of the main loop has, else there is one.
      make: from these settings and the task's sizes to the agent; it refuses what does not fit.

    Raises:
      ConfigError: the name is taken.

    """
    AGENTS.register(kind, settings)
    _MAKE[settings] = make


def make_agent(config: AgentConfig, spec: EnvironmentSpec) -> Agent:
    """Make the agent that its settings configure.

    Raises:
      ConfigError: it does not fit the task.

    """
    return _MAKE[type(config)](config, spec)


register("q_learning", QLearningConfig, q_agent)
register("policy_gradient", PolicyGradientConfig, policy_gradient_agent)
register("sac", SACConfig, sac_agent)
register("crossq", CrossQConfig, crossq_agent)
register("cloning", CloningConfig, cloning_agent)
