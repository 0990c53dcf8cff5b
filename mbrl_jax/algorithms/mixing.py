"""How much of what an agent learns from is real: a share that follows the model's part in the error of the agent's value."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents.protocol import Agent
from mbrl_jax.algorithms import value_errors
from mbrl_jax.algorithms.phases import Imagination
from mbrl_jax.config import DynaQConfig
from mbrl_jax.imagination.horizon import HorizonController
from mbrl_jax.replay import Replay, Rows


def check(config: DynaQConfig, controller: HorizonController, agent: Agent) -> bool:
    """Whether anything follows the model's share in the value's error, which can then be measured.

    Raises:
      ConfigError: something does, and it cannot.

    """
    if config.mixing.rule == "adaptive":
        value_errors.check_share(config, agent, "mixing.rule: 'adaptive'")
        return True
    if controller.follow is not None:
        value_errors.check_share(config, agent, f"imagination.controller.kind: {config.imagination.controller.kind!r}")
        return True
    return False


def measured(
    hyper: DynaQConfig, replay: Replay, imagination: Imagination, agent: Agent, state: Any, memory: Array | float
) -> Any:
    """The state after the model's share was measured anew, with the horizon rule that follows it; as it is where nothing does.

    ``memory`` is what the share keeps of the one before.
    """
    if state.model_share is None:
        return state
    share = value_errors.model_share_of(hyper, replay, imagination.world, agent, state)
    share = memory * state.model_share + (1 - memory) * share
    lanes, follow = state.lanes, imagination.controller.follow
    if follow is not None:
        lanes = lanes._replace(controller=follow(lanes.controller, share))
    return state._replace(model_share=share, lanes=lanes)


def real_share(hyper: DynaQConfig, model_share: Array | None) -> Array:
    """[] the share of a minibatch that comes from the real replay."""
    assert model_share is not None, "it is measured where the real share is adaptive"
    return hyper.mixing.least + (hyper.mixing.most - hyper.mixing.least) * model_share


def mixture(real: Rows, imagined: Rows, share: Array) -> Rows:
    """[B] rows, the first of which, a share [] of all to the nearest row, are real ones [B], and the others imagined ones [B]."""
    count = real.reward.shape[0]
    is_real = jnp.arange(count, dtype=jnp.int32) < jnp.round(share * count).astype(jnp.int32)
    return jax.tree.map(lambda a, b: jnp.where(is_real.reshape((-1,) + (1,) * (a.ndim - 1)), a, b), real, imagined)
