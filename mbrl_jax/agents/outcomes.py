"""What every member of the ensemble expects to follow a minibatch, where the learner's target asks for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents.protocol import Model
from mbrl_jax.model.protocol import WorldModel, beliefs_of_members, members_step
from mbrl_jax.replay import Rows

Greedy = Callable[[Array], Array]  # features [..., F] -> actions [...]

MEMBER_TARGETS = ("quantile", "mean_std", "steve")  # targets that ask every member of the dynamics ensemble
ASKS = "a target that asks the model"
STEVE_FLOOR = 1e-8  # added to variances before they are inverted


class Outcomes(NamedTuple):
    """What each of M ensemble members says follows a minibatch: the rows' own states and actions, for the conservative targets;
    for ``steve`` the rows' next states under the greedy policy, H steps in order, with a leading axis [H].
    """

    reward: Array  # [M, B]
    next_observation: Array  # [M, B, D]
    terminated: Array  # [M, B] bool


def expected_outcomes(target: str, steps: int, model: Model, batch: Rows, greedy: Greedy) -> Outcomes | None:
    """What a target needs to know of a minibatch [B]; nothing for a target of the rows alone.

    Args:
      target: its name, one of :data:`MEMBER_TARGETS` or another.
      steps: that ``steve`` expands the value by at the most.
      model: that is asked.
      batch: leaves [B, ...].
      greedy: the policy, along which ``steve`` expands the value.

    """
    if target in ("quantile", "mean_std"):
        return _one_step(*model, batch)
    if target == "steve":
        return _expansion(*model, batch, greedy, steps)
    return None


def expanded_targets(outcomes: Outcomes, batch: Rows, discount: Array | float, values: Callable[[Array], Array]) -> Array:
    """[B] the target of each horizon up to H, mixed by how sure members and networks are of it (STEVE, Buckman et al. 2018,
    arXiv:1807.01675).

    Args:
      outcomes: leaves [H, M, B, ...], what follows the rows' next states.
      batch: leaves [B, ...].
      discount: gamma.
      values: from observations [M, B, D] to what each of Q networks says of them, [Q, M, B].

    """

    def horizon(carry: Any, step: Outcomes) -> tuple[Any, tuple[Array, Array]]:
        rewards, alive, factor = carry  # [M, B] discounted sum, [M, B] of what follows how much counts
        rewards = rewards + factor * alive * step.reward
        alive = alive * (1 - step.terminated.astype(alive.dtype))
        factor = factor * discount
        return (rewards, alive, factor), spread(rewards, factor * alive, step.next_observation)

    def spread(rewards: Array, factor: Array, observation: Array) -> tuple[Array, Array]:
        """Mean and variance [B] over members and networks."""
        best = values(observation)
        each = (rewards[None] + factor[None] * best).reshape(best.shape[0] * rewards.shape[0], -1)
        return jnp.mean(each, axis=0), jnp.var(each, axis=0)

    members = outcomes.reward.shape[1]
    rewards = jnp.broadcast_to(batch.reward[None], (members, *batch.reward.shape))
    alive = jnp.broadcast_to(1 - batch.terminated.astype(rewards.dtype)[None], rewards.shape)
    factor = jnp.asarray(discount, rewards.dtype)
    nearest = jnp.broadcast_to(batch.next_observation[None], (members, *batch.next_observation.shape))
    own = spread(rewards, factor * alive, nearest)
    _, further = jax.lax.scan(horizon, (rewards, alive, factor), outcomes, unroll=True)
    mean, variance = (jnp.concatenate([first[None], rest]) for first, rest in zip(own, further, strict=True))  # [H + 1, B]
    weight = 1 / (variance + STEVE_FLOOR)
    return jnp.sum(weight * mean, axis=0) / jnp.sum(weight, axis=0)


def _one_step(world: WorldModel, params: Any, batch: Rows) -> Outcomes:
    """Each member's outcome of the rows' own states and actions, leaves [M, B, ...].

    Penalties that a horizon controller took from a row's reward stay taken: the row's own reward is used where rewards are known.
    """
    asked = (world.spec.members, *batch.action.shape)
    imagined = members_step(world, params, batch.observation, batch.action, ASKS)
    reward = jnp.broadcast_to(batch.reward[None], asked) if world.spec.reward_known else imagined.reward
    return Outcomes(reward, world.features(imagined.belief), imagined.terminated)


def _expansion(world: WorldModel, params: Any, batch: Rows, greedy: Greedy, steps: int) -> Outcomes:
    """Each member's own rollout, without noise, from the rows' next states under the greedy policy, leaves [H, M, B, ...]."""

    def step(belief: Any, _: None) -> tuple[Any, Outcomes]:
        imagined = world.expect(params, belief, greedy(world.features(belief)))
        return imagined.belief, Outcomes(imagined.reward, world.features(imagined.belief), imagined.terminated)

    return jax.lax.scan(step, beliefs_of_members(world, batch.next_observation, ASKS), None, length=steps, unroll=True)[1]
