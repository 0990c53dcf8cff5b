"""Environments by name: how one is made, which returns count as success on it, and how it is shown."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mbrl_jax.config import ConfigError, EnvironmentConfig
from mbrl_jax.environments.protocol import Environment, check_environment

Make = Callable[[EnvironmentConfig], Environment]
Curve = Callable[[np.ndarray], np.ndarray]  # states [n, D] -> [n]


class TaskView(NamedTuple):
    """How a task is shown in reports."""

    drawing: str  # the drawing of the page's script
    rate: float  # steps of an animation per second
    axes: tuple[str, ...]  # D names
    places: tuple[int, ...]  # axes that say where things are, not how fast they move
    curves: Mapping[str, Curve]  # that tell a trajectory best, the first of them before all others


class Registered(NamedTuple):
    """What is known of an environment by its name."""

    make: Make
    marks: tuple[float, ...]  # returns that count as success
    view: TaskView | None


_REGISTERED: dict[str, Registered] = {}


def register(name: str, make: Make, *, marks: tuple[float, ...] = (), view: TaskView | None = None) -> None:
    """Let presets and commands name an environment.

    Args:
      name: as ``environment.name`` has it; for a suite ``suite/name``.
      make: from the settings of the environment to it; it takes ``time_limit`` from there if that is given.
      marks: returns that count as success.
      view: how reports show it; none shows its axes.

    Raises:
      ConfigError: the name is taken.

    """
    if name in _REGISTERED:
        raise ConfigError(f"name: {name!r} is registered already; name another")
    _REGISTERED[name] = Registered(make, marks, view)


def registered() -> tuple[str, ...]:
    """The names of the environments there are."""
    return tuple(_REGISTERED)


def make_environment(config: EnvironmentConfig) -> Environment:
    """Make the environment that ``config`` names: a registered one, or ``package.module:function``.

    The function takes the :class:`mbrl_jax.config.EnvironmentConfig` and returns an :class:`Environment`; its module is looked
    for in the working directory too.

    Raises:
      ConfigError: there is no such environment, it does not give what it should, or ``config`` is none.

    """
    if not isinstance(config, EnvironmentConfig):
        raise ConfigError(
            f"environment: {config!r} does not fit; it must be an EnvironmentConfig, as a config has under that name"
        )
    make = _REGISTERED[config.name].make if config.name in _REGISTERED else _imported(config.name)
    environment = check_environment(make(config))
    if config.time_limit is not None and environment.spec.time_limit != config.time_limit:
        raise ConfigError(
            f"environment.time_limit: {config.time_limit!r} does not fit; {config.name!r} makes episodes of "
            f"{environment.spec.time_limit} steps whatever it is told"
        )
    return environment


def environment_of(config: EnvironmentConfig, environment: Environment | None) -> Environment:
    """The environment given, or where there is none the one that ``config`` names.

    Raises:
      ConfigError: as :func:`make_environment`.

    """
    return make_environment(config) if environment is None else check_environment(environment)


def success_marks(name: str) -> tuple[float, ...]:
    """The returns that count as success on an environment, none where nobody has set them."""
    return _REGISTERED[name].marks if name in _REGISTERED else ()


def view_of(name: str, size: int) -> TaskView:
    """How an environment with ``size`` observation axes is shown; one without a view of its own is shown by its axes."""
    view = _REGISTERED[name].view if name in _REGISTERED else None
    if view is not None:
        return view
    axes = tuple(f"axis {place}" for place in range(size))
    return TaskView("lines", 30, axes, tuple(range(size)), {axis: axis_curve(place) for place, axis in enumerate(axes[:4])})


def axis_curve(place: int, factor: float = 1.0) -> Curve:
    """The curve of one axis of the state."""
    return lambda states: states[:, place] * factor


def _imported(name: str) -> Make:
    """The function that ``package.module:function`` names."""
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        known = ", ".join(_REGISTERED)
        raise ConfigError(f"environment.name: {name!r} is not known; it must be one of {known}, or package.module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"environment.name: {name!r} does not fit; {module_name!r} cannot be imported: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"environment.name: {name!r} does not fit; {module_name!r} has no function {function_name!r}")
    make: Make = function
    return make
