"""Rollouts that end where the members disagree by more than a mark, at one step or summed over the rollout."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import Limits
from mbrl_jax.imagination.disagreement import GAUSSIAN_MEASURES, MEASURES, quantile_of_valid
from mbrl_jax.imagination.horizon.protocol import (
    Decision,
    HorizonController,
    View,
    limits,
    nothing,
    predictions,
    predictions_at,
    since_root,
    stop_where,
    uncalibrated,
)
from mbrl_jax.model.protocol import ModelSpec, WorldModel
from mbrl_jax.replay import Rows


@limits(mark=Limits(minimum=0))
def threshold(*, mark: Array | float, measure: str = "std") -> HorizonController:
    """Stop where the disagreement is above a mark.

    Args:
      mark: in the units of the measure.
      measure: one of :data:`mbrl_jax.imagination.disagreement.MEASURES`.

    """

    def step(state: tuple[()], view: View) -> tuple[tuple[()], Decision]:
        return state, stop_where(MEASURES[measure](predictions(view), view.member) > mark, view)

    return HorizonController(nothing, uncalibrated, step, **_needs(measure))


@limits(quantile=Limits(minimum=0, maximum=1))
def threshold_quantile(*, quantile: Array | float, measure: str = "std") -> HorizonController:
    """Stop where the disagreement is above what it is on that share of the real transitions, measured at every fit.

    Args:
      quantile: that share, from 0 to 1.
      measure: one of :data:`mbrl_jax.imagination.disagreement.MEASURES`; the member that ``one_vs_rest`` needs is i mod M for the
        i-th real transition.

    """

    def init(lanes: int, spec: ModelSpec) -> Array:
        return jnp.full((), jnp.inf)

    def calibrate(mark: Array, world: WorldModel, params: Any, rows: Rows, valid: Array) -> Array:
        member = jnp.arange(rows.reward.shape[0], dtype=jnp.int32) % world.spec.members
        return quantile_of_valid(MEASURES[measure](predictions_at(world, params, rows), member), valid, quantile)

    def step(mark: Array, view: View) -> tuple[Array, Decision]:
        return mark, stop_where(MEASURES[measure](predictions(view), view.member) > mark, view)

    return HorizonController(init, calibrate, step, **_needs(measure))


@limits(budget=Limits(minimum=0))
def accumulated(*, budget: Array | float, measure: str = "std") -> HorizonController:
    """Stop where the disagreement summed along the rollout exceeds a budget (after TATU, Zhang et al. 2023, arXiv:2304.04660).

    Args:
      budget: in the units of the measure.
      measure: one of :data:`mbrl_jax.imagination.disagreement.MEASURES`.

    """

    def init(lanes: int, spec: ModelSpec) -> Array:
        return jnp.zeros(lanes)

    def step(used: Array, view: View) -> tuple[Array, Decision]:
        used = since_root(view, used, MEASURES[measure](predictions(view), view.member))
        return used, stop_where(used > budget, view)

    return HorizonController(init, uncalibrated, step, **_needs(measure))


def _needs(measure: str) -> dict[str, Any]:
    return {
        "needs_members": True,
        "needs_variance": measure in GAUSSIAN_MEASURES,
        "needs_drawn": measure == "one_vs_rest",
    }
