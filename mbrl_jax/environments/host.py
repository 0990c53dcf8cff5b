"""Environments that the host steps: any simulator of Gymnasium's interface.

A compiled program cannot step such a simulator. To it a host environment is a *tape*: its step gives the next transition that the
host has recorded, whatever the action. Between two calls of the devices the host acts and records.
"""

import copy
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jax import Array

from mbrl_jax.config import ConfigError, EnvironmentConfig
from mbrl_jax.environments.protocol import Environment, EnvironmentSpec, EnvironmentState, Transition
from mbrl_jax.simulators.copies import Copies, Make, Seat
from mbrl_jax.simulators.spaces import Interface, SimulatorError, interface_of

PROBE_STEPS = 200  # random steps that are tried before anything compiles, and that measure axes without bounds
_DEFAULTS: Any = EnvironmentConfig
SLOW_STEP = 1e-3  # seconds of a step above which each simulator has a process of its own, unless it is said


class Host(NamedTuple):
    """How the host makes the simulators of an environment."""

    make: Make
    interface: Interface
    processes: bool
    timeout: float

    def copies(self, count: int) -> Copies:
        """``count`` simulators side by side."""
        return Copies([self.make] * count, self.interface, processes=self.processes, timeout=self.timeout)


class Tape(NamedTuple):
    """Transitions that the host has recorded."""

    transitions: Transition  # leaves [T, ...]
    told: Any  # leaves [T, ...], what acting told of itself
    place: Array  # [] int32, the next one


def load(transitions: Transition, told: Any = ()) -> EnvironmentState:
    """The state in which steps give these transitions [T], one after another."""
    place = jnp.zeros((), jnp.int32)
    return EnvironmentState(Tape(transitions, told, place), transitions.observation[0])


def told_at(state: EnvironmentState) -> Any:
    """What acting told of the step that comes next."""
    tape = state.inner
    return jax.tree.map(lambda leaf: leaf[tape.place], tape.told)


def blank(spec: EnvironmentSpec, shape: tuple[int, ...]) -> EnvironmentState:
    """The tape of one transition of zeros that stands between two recordings, with leading axes ``shape``."""
    dtype = jnp.zeros(()).dtype
    observation, number = jnp.zeros((*shape, 1, spec.observation_size), dtype), jnp.zeros((*shape, 1), dtype)
    flag = jnp.zeros((*shape, 1), bool)
    action = jnp.zeros((*shape, 1, *spec.action_shape), dtype if spec.continuous else jnp.int32)
    transitions = Transition(observation, action, number, observation, flag, flag, jnp.zeros((*shape, 1), jnp.int32))
    return EnvironmentState(Tape(transitions, (), jnp.zeros(shape, jnp.int32)), observation[..., 0, :])


def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
    """Give the next recorded transition; where it goes on is recorded too."""
    tape: Tape = state.inner
    transition = jax.tree.map(lambda leaf: leaf[tape.place], tape.transitions)
    following = jnp.minimum(tape.place + 1, tape.transitions.reward.shape[0] - 1)
    return EnvironmentState(tape._replace(place=following), tape.transitions.observation[following]), transition


def host_environment(
    make: Make,
    *,
    name: str | None = None,
    config: EnvironmentConfig | None = None,
    reward: Callable[[Array, Array, Array], Array] | None = None,
    terminated: Callable[[Array, Array, Array], Array] | None = None,
    dynamics: Callable[[Array, Array], Array] | None = None,
    observation_scale: tuple[float, ...] | None = None,
) -> Environment:
    """An environment of simulators, one for each seed, that the host steps.

    One of them is made here and tried for :data:`PROBE_STEPS` random steps.

    Args:
      make: makes a simulator; of the functions below it is the one that must be there.
      name: of the environment; none takes the simulator's own.
      config: its time limit, whether each simulator has a process, and how long a step may take there.
      reward: as of :class:`Environment`, if it is a known function; else a world model learns it.
      terminated: the same of termination.
      dynamics: the same of the real dynamics.
      observation_scale: as of :class:`EnvironmentSpec`; none takes the bounds of the observation space and, where there are none,
        the largest magnitude among the steps tried.

    Raises:
      ConfigError: the simulator cannot be made, its spaces do not fit, it does not give what they declare, or nothing limits the
        length of an episode.

    """
    config = _DEFAULTS() if config is None else config
    try:
        simulator = make()
    except Exception as error:
        raise ConfigError(f"environment: no simulator can be made: {type(error).__name__}: {error}") from error
    if not isinstance(simulator, gymnasium.Env):
        found = type(simulator).__name__
        raise ConfigError(f"environment: the function gives {found}, which does not fit; it must give a gymnasium.Env")
    name = _name_of(simulator) if name is None else name
    limit = _limit_of(name, simulator, config)
    try:
        interface = interface_of(name, simulator.observation_space, simulator.action_space)
        tried = _try(simulator, interface, limit)
    except SimulatorError as error:
        raise ConfigError(f"environment: {error}") from error
    finally:
        simulator.close()
    continuous = isinstance(interface.action, spaces.Box)
    scale, centre = interface.action_units() if continuous else (np.zeros(0), np.zeros(0))
    if observation_scale is None:
        observation_scale = tuple(map(float, tried.scale))
    bounds = np.abs(interface.bounds()).max(axis=0)
    spec = EnvironmentSpec(
        name=name,
        observation_size=interface.observation_size,
        action_count=int(interface.action.n) if isinstance(interface.action, spaces.Discrete) else 0,
        time_limit=limit,
        observation_scale=observation_scale,
        action_size=scale.size,
        observation_limits=tuple(map(float, bounds)) if np.isfinite(bounds).any() else None,
        action_scale=tuple(map(float, scale)) if continuous else (),
        action_centre=tuple(map(float, centre)) if centre.any() else (),
        observation_shape=interface.observation_shape,
        axes=interface.axes,
    )
    processes = tried.seconds > SLOW_STEP if config.processes is None else config.processes
    limited = functools.partial(_limited, make, limit)
    return Environment(
        spec=spec,
        draw_resets=lambda key, shape: blank(spec, shape),
        step=step,
        reward=reward,
        terminated=terminated,
        dynamics=dynamics,
        host=Host(limited, interface, processes, config.timeout),
    )


def of_simulator(simulator: Any, config: EnvironmentConfig) -> Environment:
    """The environment of a simulator, of which every seed has a copy, or of a function that makes one.

    Raises:
      ConfigError: as :func:`host_environment`, or this is none of them.

    """
    if isinstance(simulator, gymnasium.Env):
        if simulator.spec is not None:
            return host_environment(functools.partial(gymnasium.make, simulator.spec, disable_env_checker=True), config=config)
        try:
            copy.deepcopy(simulator)
        except Exception as error:
            right = "give the function that makes it, as environment=lambda: MySimulator()"
            raise ConfigError(f"environment: {type(simulator).__name__} cannot be copied ({error}); {right}") from error
        return host_environment(functools.partial(copy.deepcopy, simulator), config=config)
    if callable(simulator):
        return host_environment(simulator, config=config)
    right = "an mbrl_jax.Environment, a gymnasium.Env, or a function that makes one"
    raise ConfigError(f"environment: {type(simulator).__name__} does not fit; it must be {right}")


@functools.lru_cache
def of_gymnasium(config: EnvironmentConfig) -> Environment:
    """The environment that ``gymnasium/NAME`` names.

    Raises:
      ConfigError: Gymnasium cannot make it, or as :func:`host_environment`.

    """
    own = config.name.partition("/")[2]
    try:
        spec = gymnasium.spec(own)
    except gymnasium.error.Error as error:
        raise ConfigError(f"environment.name: {config.name!r} does not fit; Gymnasium says: {error}") from error
    try:
        make = functools.partial(gymnasium.make, spec, disable_env_checker=True)  # what a simulator gives is checked here
        make().close()
    except gymnasium.error.DependencyNotInstalled as error:
        hint = "install the extra `mbrl-jax[mujoco]`" if "mujoco" in str(error).lower() else "install what it needs"
        raise ConfigError(f"environment.name: {config.name!r} does not fit; {hint}: {error}") from error
    return host_environment(make, name=config.name, config=config)


# ------------------------------------------------------------------------------------------------------------------ pieces


class _Tried(NamedTuple):
    """What came of the random steps of a simulator."""

    scale: np.ndarray  # [D] positive
    seconds: float  # of a step, the median


def _limited(make: Make, limit: int) -> gymnasium.Env:
    """A simulator whose episodes end after ``limit`` steps; an own limit that is another one gives way."""
    simulator = make()
    if _own_limit(simulator) == limit:
        return simulator
    if simulator.spec is not None and simulator.spec.max_episode_steps is not None:
        simulator.close()
        return gymnasium.make(simulator.spec, max_episode_steps=limit, disable_env_checker=True)
    return gymnasium.wrappers.TimeLimit(simulator, limit)


def _own_limit(simulator: gymnasium.Env) -> int | None:
    layer: Any = simulator
    while layer is not None:
        if isinstance(layer, gymnasium.wrappers.TimeLimit):
            return int(layer._max_episode_steps)
        layer = layer.env if isinstance(layer, gymnasium.Wrapper) else None
    return None


def _limit_of(name: str, simulator: gymnasium.Env, config: EnvironmentConfig) -> int:
    own = _own_limit(simulator)
    limit = own if config.time_limit is None else config.time_limit
    if own is not None and own != limit and simulator.spec is None:
        raise ConfigError(
            f"environment.time_limit: {config.time_limit!r} does not fit; a wrapper of {name} ends episodes after {own}, so "
            f"it must be None or {own}"
        )
    if limit is None:
        raise ConfigError(
            f"environment.time_limit: None does not fit; nothing limits the episodes of {name}, so it must be a number of steps"
        )
    return limit


def _name_of(simulator: gymnasium.Env) -> str:
    return type(simulator.unwrapped).__name__ if simulator.spec is None else f"gymnasium/{simulator.spec.id}"


def _try(simulator: gymnasium.Env, interface: Interface, limit: int) -> _Tried:
    """Make random steps; refuse what they show to be wrong."""
    seat, generator = Seat(lambda: simulator, interface), np.random.default_rng(0)
    low, high = interface.bounds()
    largest, seconds = np.zeros(interface.observation_size), []
    elapsed = limit  # an episode begins
    for number in range(PROBE_STEPS):
        if elapsed == limit:
            made, elapsed = seat.reset(None if number else 0), 0
        else:
            begun = time.perf_counter()
            made = seat.step(_random_action(interface, generator))
            seconds.append(time.perf_counter() - begun)
            elapsed = limit if made.terminated or made.truncated else elapsed + 1
        largest = np.maximum(largest, np.abs(made.observation))
        _check_bounds(interface, made.observation, low, high)
    bounds = np.maximum(np.abs(low), np.abs(high))
    scale = np.where(np.isfinite(bounds) & (bounds > 0), bounds, largest)
    return _Tried(np.where(scale > 0, scale, 1.0), float(np.median(seconds)) if seconds else 0.0)


def _random_action(interface: Interface, generator: np.random.Generator) -> Any:
    if isinstance(interface.action, spaces.Discrete):
        return generator.integers(int(interface.action.n))
    return generator.uniform(-1.0, 1.0, interface.action_units()[0].size)


def _check_bounds(interface: Interface, observation: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Refuse an observation outside of what its space declares, but for rounding."""
    slack = 1e-5 * np.maximum(1.0, np.abs(observation))
    outside = np.flatnonzero((observation < low - slack) | (observation > high + slack))
    if outside.size:
        place = int(outside[0])
        axis = interface.axes[place] if interface.axes else f"number {place}"
        raise SimulatorError(
            f"observation of {interface.name}: {axis} is {observation[place]}, which its space says cannot be; it must be from "
            f"{low[place]} to {high[place]}, or the space must be another"
        )
