"""Infoprop: a rollout ends when it has lost too much information (Frauenknecht et al. 2025, arXiv:2501.16918)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import Limits
from mbrl_jax.imagination.disagreement import information_loss, quantile_of_valid
from mbrl_jax.imagination.horizon.protocol import (
    Decision,
    HorizonController,
    View,
    limits,
    predictions,
    predictions_at,
    since_root,
    stop_where,
)
from mbrl_jax.model.protocol import ModelSpec, WorldModel
from mbrl_jax.replay import Rows


class State(NamedTuple):
    """What the rollouts have lost and what they may lose, in bits for every regression target."""

    lost: Array  # [K, D'] since the root
    step_limit: Array  # [D'] at one step
    rollout_limit: Array  # [D'] along a rollout


@limits(high=Limits(minimum=0, maximum=1), low=Limits(minimum=0, maximum=1), length=Limits(minimum=1), resolution=Limits(above=0))
def infoprop(*, high: Array | float, low: Array | float, length: Array | float, resolution: Array | float) -> HorizonController:
    """Stop where a target's loss at this step, or summed along the rollout, is beyond what real transitions show.

    The paper's samplers are settings of their own (``imagination.sampling``: ``infoprop`` and ``fused``).

    Args:
      high: quantile of the loss on real transitions that one step may lose.
      low: quantile of it that an average step of a rollout of ``length`` may lose.
      length: steps for which the latter is granted.
      resolution: in normalised units; finer differences between members do not count.

    """

    def init(lanes: int, spec: ModelSpec) -> State:
        targets = spec.targets
        return State(jnp.zeros((lanes, targets)), jnp.full(targets, jnp.inf), jnp.full(targets, jnp.inf))

    def calibrate(state: State, world: WorldModel, params: Any, rows: Rows, valid: Array) -> State:
        loss = information_loss(predictions_at(world, params, rows), resolution)
        step_limit = quantile_of_valid(loss, valid, high)
        return state._replace(step_limit=step_limit, rollout_limit=length * quantile_of_valid(loss, valid, low))

    def step(state: State, view: View) -> tuple[State, Decision]:
        loss = information_loss(predictions(view), resolution)
        lost = since_root(view, state.lost, loss)
        beyond = (loss > state.step_limit[None]) | (lost > state.rollout_limit[None])
        return state._replace(lost=lost), stop_where(jnp.any(beyond, axis=-1), view)

    return HorizonController(init, calibrate, step, needs_members=True, needs_variance=True)
