"""Rollouts that are short while the model errs, and long while the value does."""

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


@limits(longest=Limits(minimum=1))
def model_share(*, longest: Array | float) -> HorizonController:
    """Every rollout of a round ends at one depth, which falls from ``longest`` to 1 with the model's share in the value's error.

    The share is that of :func:`mbrl_jax.imagination.interpolation.model_share`, as it was after the model's last fit; the depth
    is linear in it, rounded to the nearest step.

    Args:
      longest: the depth where the model's share is 0.

    """

    def init(lanes: int, spec: ModelSpec) -> Array:
        return jnp.ones((), jnp.zeros(()).dtype)

    def follow(length: Array, share: Array) -> Array:
        return jnp.round(1 + (longest - 1) * (1 - share))

    def step(length: Array, view: View) -> tuple[Array, Decision]:
        return length, stop_where(rows_so_far(view) >= length, view)

    return HorizonController(init, uncalibrated, step, follow=follow)
