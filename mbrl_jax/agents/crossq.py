"""CrossQ (Bhatt et al. 2024, arXiv:1902.05605): soft actor-critic without target critics.

The critics are batch renormalised, and the values of a minibatch's actions and of the next ones come from one pass over both, so
that both are normalised alike. The actor is that of soft actor-critic.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents.outcomes import Outcomes
from mbrl_jax.agents.protocol import Agent
from mbrl_jax.agents.sac import SAC, Acting, CriticLog, SACConfig, SACDraws, SACState, agent_of
from mbrl_jax.config import ConfigError, settings
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.networks import MLP, Params, adam_step
from mbrl_jax.replay import Rows


@settings
class CrossQConfig(SACConfig):
    """CrossQ (kind: crossq); there are no target critics, so ``target_rate`` has no effect."""


class CrossQ(SAC):
    """Soft actor-critic with critics as above; ``SACState.targets`` is none, and the critics' tree holds running statistics."""

    @property
    def critic(self) -> MLP:
        """Maps scaled observations and actions [..., D + A] to a value [..., 1]."""
        return MLP(self.config.hidden, 1, self.config.activation, batch_renorm=True)

    def init(self, key: Array) -> SACState:
        """A fresh learner."""
        return super().init(key)._replace(targets=None)

    def cross_values(
        self, critics: Params, params: Params, state: SACState, batch: Rows, action: Array
    ) -> tuple[Array, Array, Params]:
        """Values [C, B] of the minibatch's actions and [C, B] of next ones [B, A], and the running statistics after both."""
        seen = self.scaled(state.statistics, jnp.concatenate([batch.observation, batch.next_observation]))
        seen = jnp.concatenate([seen, jnp.concatenate([batch.action, action])], axis=-1)
        weight = jnp.concatenate([batch.weight, batch.weight])

        def one(critic: Params, learned: Params) -> Any:
            return self.critic.apply({**critic, "params": learned}, seen, weight, mutable="batch_stats")

        values, told = jax.vmap(one)(critics, params)
        now, following = jnp.split(values[..., 0], 2, axis=1)
        return now, following, told["batch_stats"]

    def learn_critics(
        self, state: SACState, batch: Rows, draws: SACDraws, rate: Array | float, outcomes: Outcomes | None
    ) -> tuple[SACState, CriticLog]:
        """One gradient step of the critics, towards the values that they give the next states in the same pass."""
        acting = Acting(state.actor, state.statistics)
        action, log_probability = self.sample(acting, batch.next_observation, draws.following)

        def loss(params: Params) -> tuple[Array, Any]:
            now, following, statistics = self.cross_values(state.critics, params, state, batch, action)
            if draws.asked is not None:
                following = following[draws.asked[: self.config.critics_asked]]
            soft = jnp.min(following, axis=0) - jnp.exp(state.log_temperature) * log_probability
            going_on = 1 - batch.terminated.astype(soft.dtype)
            targets = jax.lax.stop_gradient(batch.reward + self.config.discount * going_on * soft)
            total, (error, value) = self.critic_errors(now, batch, targets)
            return total, (CriticLog(error, value, targets), statistics)

        gradient, (log, statistics) = jax.grad(loss, has_aux=True)(state.critics["params"])
        learned, optimizer = adam_step(
            {"params": state.critics["params"]}, state.critic_optimizer, {"params": gradient}, rate, self.critic_optimiser
        )
        return state._replace(critics={**learned, "batch_stats": statistics}, critic_optimizer=optimizer), log


def crossq_agent(config: CrossQConfig, spec: EnvironmentSpec) -> Agent:
    """CrossQ as an agent that learns from transitions.

    Raises:
      ConfigError: as :func:`mbrl_jax.agents.sac.sac_agent`, or the critics should be layer normalised, or look at the members.

    """
    if config.layer_norm:
        raise ConfigError("agent.layer_norm: True does not fit; 'crossq' has batch renormalised critics, so it must be false")
    if config.target != "standard":
        raise ConfigError(
            f"agent.target: {config.target!r} does not fit; 'crossq' values the minibatch's next states, so it must be 'standard'"
        )
    return agent_of(CrossQ(config, spec))
