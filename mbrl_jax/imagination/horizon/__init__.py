"""Horizon controllers: at every imagined step, is the row kept, does the rollout end here, and what does the reward lose?

A controller is three pure functions over its own state, made inside the compiled program from its numbers, which may therefore be
tracers. To write one, write a function from keyword numbers to a :class:`HorizonController` in a file of its own, and pass it to
``make_train(config, controller=…)``, or :func:`register` it so that a preset can ask for it.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array

from mbrl_jax import config as config_
from mbrl_jax.config import ConfigError, ControllerConfig, LanesConfig
from mbrl_jax.imagination.horizon.depth import fixed, schedule
from mbrl_jax.imagination.horizon.drift import drift
from mbrl_jax.imagination.horizon.gradient_error import gradient_error
from mbrl_jax.imagination.horizon.infoprop import infoprop
from mbrl_jax.imagination.horizon.m2ac import m2ac
from mbrl_jax.imagination.horizon.macura import macura
from mbrl_jax.imagination.horizon.model_share import model_share
from mbrl_jax.imagination.horizon.oracle import oracle
from mbrl_jax.imagination.horizon.penalties import penalised
from mbrl_jax.imagination.horizon.protocol import Decision, HorizonController, View
from mbrl_jax.imagination.horizon.three_model import three_model
from mbrl_jax.imagination.horizon.threshold import accumulated, threshold, threshold_quantile
from mbrl_jax.model.protocol import ModelSpec

CONTROLLERS: dict[str, Callable[..., HorizonController]] = {}
"""Horizon controllers by name; :func:`register` adds one."""


def register(name: str, make: Callable[..., HorizonController]) -> None:
    """Let presets and commands name a horizon controller.

    Its numbers become the settings of ``imagination.controller`` of that kind.

    Args:
      name: its kind.
      make: from keyword numbers to the controller; :func:`mbrl_jax.imagination.horizon.protocol.limits` says which they may be.
        One that takes ``measure`` gets ``imagination.measure``.

    Raises:
      ConfigError: the name is taken.

    """
    limits = getattr(make, "limits", {})
    numbers = [number for number in inspect.signature(make).parameters if number != "measure"]
    fields = [
        (number, float, dataclasses.field(metadata={"traced": True, "limits": limits.get(number, config_.Limits())}))
        for number in numbers
    ]
    plain = type(
        f"{name.title().replace('_', '')}Settings",
        (ControllerConfig,),
        {"__annotations__": {}, "__doc__": make.__doc__, "__reduce__": lambda self: (_restored, (self.kind, self.numbers))},
    )
    for number, hint, field in fields:
        plain.__annotations__[number] = hint
        setattr(plain, number, field)
    config_.CONTROLLERS.register(name, config_.settings(plain))
    CONTROLLERS[name] = make


def _restored(kind: str, numbers: dict[str, Any]) -> ControllerConfig:
    """Settings that another process sent: their class is found by its kind."""
    return typing.cast(ControllerConfig, config_.CONTROLLERS.of(kind)(**numbers))


for _make in (
    fixed,
    schedule,
    threshold,
    threshold_quantile,
    accumulated,
    macura,
    m2ac,
    infoprop,
    three_model,
    oracle,
    drift,
    gradient_error,
    model_share,
):
    register(_make.__name__, _make)


def controller_settings(name: str, **numbers: Any) -> ControllerConfig:
    """The settings of the registered controller of that name, as ``imagination.controller`` has them.

    Raises:
      ConfigError: no such controller, or numbers other than those it takes.

    """
    cls = config_.CONTROLLERS.of(name)
    takes = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if set(numbers) != takes:
        raise ConfigError(
            f"imagination.controller: {sorted(numbers)!r} do not fit; {name!r} takes exactly {', '.join(sorted(takes))}"
        )
    made: ControllerConfig = cls(
        **{  # type: ignore[assignment]
            number: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
            for number, value in numbers.items()
        }
    )
    return made


__all__ = [
    "CONTROLLERS",
    "Decision",
    "HorizonController",
    "View",
    "check_controller",
    "controller_of",
    "controller_settings",
    "make_controller",
    "penalised",
    "register",
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
        raise ConfigError(f"imagination.controller.kind: {name!r} is not known; it must be one of {', '.join(CONTROLLERS)}")
    parameters = set(inspect.signature(CONTROLLERS[name]).parameters)
    takes = parameters - {"measure"}
    if set(numbers) != takes:
        raise ConfigError(
            f"imagination.controller: {sorted(numbers)!r} do not fit; {name!r} takes exactly {', '.join(sorted(takes))}"
        )
    for number, limits in getattr(CONTROLLERS[name], "limits", {}).items():
        if isinstance(numbers[number], int | float) and not limits.admit(numbers[number]):
            raise ConfigError(
                f"imagination.controller.{number}: {numbers[number]!r} is out of range for {name!r}; it must be {limits}"
            )
    return CONTROLLERS[name](**numbers, **({"measure": measure} if "measure" in parameters else {}))


def controller_of(config: LanesConfig, controller: HorizonController | None = None) -> HorizonController:
    """The controller that the settings name, or the one given in its place, with the penalty that they name.

    Raises:
      ConfigError: as :func:`make_controller`.

    """
    if controller is None:
        controller = make_controller(config.controller.kind, config.controller.numbers, config.measure)
    return penalised(controller, penalty=config.penalty, weight=config.penalty_weight, measure=config.measure)


def check_controller(
    controller: HorizonController,
    config: LanesConfig,
    spec: ModelSpec,
    dynamics: Callable[..., Any] | None,
    *,
    measures_share: bool = False,
) -> None:
    """Refuse a controller that asks for what there is not, before anything compiles.

    Args:
      controller: to be used.
      config: the lanes' settings.
      spec: of the world model.
      dynamics: the task's real ones, none if they are not known.
      measures_share: whether the loop measures the model's share in the value's error.

    Raises:
      ConfigError: naming the setting that does not give what it needs.

    """
    if not isinstance(controller, HorizonController):
        raise ConfigError(f"controller: {controller!r} does not fit; it must be a mbrl_jax.HorizonController")
    name = config.controller.kind
    if controller.needs_members and spec.members < 2:
        raise ConfigError(f"model.members: {spec.members!r} imagine, which does not fit; {name!r} goes by how members differ")
    if controller.needs_variance and not spec.has_variance:
        raise ConfigError(
            f"model.prediction: 'deterministic' does not fit; {name!r} goes by predicted variances, so it must be 'gaussian'"
        )
    if controller.needs_drawn and not spec.one_mover:
        raise ConfigError(
            f"imagination.sampling: {config.sampling!r} does not fit; {name!r} needs one member that moved the lane: "
            "'ts1', 'ts_infinity' or 'infoprop'"
        )
    if controller.needs_truth and dynamics is None:
        raise ConfigError(f"environment.name: {spec.name!r} does not fit; {name!r} needs known real dynamics")
    if controller.needs_gradient_error:
        raise ConfigError(
            f"imagination.controller.kind: {name!r} does not fit; lanes do not measure the error of the model's gradients, "
            "the windows of 'dmo' do"
        )
    if controller.follow is not None and not measures_share:
        raise ConfigError(
            f"imagination.controller.kind: {name!r} does not fit; it follows the model's share in the error of the agent's "
            "value, which algorithm 'dyna_q' alone measures"
        )
    jax.eval_shape(lambda: controller.init(config.lanes, spec))
