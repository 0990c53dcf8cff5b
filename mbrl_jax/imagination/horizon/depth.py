"""Rollouts of a length that does not depend on what is imagined."""

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError, Limits
from mbrl_jax.imagination.horizon.protocol import (
    Decision,
    HorizonController,
    View,
    limits,
    nothing,
    rows_so_far,
    stop_where,
    uncalibrated,
)


@limits(length=Limits(minimum=1))
def fixed(*, length: Array | float) -> HorizonController:
    """Every rollout ends at the same depth.

    Args:
      length: that depth, at least 1.

    """

    def step(state: tuple[()], view: View) -> tuple[tuple[()], Decision]:
        return state, stop_where(rows_so_far(view) >= length, view)

    return HorizonController(nothing, uncalibrated, step)


@limits(first=Limits(minimum=1), last=Limits(minimum=1))
def schedule(*, start: Array | float, end: Array | float, first: Array | float, last: Array | float) -> HorizonController:
    """The depth grows linearly with experience (MBPO, Janner et al. 2019, arXiv:1906.08253).

    Args:
      start: real step at which growth begins.
      end: real step at which it is complete, above ``start``.
      first: depth until ``start``.
      last: depth from ``end`` on; the depth between is rounded down.

    Raises:
      ConfigError: growth does not end after it has begun.

    """
    if isinstance(start, int | float) and isinstance(end, int | float) and not end > start:
        raise ConfigError(f"imagination.controller.end: {end!r} does not fit; it must be above start ({start!r})")

    def step(state: tuple[()], view: View) -> tuple[tuple[()], Decision]:
        share = (view.time.astype(view.reward.dtype) - start) / (end - start)
        depth = jnp.clip(first + share * (last - first), jnp.minimum(first, last), jnp.maximum(first, last))
        return state, stop_where(rows_so_far(view) >= jnp.floor(depth), view)

    return HorizonController(nothing, uncalibrated, step)
