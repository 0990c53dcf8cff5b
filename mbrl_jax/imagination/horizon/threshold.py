"""Rollouts that end where the members disagree by more than a mark, at one step or summed over the rollout."""

import jax.numpy as jnp
from jax import Array

from mbrl_jax import replay
from mbrl_jax.config import Limits
from mbrl_jax.imagination.disagreement import GAUSSIAN_MEASURES, MEASURES, quantile_of_valid
from mbrl_jax.imagination.horizon.protocol import (
    Decision,
    HorizonController,
    View,
    limits,
    nothing,
    predictions,
    since_root,
    stop_where,
    uncalibrated,
)
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble, Members


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

    def init(lanes: int, ensemble: Ensemble) -> Array:
        return jnp.full((), jnp.inf)

    def calibrate(mark: Array, ensemble: Ensemble, members: Members, rows: Array, valid: Array) -> Array:
        real = replay.unpack(rows, ensemble.spec.action_size)
        member = jnp.arange(rows.shape[0], dtype=jnp.int32) % ensemble.sampling_members
        everyone = ens.predict_all(ensemble, members, real.observation, real.action)
        return quantile_of_valid(MEASURES[measure](everyone, member), valid, quantile)

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

    def init(lanes: int, ensemble: Ensemble) -> Array:
        return jnp.zeros(lanes)

    def step(used: Array, view: View) -> tuple[Array, Decision]:
        used = since_root(view, used, MEASURES[measure](predictions(view), view.member))
        return used, stop_where(used > budget, view)

    return HorizonController(init, uncalibrated, step, **_needs(measure))


def _needs(measure: str) -> dict[str, bool]:
    return {
        "needs_members": True,
        "needs_variance": measure in GAUSSIAN_MEASURES,
        "needs_drawn": measure == "one_vs_rest",
    }
