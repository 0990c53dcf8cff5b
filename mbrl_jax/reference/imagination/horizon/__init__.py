"""Horizon controllers: after each imagined step they say which rows are kept and which lanes stop.

A controller is a class with the three methods of :class:`Controller`, made from its settings by keyword, and one entry in
:data:`CONTROLLERS`.
"""

from collections.abc import Callable, Mapping

from mbrl_jax.reference.imagination.horizon.depth import Fixed, Schedule
from mbrl_jax.reference.imagination.horizon.infoprop import Infoprop
from mbrl_jax.reference.imagination.horizon.m2ac import M2AC
from mbrl_jax.reference.imagination.horizon.macura import Macura
from mbrl_jax.reference.imagination.horizon.oracle import Oracle
from mbrl_jax.reference.imagination.horizon.protocol import Controller, Decision, Stateless, View
from mbrl_jax.reference.imagination.horizon.three_model import ThreeModel
from mbrl_jax.reference.imagination.horizon.threshold import Accumulated, Threshold, ThresholdQuantile

__all__ = [
    "CONTROLLERS",
    "M2AC",
    "MEASURED",
    "Accumulated",
    "Controller",
    "Decision",
    "Fixed",
    "Infoprop",
    "Macura",
    "Oracle",
    "Schedule",
    "Stateless",
    "ThreeModel",
    "Threshold",
    "ThresholdQuantile",
    "View",
    "make_controller",
]

CONTROLLERS: dict[str, Callable[..., Controller]] = {
    "fixed": Fixed,
    "schedule": Schedule,
    "threshold": Threshold,
    "threshold_quantile": ThresholdQuantile,
    "accumulated": Accumulated,
    "macura": Macura,
    "m2ac": M2AC,
    "infoprop": Infoprop,
    "three_model": ThreeModel,
    "oracle": Oracle,
}
MEASURED = ("threshold", "threshold_quantile", "accumulated")
"""Those that take a measure."""


def make_controller(name: str, settings: Mapping[str, float], measure: str = "std") -> Controller:
    """The controller of that name with those settings; ``measure`` is for those that take one.

    Raises:
      ValueError: there is no such controller or measure here, or the settings do not fit.

    """
    if name not in CONTROLLERS:
        raise ValueError(f"imagination.controller: {name!r} is not among the reference's: {', '.join(CONTROLLERS)}")
    chosen = {"measure": measure} if name in MEASURED else {}
    try:
        return CONTROLLERS[name](**settings, **chosen)
    except TypeError as error:
        raise ValueError(f"imagination.controller: {dict(settings)!r} does not fit {name!r}: {error}") from error
