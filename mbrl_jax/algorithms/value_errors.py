"""How a loop asks where the error of its agent's value comes from: for looking, and for what follows the answer."""

from functools import partial
from typing import Any

import jax
from jax import Array

from mbrl_jax.agents.protocol import Agent
from mbrl_jax.algorithms import phases
from mbrl_jax.algorithms.training import Stream, stream
from mbrl_jax.config import ConfigError, holdout_stride
from mbrl_jax.environments import Environment
from mbrl_jax.imagination import interpolation, mismatch
from mbrl_jax.model import fitting
from mbrl_jax.model.protocol import WorldModel
from mbrl_jax.replay import Replay, Rows


def check_mismatch(config: Any, task: Environment, agent: Agent) -> None:
    """Refuse to tell a value's error apart where that cannot be done.

    Raises:
      ConfigError: the real dynamics cannot be asked, the transitions are logged ones, or the agent has no value.

    """
    if not config.evaluation.mismatch:
        return
    if config.data is not None:
        raise ConfigError(
            "evaluation.mismatch: True does not fit data; the real dynamics are asked, so there must be an environment"
        )
    mismatch.check_task(task)
    if agent.value is None or not hasattr(config.agent, "discount"):
        raise ConfigError(
            "evaluation.mismatch: True needs an agent with a value and a discount: q_learning, sac, or policy_gradient with "
            "baseline 'value'"
        )


def mismatch_of(
    hyper: Any, task: Environment, replay: Replay, world: WorldModel, agent: Agent, state: Any
) -> mismatch.Mismatch | None:
    """Where the error of the agent's value comes from, as things stand at a round's end; none where nobody has asked."""
    if not hyper.evaluation.mismatch:
        return None
    rows, weight = _held_out_rows(hyper, replay, state)
    return mismatch.decompose(
        task,
        world,
        world.acting(state.model),
        partial(agent.mode, agent.judged(state.agent)),
        phases.value_of(agent, state.agent),
        hyper.agent.discount,
        rows.observation,
        weight,
        stream(state.key, Stream.DIAGNOSIS, state.time),
    )


def check_share(config: Any, agent: Agent, setting: str) -> None:
    """Refuse to measure the model's share in the value's error where that cannot be done; ``setting`` asks for it.

    Raises:
      ConfigError: the transitions are logged ones, or the agent has no value.

    """
    if config.data is not None:
        raise ConfigError(f"{setting} does not fit data, of which whole episodes are held out; the agent must act, or collect")
    if agent.value is None or not hasattr(config.agent, "discount"):
        raise ConfigError(f"{setting} needs an agent with a value and a discount: q_learning, sac or crossq")


def model_share_of(hyper: Any, replay: Replay, world: WorldModel, agent: Agent, state: Any) -> Array:
    """[] the model's share in the error of the agent's value at held-out real transitions, as things stand."""
    rows, weight = _held_out_rows(hyper, replay, state)
    return interpolation.model_share(
        world,
        world.acting(state.model),
        partial(agent.mode, agent.judged(state.agent)),
        phases.value_of(agent, state.agent),
        hyper.agent.discount,
        rows,
        weight,
        hyper.mixing.measure,
    )


def _held_out_rows(hyper: Any, replay: Replay, state: Any) -> tuple[Rows, Array]:
    """The rows [h] that the model is not trained on, and their weights [h], 1 for those that are data."""
    rows, _ = replay.contents(state.real)
    number = fitting.holdout_rows(rows.reward.shape[0], holdout_stride(hyper))
    weight = (number < replay.size(state.real)).astype(rows.reward.dtype)
    return jax.tree.map(lambda leaf: leaf[number], rows), weight
