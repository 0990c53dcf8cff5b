"""M2AC: of the rollouts at equal depth only the least uncertain are learned from (Pan et al. 2020, arXiv:2010.04893)."""

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import Limits
from mbrl_jax.imagination.disagreement import one_vs_rest
from mbrl_jax.imagination.horizon.protocol import (
    Decision,
    HorizonController,
    View,
    limits,
    nothing,
    predictions,
    rows_so_far,
    uncalibrated,
)


@limits(length=Limits(minimum=1), penalty=Limits(minimum=0))
def m2ac(*, length: Array | float, penalty: Array | float) -> HorizonController:
    """Keep a share of the rows that falls with depth, those on which the drawn member differs least from the rest.

    Of the lanes at depth i the share ``(length - i) / (2 (length + 1))`` is kept, rounded up to whole lanes, and one half if the
    length is 1. A lane whose row is not kept goes on.

    Args:
      length: depth at which every rollout ends, at least 1.
      penalty: times the divergence, taken from the reward.

    """

    def step(state: tuple[()], view: View) -> tuple[tuple[()], Decision]:
        divergence = one_vs_rest(predictions(view), view.member)
        lane = jnp.arange(divergence.shape[0], dtype=jnp.int32)
        rivals = view.active[None] & (view.depth[None] == view.depth[:, None])  # [K, K], whom lane k is ranked among
        ahead = divergence[None] < divergence[:, None]
        ahead = ahead | ((divergence[None] == divergence[:, None]) & (lane[None] < lane[:, None]))
        rank = jnp.sum(rivals & ahead, axis=1, dtype=divergence.dtype)
        count = jnp.sum(rivals, axis=1, dtype=divergence.dtype)
        share = (length - view.depth.astype(divergence.dtype)) / (2 * (length + 1))
        share = jnp.where(jnp.asarray(length, share.dtype) == 1, 0.5, share)
        stop = rows_so_far(view) >= length
        return state, Decision(keep=rank < share * count, stop=stop, penalty=penalty * divergence)

    return HorizonController(nothing, uncalibrated, step, needs_members=True, needs_variance=True, needs_drawn=True)
