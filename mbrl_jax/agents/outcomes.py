"""What every member of the ensemble expects to follow a minibatch, where the learner's target asks for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents.protocol import Model
from mbrl_jax.config import QLearningConfig
from mbrl_jax.model.protocol import WorldModel, belief_at
from mbrl_jax.replay import Rows

Greedy = Callable[[Array], Array]  # features [..., F] -> actions [...] int32


class Outcomes(NamedTuple):
    """What each of M ensemble members says follows a minibatch: the rows' own states and actions, for the conservative targets;
    for ``steve`` the rows' next states under the greedy policy, H steps in order, with a leading axis [H].
    """

    reward: Array  # [M, B]
    next_observation: Array  # [M, B, D]
    terminated: Array  # [M, B] bool


def expected_outcomes(config: QLearningConfig, model: Model, batch: Rows, greedy: Greedy) -> Outcomes | None:
    """What the target that ``config`` names needs to know of a minibatch [B]; nothing for a target of the rows alone.

    Args:
      config: the learner's.
      model: that is asked.
      batch: leaves [B, ...].
      greedy: the policy, along which ``steve`` expands the value.

    """
    if config.target in ("quantile", "mean_std"):
        return _one_step(*model, batch)
    if config.target == "steve":
        return _expansion(*model, batch, greedy, config.target_steps)
    return None


def _one_step(world: WorldModel, params: Any, batch: Rows) -> Outcomes:
    """Each member's outcome of the rows' own states and actions, leaves [M, B, ...].

    Penalties that a horizon controller took from a row's reward stay taken: the row's own reward is used where rewards are known.
    """
    asked = (world.spec.members, *batch.action.shape)
    imagined = world.expect(params, _of_each(world, batch.observation), jnp.broadcast_to(batch.action[None], asked))
    reward = jnp.broadcast_to(batch.reward[None], asked) if world.spec.reward_known else imagined.reward
    return Outcomes(reward, world.features(imagined.belief), imagined.terminated)


def _expansion(world: WorldModel, params: Any, batch: Rows, greedy: Greedy, steps: int) -> Outcomes:
    """Each member's own rollout, without noise, from the rows' next states under the greedy policy, leaves [H, M, B, ...]."""

    def step(belief: Any, _: None) -> tuple[Any, Outcomes]:
        imagined = world.expect(params, belief, greedy(world.features(belief)))
        return imagined.belief, Outcomes(imagined.reward, world.features(imagined.belief), imagined.terminated)

    return jax.lax.scan(step, _of_each(world, batch.next_observation), None, length=steps, unroll=True)[1]


def _of_each(world: WorldModel, features: Array) -> Any:
    """The beliefs [M, B] at features [B, F], the same for every member."""
    return belief_at(world, "a target that asks the model")(
        jnp.broadcast_to(features[None], (world.spec.members, *features.shape))
    )
