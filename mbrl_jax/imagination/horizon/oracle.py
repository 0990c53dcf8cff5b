"""The oracle: stops by the true error of what is imagined. An upper bound for research, never a method."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import Limits
from mbrl_jax.imagination.horizon.protocol import Decision, HorizonController, View, limits, stop_where
from mbrl_jax.model.protocol import ModelSpec, WorldModel
from mbrl_jax.replay import Rows


@limits(mark=Limits(minimum=0))
def oracle(*, mark: Array | float) -> HorizonController:
    """Stop where the imagined next state is further from the true one than a mark.

    Args:
      mark: root mean square over axes of the error, each axis in units of the real data's deviation of the state change, or
        in the task's own where that does not vary.

    """

    def init(lanes: int, spec: ModelSpec) -> Array:
        return jnp.ones(spec.feature_size)

    def calibrate(scale: Array, world: WorldModel, params: Any, rows: Rows, valid: Array) -> Array:
        return world.scale(params)

    def step(scale: Array, view: View) -> tuple[Array, Decision]:
        assert view.truth is not None, "asked for by needs_truth"
        error = (view.next_observation - view.truth) / scale[None]
        return scale, stop_where(jnp.sqrt(jnp.mean(jnp.square(error), axis=-1)) > mark, view)

    return HorizonController(init, calibrate, step, needs_truth=True)
