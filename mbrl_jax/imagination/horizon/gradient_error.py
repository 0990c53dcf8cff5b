"""Windows that shrink where the learned model's gradient is wrong, and grow where it is right."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import Limits
from mbrl_jax.imagination.horizon.protocol import (
    Decision,
    HorizonController,
    View,
    limits,
    rows_so_far,
    stop_where,
    uncalibrated,
)
from mbrl_jax.model.protocol import ModelSpec


class State(NamedTuple):
    """The common length of all paths."""

    length: Array  # []
    time: Array  # [] int32, the real step at which the present window began


@limits(low=Limits(minimum=0), high=Limits(minimum=0), first=Limits(minimum=1), limit=Limits(minimum=1))
def gradient_error(*, low: Array | float, high: Array | float, first: Array | float, limit: Array | float) -> HorizonController:
    """After every window all paths become one step longer, shorter, or stay, by the error of the model's Jacobians.

    For windows of simulated steps, as decoupled backpropagation has them (Amigo et al. 2025, arXiv:2509.00215).

    Args:
      low: relative error of the Jacobian below which paths grow by a step.
      high: above which they shrink by one.
      first: their length to begin with.
      limit: the longest.

    """

    def init(lanes: int, spec: ModelSpec) -> State:
        return State(jnp.asarray(first, jnp.zeros(()).dtype), jnp.full((), -1, jnp.int32))

    def step(state: State, view: View) -> tuple[State, Decision]:
        assert view.gradient_error is not None, "asked for by needs_gradient_error"
        error = jnp.mean(view.gradient_error)
        change = (error < low).astype(error.dtype) - (error > high).astype(error.dtype)
        change = jnp.where((view.time != state.time) & jnp.isfinite(error), change, 0.0)
        length = jnp.where(change == 0, state.length, jnp.clip(state.length + change, 1.0, limit))
        return State(length, view.time), stop_where(rows_so_far(view) >= length, view)

    return HorizonController(init, uncalibrated, step, needs_gradient_error=True)
