"""What an environment is: pure functions on single, unbatched states.

What simulators fold together is kept apart here. ``terminated`` and ``truncated`` are two flags; the next observation is the true
one, also where the episode ends; and a reset is a state drawn beforehand, many at once, which ``step`` merely puts in place. The
reward and the termination that the task itself uses are plain functions of observations, because imagination needs them where
there is no simulator.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax.config import ConfigError


class EnvironmentSpec(NamedTuple):
    """What a learner must know of a task before it starts.

    An action is one int32 below ``action_count``, or, where that is 0, ``action_size`` numbers from -1 to 1. ``Environment.step``
    gets those; :func:`in_units` turns them into the task's own units, in which actions leave the library. Wherever a docstring
    has actions [...], continuous ones are [..., A].
    """

    name: str
    observation_size: int  # D
    action_count: int  # A discrete actions, 0 where actions are continuous
    time_limit: int  # steps until truncation
    observation_scale: tuple[float, ...]  # D positive numbers that bring each axis to about [-1, 1]
    action_size: int = 0  # A numbers of a continuous action, 0 where actions are discrete
    observation_limits: tuple[float, ...] | None = None  # D magnitudes that no axis exceeds, so that imagination need not either
    angles: tuple[tuple[int, int], ...] = ()  # pairs of axes that are the cosine and the sine of one
    action_scale: tuple[float, ...] = ()  # A positive numbers: a continuous action of 1 in the task's own units; () if that is 1
    action_centre: tuple[float, ...] = ()  # A numbers: a continuous action of 0 in the task's own units, () if that is 0
    observation_shape: tuple[int, ...] = ()  # of an observation that is no vector, as an image [8, 8, 1]; its D numbers in order
    action_repeat: int = 1  # steps of the simulator that an action is held for
    axes: tuple[str, ...] = ()  # D names of the observation's numbers, () where they have none
    observed: tuple[int, ...] = ()  # axes of the whole observation that are seen, () where all are
    delay: int = 0  # steps after which an observation is seen
    distractors: int = 0  # random walks among the observation's numbers, which the task does not depend on

    @property
    def continuous(self) -> bool:
        """Whether actions are numbers from -1 to 1."""
        return self.action_size > 0

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Of one action: () or (A,)."""
        return (self.action_size,) if self.continuous else ()


class EnvironmentState(NamedTuple):
    """A running episode."""

    inner: Any  # the simulator's own state
    observation: Array  # [D]


class Transition(NamedTuple):
    """One real step. Leading axes are those of the states stepped, none inside ``step``."""

    observation: Array  # [D] s
    action: Array  # [] int32, or [A] from -1 to 1
    reward: Array  # [] r
    next_observation: Array  # [D] s', the true one also at an episode's end
    terminated: Array  # [] bool, the task itself ended: nothing follows
    truncated: Array  # [] bool, the time limit ended the episode: the target bootstraps through it
    elapsed: Array  # [] int32, steps since the reset, 0 on an episode's first


class Environment(NamedTuple):
    """A task as pure functions.

    Attributes:
      spec: sizes and limits.
      draw_resets: ``(key, shape) -> EnvironmentState``, freshly reset states with leading axes ``shape``.
      step: ``(state, action, fresh) -> (state, Transition)``; the state that comes back is ``fresh`` where the episode ended.
      reward: ``(s [..., D], a [...], s' [..., D]) -> [...]``, the task's known reward; none where it is no known function of
        these, so that a world model learns it.
      terminated: ``(s [..., D], a [...], s' [..., D]) -> [...] bool``, the task's known termination, judged on s'; none as above.
      dynamics: ``(s [..., D], a [...]) -> s' [..., D]``, the real dynamics, which can be differentiated if actions are
        continuous. To measure a model with and for an oracle that bounds what a horizon controller can reach; a method that
        asked it would no longer be one. None where an observation does not tell the state.
      host: how the host makes the simulators of an environment that is no pure function, none where it is one.

    """

    spec: EnvironmentSpec
    draw_resets: Callable[[Array, tuple[int, ...]], EnvironmentState]
    step: Callable[[EnvironmentState, Array, EnvironmentState], tuple[EnvironmentState, Transition]]
    reward: Callable[[Array, Array, Array], Array] | None = None
    terminated: Callable[[Array, Array, Array], Array] | None = None
    dynamics: Callable[[Array, Array], Array] | None = None
    host: Any | None = None

    @property
    def has_simulator(self) -> bool:
        """Whether it can be stepped; of a task of which there are only logged transitions it cannot."""
        return self.step is not no_simulator


def no_simulator(*arguments: Any) -> NoReturn:
    """What stands for ``draw_resets`` and ``step`` where there are only logged transitions.

    Raises:
      ConfigError: always.

    """
    raise ConfigError("environment.name: 'none' cannot be stepped; name the environment that the data are of")


Actions = TypeVar("Actions", Array, np.ndarray)


def in_units(spec: EnvironmentSpec, action: Actions) -> Actions:
    """Actions [...] in the task's own units: continuous ones times ``spec.action_scale`` and about ``spec.action_centre``, others
    as they are.

    Raises:
      ConfigError: the scale does not have a positive number for each number of an action, or the centre none.

    """
    for name, numbers, right in (("scale", spec.action_scale, "positive numbers"), ("centre", spec.action_centre, "numbers")):
        if numbers and (len(numbers) != spec.action_size or (name == "scale" and min(numbers) <= 0)):
            right = f"{spec.action_size} {right}, one for each of an action" if spec.continuous else "() for discrete actions"
            raise ConfigError(f"action_{name}: {numbers!r} of {spec.name} does not fit; it must be {right}")
    shape = (1,) * (action.ndim - 1) + (-1,)
    if spec.action_scale:
        action = action * np.asarray(spec.action_scale, action.dtype).reshape(shape)
    if spec.action_centre:
        action = action + np.asarray(spec.action_centre, action.dtype).reshape(shape)
    return action


def restart(state: EnvironmentState, fresh: EnvironmentState, ended: Array) -> EnvironmentState:
    """``fresh`` where the scalar ``ended`` holds, else ``state``."""
    return jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh, state)


def check_pure(environment: "Environment", problem: str) -> None:
    """Refuse to wrap a task that is no pure function; ``problem`` names the setting and its value.

    Raises:
      ConfigError: the host steps it, or there are only logged transitions.

    """
    if environment.host is not None:
        raise ConfigError(f"{problem}{environment.spec.name!r} is stepped on the host, where a wrapper of Gymnasium does this")
    if not environment.has_simulator:
        raise ConfigError(f"{problem}there are only logged transitions, which are seen as they were written")


def check_environment(environment: Any) -> "Environment":
    """The environment as the library uses it, whose observations are vectors [D]; refuse what is none, before anything compiles.

    An environment with ``spec.observation_shape`` gives and takes observations of that shape; here they are flattened.

    Raises:
      ConfigError: naming the function that does not give what it should, what it gives, and what would be right.

    """
    if not isinstance(environment, Environment):
        raise ConfigError(f"environment: {type(environment).__name__} does not fit; it must be an mbrl_jax.Environment")
    flat = _flattened(environment)
    spec = flat.spec
    if len(spec.observation_scale) != spec.observation_size or not all(scale > 0 for scale in spec.observation_scale):
        right = f"{spec.observation_size} positive numbers, one for each number of an observation"
        raise ConfigError(f"observation_scale: {spec.observation_scale!r} of {spec.name} does not fit; it must be {right}")
    if (spec.action_count > 0) == (spec.action_size > 0):
        found = f"action_count {spec.action_count} and action_size {spec.action_size}"
        raise ConfigError(f"{found} of {spec.name} do not fit; one of them must be 0 and the other positive")
    in_units(spec, np.zeros(spec.action_shape, np.float32))
    if flat.has_simulator:
        _check_functions(flat)
    return flat


def _check_functions(environment: "Environment") -> None:
    """Refuse functions whose results have other shapes than they should."""
    spec, name = environment.spec, environment.spec.name
    key = jax.eval_shape(lambda: jax.random.key(0))
    dtype = jnp.zeros(()).dtype
    action = jax.ShapeDtypeStruct(spec.action_shape, dtype if spec.continuous else jnp.int32)
    actions = jax.ShapeDtypeStruct((3, *spec.action_shape), action.dtype)
    seen = jax.ShapeDtypeStruct((3, spec.observation_size), dtype)

    def require(what: str, found: Any, shape: tuple[int, ...], kind: Any) -> None:
        if found.shape != shape or not jnp.issubdtype(found.dtype, kind):
            right = f"{jnp.dtype(kind).name if kind in (bool, jnp.int32) else 'float'}{list(shape)}"
            raise ConfigError(f"{what} of {name}: {found.dtype}{list(found.shape)} does not fit; it must be {right}")

    state = jax.eval_shape(lambda key: environment.draw_resets(key, ()), key)
    if not isinstance(state, EnvironmentState):
        raise ConfigError(f"draw_resets of {name}: {type(state).__name__} does not fit; it must give an EnvironmentState")
    require("observation of draw_resets", state.observation, (spec.observation_size,), jnp.floating)
    pool = jax.eval_shape(lambda key: environment.draw_resets(key, (2, 3)), key)
    require("observation of draw_resets, shape (2, 3),", pool.observation, (2, 3, spec.observation_size), jnp.floating)
    after, transition = jax.eval_shape(environment.step, state, action, state)
    if str(jax.tree.structure(after)) != str(jax.tree.structure(state)) or [x.shape for x in jax.tree.leaves(after)] != [
        x.shape for x in jax.tree.leaves(state)
    ]:
        raise ConfigError(f"step of {name}: the state that it gives is not like the one it was given, {state}; there is {after}")
    for field in ("observation", "next_observation"):
        require(f"{field} of step", getattr(transition, field), (spec.observation_size,), jnp.floating)
    require("reward of step", transition.reward, (), jnp.floating)
    for field in ("terminated", "truncated"):
        require(f"{field} of step", getattr(transition, field), (), bool)
    require("elapsed of step", transition.elapsed, (), jnp.integer)
    if environment.reward is not None:
        require("reward", jax.eval_shape(environment.reward, seen, actions, seen), (3,), jnp.floating)
    if environment.terminated is not None:
        require("terminated", jax.eval_shape(environment.terminated, seen, actions, seen), (3,), bool)
    if environment.dynamics is not None:
        found = jax.eval_shape(environment.dynamics, seen, actions)
        require("dynamics", found, (3, spec.observation_size), jnp.floating)


def _flattened(environment: "Environment") -> "Environment":
    """The same environment with its observations as vectors."""
    spec, shape = environment.spec, environment.spec.observation_shape
    if len(shape) < 2:
        return environment
    state = jax.eval_shape(lambda: environment.draw_resets(jax.random.key(0), ()))
    if not isinstance(state, EnvironmentState) or state.observation.shape == (spec.observation_size,):
        return environment  # it is refused later, or it has been flattened before

    def vector(observation: Array) -> Array:
        return observation.reshape(*observation.shape[: observation.ndim - len(shape)], spec.observation_size)

    def shaped(observation: Array) -> Array:
        return observation.reshape(*observation.shape[:-1], *shape)

    def draw_resets(key: Array, lead: tuple[int, ...]) -> EnvironmentState:
        state = environment.draw_resets(key, lead)
        return state._replace(observation=vector(state.observation))

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        own, its_fresh = (each._replace(observation=shaped(each.observation)) for each in (state, fresh))
        after, transition = environment.step(own, action, its_fresh)
        seen = {name: vector(getattr(transition, name)) for name in ("observation", "next_observation")}
        return after._replace(observation=vector(after.observation)), transition._replace(**seen)

    reward, terminated, dynamics = environment.reward, environment.terminated, environment.dynamics
    return Environment(
        spec,
        draw_resets,
        step,
        None if reward is None else lambda s, a, s2: reward(shaped(s), a, shaped(s2)),
        None if terminated is None else lambda s, a, s2: terminated(shaped(s), a, shaped(s2)),
        None if dynamics is None else lambda s, a: vector(dynamics(shaped(s), a)),
        environment.host,
    )
