"""Horizon controllers: at every imagined step, is the row kept, does the rollout end here, and what does the reward lose?

A controller is three pure functions over its own state, made inside the compiled program from its numbers, which may therefore be
tracers. To write one, write a function from keyword numbers to a :class:`HorizonController` in a file of its own, and pass it to
``make_train(config, controller=…)``, or name it in :data:`CONTROLLERS` so that a preset can ask for it.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array

from mbrl_jax.config import ConfigError, LanesConfig
from mbrl_jax.imagination.horizon.depth import fixed, schedule
from mbrl_jax.imagination.horizon.infoprop import infoprop
from mbrl_jax.imagination.horizon.m2ac import m2ac
from mbrl_jax.imagination.horizon.macura import macura
from mbrl_jax.imagination.horizon.oracle import oracle
from mbrl_jax.imagination.horizon.penalties import penalised
from mbrl_jax.imagination.horizon.protocol import Decision, HorizonController, View
from mbrl_jax.imagination.horizon.three_model import three_model
from mbrl_jax.imagination.horizon.threshold import accumulated, threshold, threshold_quantile
from mbrl_jax.model.ensemble import Ensemble

CONTROLLERS: dict[str, Callable[..., HorizonController]] = {
    "fixed": fixed,
    "schedule": schedule,
    "threshold": threshold,
    "threshold_quantile": threshold_quantile,
    "accumulated": accumulated,
    "macura": macura,
    "m2ac": m2ac,
    "infoprop": infoprop,
    "three_model": three_model,
    "oracle": oracle,
}

__all__ = [
    "CONTROLLERS",
    "Decision",
    "HorizonController",
    "View",
    "check_controller",
    "controller_of",
    "make_controller",
    "penalised",
]


def make_controller(name: str, numbers: Mapping[str, Array | float], measure: str = "std") -> HorizonController:
    """The registered controller of that name with its numbers, which may be tracers.

    Args:
      name: in :data:`CONTROLLERS`.
      numbers: exactly those that it takes.
      measure: of disagreement, for the controllers that leave it open.

    Raises:
      ConfigError: no such controller, numbers other than those it takes, or one out of range.

    """
    if name not in CONTROLLERS:
        raise ConfigError(f"imagination.controller: {name!r} is not known; it must be one of {', '.join(CONTROLLERS)}")
    parameters = set(inspect.signature(CONTROLLERS[name]).parameters)
    takes = parameters - {"measure"}
    if set(numbers) != takes:
        raise ConfigError(
            f"imagination.controller_settings: {sorted(numbers)!r} do not fit; {name!r} takes exactly {', '.join(sorted(takes))}"
        )
    for number, limits in getattr(CONTROLLERS[name], "limits", {}).items():
        if isinstance(numbers[number], int | float) and not limits.admit(numbers[number]):
            raise ConfigError(
                f"imagination.controller_settings.{number}: {numbers[number]!r} is out of range for {name!r}; it must be {limits}"
            )
    return CONTROLLERS[name](**numbers, **({"measure": measure} if "measure" in parameters else {}))


def controller_of(config: LanesConfig, controller: HorizonController | None = None) -> HorizonController:
    """The controller that the settings name, or the one given in its place, with the penalty that they name.

    Raises:
      ConfigError: as :func:`make_controller`.

    """
    if controller is None:
        controller = make_controller(config.controller, config.controller_settings, config.measure)
    return penalised(controller, penalty=config.penalty, weight=config.penalty_weight, measure=config.measure)


def check_controller(
    controller: HorizonController, config: LanesConfig, ensemble: Ensemble, dynamics: Callable[..., Any] | None
) -> None:
    """Refuse a controller that asks for what there is not, before anything compiles.

    Args:
      controller: to be used.
      config: the lanes' settings.
      ensemble: the shape of the world model.
      dynamics: the task's real ones, none if they are not known.

    Raises:
      ConfigError: naming the setting that does not give what it needs.

    """
    members, kind, name = ensemble.sampling_members, ensemble.config.kind, config.controller
    if controller.needs_members and members < 2:
        raise ConfigError(f"model.members: {members!r} imagine, which does not fit; {name!r} goes by how members differ")
    if controller.needs_variance and kind != "gaussian":
        raise ConfigError(f"model.kind: {kind!r} does not fit; {name!r} goes by predicted variances, so it must be 'gaussian'")
    if controller.needs_drawn and config.sampling in ("mean", "fused"):
        raise ConfigError(
            f"imagination.sampling: {config.sampling!r} does not fit; {name!r} needs one member that moved the lane: "
            "'ts1', 'ts_infinity' or 'infoprop'"
        )
    if controller.needs_truth and dynamics is None:
        raise ConfigError(f"environment.name: {ensemble.spec.name!r} does not fit; {name!r} needs known real dynamics")
    jax.eval_shape(lambda: controller.init(config.lanes, ensemble))
