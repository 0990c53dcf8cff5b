"""What pessimism takes from imagined rewards, on top of any horizon controller."""

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError
from mbrl_jax.imagination.disagreement import GAUSSIAN_MEASURES, MEASURES, max_aleatoric
from mbrl_jax.imagination.horizon.protocol import Decision, HorizonController, View, predictions


def penalised(controller: HorizonController, *, penalty: str, weight: Array | float, measure: str = "std") -> HorizonController:
    """``controller`` with a penalty.

    * ``none``: as it is;
    * ``mopo``: the weight times the largest norm of a member's predicted deviations (MOPO, Yu et al. 2020, arXiv:2005.13239);
    * ``disagreement``: the weight times the members' disagreement;
    * ``bonus``: the same with the other sign, so that the agent looks for what the members do not agree on yet (Sekar et al.
      2020, arXiv:2005.05960);
    * ``halt``: where the controller stops, the row is kept and becomes a terminal with minus the weight as its reward (MOReL,
      Kidambi et al. 2020, arXiv:2005.05951).

    Args:
      controller: decides as before.
      penalty: one of these.
      weight: not negative.
      measure: of disagreement.

    Raises:
      ConfigError: there is no such penalty.

    """
    if penalty == "none":
        return controller
    if penalty == "halt":
        return controller._replace(step=functools.partial(_halting, controller, weight))
    if penalty not in ("mopo", "disagreement", "bonus"):
        raise ConfigError(
            f"imagination.penalty: {penalty!r} is not known; it must be one of none, mopo, disagreement, bonus, halt"
        )
    sign = -1 if penalty == "bonus" else 1
    judge = max_aleatoric if penalty == "mopo" else MEASURES[measure]
    gaussian = penalty == "mopo" or measure in GAUSSIAN_MEASURES

    def step(state: Any, view: View) -> tuple[Any, Decision]:
        state, decision = controller.step(state, view)
        return state, decision._replace(penalty=decision.penalty + sign * weight * judge(predictions(view), view.member))

    return controller._replace(
        step=step,
        needs_members=True,
        needs_variance=controller.needs_variance or gaussian,
        needs_drawn=controller.needs_drawn or (penalty != "mopo" and measure == "one_vs_rest"),
    )


def _halting(controller: HorizonController, weight: Array | float, state: Any, view: View) -> tuple[Any, Decision]:
    state, decision = controller.step(state, view)
    halt = decision.stop
    penalty = jnp.where(halt, weight, decision.penalty)
    return state, decision._replace(keep=decision.keep | halt, penalty=penalty, halt=halt)
