"""The tutorial's controller: three models vote on one horizon for all rollouts, which shrinks or lengthens as they disagree."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError, Limits
from mbrl_jax.imagination.disagreement import std
from mbrl_jax.imagination.horizon.protocol import (
    Decision,
    HorizonController,
    View,
    limits,
    predictions,
    rows_so_far,
    stop_where,
    uncalibrated,
)
from mbrl_jax.model.protocol import ModelSpec

MODELS = 3


class State(NamedTuple):
    """The common horizon, and what was seen in the present real step."""

    length: Array  # []
    time: Array  # [] int32, the present real step
    disagreement: Array  # [] sum over the lanes' steps in it
    steps: Array  # [] how many these are


@limits(low=Limits(minimum=0), high=Limits(minimum=0), first=Limits(minimum=1), limit=Limits(minimum=1))
def three_model(*, low: Array | float, high: Array | float, first: Array | float, limit: Array | float) -> HorizonController:
    """After every real step all rollouts become one step longer, shorter, or stay, by the mean disagreement of three members.

    Args:
      low: disagreement (``std``) below which the horizon grows by one.
      high: above which it shrinks by one.
      first: the horizon to begin with.
      limit: the longest.

    """

    def init(lanes: int, spec: ModelSpec) -> State:
        if spec.members < MODELS:
            raise ConfigError(
                f"model.members: {spec.members!r} imagine, which does not fit; 'three_model' asks the first {MODELS}"
            )
        return State(jnp.asarray(first, jnp.zeros(()).dtype), jnp.full((), -1, jnp.int32), jnp.zeros(()), jnp.zeros(()))

    def step(state: State, view: View) -> tuple[State, Decision]:
        disagreement = std(jax.tree.map(lambda leaf: leaf[:MODELS], predictions(view)))
        active = view.active.astype(disagreement.dtype)
        begins = view.time != state.time
        mean = state.disagreement / jnp.maximum(state.steps, 1.0)
        change = (mean < low).astype(mean.dtype) - (mean > high).astype(mean.dtype)
        adapted = jnp.clip(state.length + change, 1.0, limit)
        length = jnp.where(begins & (state.steps > 0) & (change != 0), adapted, state.length)
        state = State(
            length=length,
            time=view.time,
            disagreement=jnp.where(begins, 0.0, state.disagreement) + jnp.sum(active * disagreement),
            steps=jnp.where(begins, 0.0, state.steps) + jnp.sum(active),
        )
        return state, stop_where(rows_so_far(view) >= length, view)

    return HorizonController(init, uncalibrated, step, needs_members=True)
