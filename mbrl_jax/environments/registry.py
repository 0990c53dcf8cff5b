"""Environments by name: how one is made, which returns count as success on it, and how it is shown."""

import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from mbrl_jax.config import ConfigError, EnvironmentConfig, PhysicsConfig
from mbrl_jax.environments import distracting, host, observing
from mbrl_jax.environments.protocol import Environment, check_environment
from mbrl_jax.environments.repeating import repeated

Make = Callable[[EnvironmentConfig], Environment]
Curve = Callable[[np.ndarray], np.ndarray]  # states [n, D] -> [n]
HOST_SETTINGS = ("block_steps", "processes", "timeout")  # of environments on the host alone


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
    physics: tuple[str, ...]  # the factors of ``environment.physics`` that it takes


class Suite(NamedTuple):
    """What is known of all environments whose names begin with a suite's."""

    make: Make
    marks: Callable[[str], tuple[float, ...]]  # of a name without the suite's
    axes: Callable[[str], tuple[str, ...]]  # the names of its observation's axes, () where they have none


_REGISTERED: dict[str, Registered] = {}
_SUITES: dict[str, Suite] = {}


def register(
    name: str, make: Make, *, marks: tuple[float, ...] = (), view: TaskView | None = None, physics: tuple[str, ...] = ()
) -> None:
    """Let presets and commands name an environment.

    Args:
      name: as ``environment.name`` has it; for a suite ``suite/name``.
      make: from the settings of the environment to it; it takes ``time_limit`` from there if that is given.
      marks: returns that count as success.
      view: how reports show it; none shows its axes.
      physics: the factors of ``environment.physics`` that it takes; others must be 1.

    Raises:
      ConfigError: the name is taken, or there is no such factor.

    """
    if name in _REGISTERED:
        raise ConfigError(f"name: {name!r} is registered already; name another")
    known = [field.name for field in dataclasses.fields(PhysicsConfig)]
    if isinstance(physics, str) or not set(physics) <= set(known):
        raise ConfigError(f"physics: {physics!r} does not fit; it must be a tuple of names out of {', '.join(known)}")
    _REGISTERED[name] = Registered(make, marks, view, physics)


def _suite_of(name: str) -> Suite | None:
    """The suite of ``suite/name``, unless that name is registered by itself."""
    first, slash, _ = name.partition("/")
    return _SUITES.get(first) if slash and name not in _REGISTERED else None


def registered() -> tuple[str, ...]:
    """The names of the environments there are."""
    return tuple(_REGISTERED)


def make_environment(config: EnvironmentConfig) -> Environment:
    """Make the environment that ``config`` names: a registered one, one of Gymnasium, or ``package.module:function``.

    The function takes the :class:`mbrl_jax.config.EnvironmentConfig` and returns an :class:`Environment`, or it takes nothing and
    returns a ``gymnasium.Env``, as a class of them does; its module is looked for in the working directory too.

    Raises:
      ConfigError: there is no such environment, it does not give what it should, or ``config`` is none.

    """
    if not isinstance(config, EnvironmentConfig):
        raise ConfigError(
            f"environment: {config!r} does not fit; it must be an EnvironmentConfig, as a config has under that name"
        )
    suite = _suite_of(config.name)
    if suite is not None or config.name in _REGISTERED:
        _check_unscaled(config, () if suite is not None else _REGISTERED[config.name].physics)
    if config.name in _REGISTERED:
        made = _REGISTERED[config.name].make(config)
    else:
        made = _imported(config) if suite is None else suite.make(config)
    environment = _check_host(check_environment(made), config)
    if config.time_limit is not None and environment.spec.time_limit != config.time_limit:
        raise ConfigError(
            f"environment.time_limit: {config.time_limit!r} does not fit; {config.name!r} makes episodes of "
            f"{environment.spec.time_limit} steps whatever it is told"
        )
    return _wrapped(environment, config)


def environment_of(config: EnvironmentConfig, environment: Any) -> Environment:
    """The environment given, which may be a ``gymnasium.Env`` or a function that makes one, else the one that ``config`` names.

    Raises:
      ConfigError: as :func:`make_environment`, or what is given does not fit.

    """
    if environment is None:
        return make_environment(config)
    _check_unscaled(config, ())
    given = environment if isinstance(environment, Environment) else host.of_simulator(environment, config)
    return _wrapped(_check_host(check_environment(given), config), config)


def _wrapped(environment: Environment, config: EnvironmentConfig) -> Environment:
    """The task with its actions repeated, its distractors, and with what is seen of it, as the settings say.

    Raises:
      ConfigError: they do not fit the task.

    """
    environment = distracting.distracted(repeated(environment, config.action_repeat), config.distractors)
    if config.observed is not None:
        environment = observing.masked(environment, _axes_of(environment, config))
    return observing.delayed(environment, config.delay) if config.delay else environment


def _axes_of(environment: Environment, config: EnvironmentConfig) -> tuple[int, ...]:
    """The numbers of the axes that are seen: beside positions, distractors."""
    if config.observed != "positions":
        return () if config.observed is None else config.observed
    known = _REGISTERED.get(environment.spec.name)
    if known is None or known.view is None:
        right = "nothing is known of which of its axes are positions; it must be numbers of axes, as [0, 2]"
        raise ConfigError(f"environment.observed: 'positions' does not fit {environment.spec.name!r}; {right}")
    spec, places = environment.spec, known.view.places
    if spec.observed[: len(places)] == places and len(spec.observed) == len(places) + spec.distractors:
        return spec.observed  # it is masked so already
    return (*places, *range(spec.observation_size - spec.distractors, spec.observation_size))


def _check_unscaled(config: EnvironmentConfig, takes: tuple[str, ...]) -> None:
    """Refuse factors of the physics of an environment that takes others or none."""
    for field in dataclasses.fields(config.physics):
        value = getattr(config.physics, field.name)
        if field.name not in takes and value != 1.0:
            others = ", ".join(name for name, each in _REGISTERED.items() if field.name in each.physics)
            told = f"{config.name!r} cannot scale it, so it must be 1.0; {others} can"
            raise ConfigError(f"environment.physics.{field.name}: {value!r} does not fit; {told}")


def _check_host(environment: Environment, config: EnvironmentConfig) -> Environment:
    """Refuse settings of environments on the host for one that the devices step, where they would do nothing."""
    for name in HOST_SETTINGS if environment.host is None else ():
        value, right = getattr(config, name), next(each.default for each in dataclasses.fields(config) if each.name == name)
        if value != right:
            told = f"{environment.spec.name!r} is stepped on the devices, and this is a setting of simulators on the host"
            raise ConfigError(f"environment.{name}: {value!r} does not fit; {told}, so it must be {right!r}")
    return environment


def success_marks(name: str) -> tuple[float, ...]:
    """The returns that count as success on an environment, none where nobody has set them."""
    suite = _suite_of(name)
    if suite is not None:
        return suite.marks(name.partition("/")[2])
    return _REGISTERED[name].marks if name in _REGISTERED else ()


def view_of(name: str, size: int) -> TaskView:
    """How an environment with ``size`` observation axes is shown; one without a view of its own is shown by its axes."""
    view = _REGISTERED[name].view if name in _REGISTERED else None
    if view is not None and len(view.axes) == size:  # of a task of which all axes are seen
        return view
    suite = _suite_of(name)
    named = () if suite is None else suite.axes(name)
    axes = named or tuple(f"axis {place}" for place in range(size))
    return TaskView("lines", 30, axes, tuple(range(size)), {axis: axis_curve(place) for place, axis in enumerate(axes[:4])})


def axis_curve(place: int, factor: float = 1.0) -> Curve:
    """The curve of one axis of the state."""
    return lambda states: states[:, place] * factor


def _imported(config: EnvironmentConfig) -> Environment:
    """The environment that ``package.module:function`` gives."""
    name = config.name
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        known = ", ".join([*_REGISTERED, *(f"{suite}/NAME" for suite in _SUITES)])
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
    if not _takes_settings(function):
        return host.host_environment(function, name=name, config=config)
    made = function(config)
    if isinstance(made, gymnasium.Env):
        made.close()
        return host.host_environment(functools.partial(function, config), name=name, config=config)
    return made  # type: ignore[no-any-return]  # check_environment looks at it


def _takes_settings(function: Callable[..., Any]) -> bool:
    """Whether a function must be given something."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return any(each.kind in kinds and each.default is inspect.Parameter.empty for each in parameters)


# ---------------------------------------------------------------------------------------------------- Gymnasium's own names


def _gymnasium_marks(name: str) -> tuple[float, ...]:
    """Those of the same task in JAX, or the return at which Gymnasium counts a task as solved."""
    if name in _REGISTERED:
        return _REGISTERED[name].marks
    threshold = gymnasium.registry[name].reward_threshold if name in gymnasium.registry else None
    return () if threshold is None else (threshold,)


def _gymnasium_axes(name: str) -> tuple[str, ...]:
    own = name.partition("/")[2]
    view = _REGISTERED[own].view if own in _REGISTERED else None
    make_config: Any = EnvironmentConfig
    return make_environment(make_config(name=name)).spec.axes if view is None else view.axes


_SUITES["gymnasium"] = Suite(host.of_gymnasium, _gymnasium_marks, _gymnasium_axes)
