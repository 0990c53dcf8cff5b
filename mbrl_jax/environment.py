"""Environments: gymnax behind one small interface of pure functions on single, unbatched states.

What gymnax folds together is kept apart here. ``terminated`` and ``truncated`` are two flags; the next observation is the true
one, also where the episode ends; and a reset is a state drawn beforehand, many at once, which ``step`` merely puts in place
(gymnax would draw one inside every step). The reward and the termination that the task itself uses are exposed as plain
functions of observations, because imagination needs them where there is no simulator.
"""

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax import draws
from mbrl_jax.config import ConfigError, EnvironmentConfig


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

    inner: Any  # the simulator's own state, with a field `time`: steps since the reset
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
      reward: ``(s [..., D], a [...], s' [..., D]) -> [...]``, the task's known reward.
      terminated: ``(s [..., D], a [...], s' [..., D]) -> [...] bool``, the task's known termination, judged on s'.
      dynamics: ``(s [..., D], a [...]) -> s' [..., D]``, the real dynamics, which can be differentiated if actions are
        continuous. To measure a model with and for an oracle that bounds what a horizon controller can reach; a method that
        asked it would no longer be one. None where an observation does not tell the state.

    """

    spec: EnvironmentSpec
    draw_resets: Callable[[Array, tuple[int, ...]], EnvironmentState]
    step: Callable[[EnvironmentState, Array, EnvironmentState], tuple[EnvironmentState, Transition]]
    reward: Callable[[Array, Array, Array], Array]
    terminated: Callable[[Array, Array, Array], Array]
    dynamics: Callable[[Array, Array], Array] | None = None


class _Task(NamedTuple):
    """What gymnax does not say about a task: its scale, and its reward, termination and state as functions of observations."""

    observation_scale: tuple[float, ...]
    reward: Callable[[Array, Array, Array], Array]
    terminated: Callable[[Array, Array, Array], Array]
    inner: Callable[[Array], Mapping[str, Array]]  # from s [D], the fields of the simulator's state, without its time
    action_scale: tuple[float, ...] = ()  # of a continuous action, as in EnvironmentSpec
    observation_limits: tuple[float, ...] | None = None
    angles: tuple[tuple[int, int], ...] = ()


CARTPOLE_X = 2.4  # metres
CARTPOLE_THETA = 12 * 2 * jnp.pi / 360  # radians
MOUNTAIN_CAR_GOAL = 0.5
PENDULUM_TORQUE = 2.0  # newton metres


def _cartpole_terminated(s: Array, a: Array, s2: Array) -> Array:
    return (jnp.abs(s2[..., 0]) > CARTPOLE_X) | (jnp.abs(s2[..., 2]) > CARTPOLE_THETA)


def _acrobot_terminated(s: Array, a: Array, s2: Array) -> Array:
    cos1, sin1, cos2, sin2 = (s2[..., i] for i in range(4))
    return -cos1 - (cos1 * cos2 - sin1 * sin2) > 1.0  # height of the tip: -cos(t1) - cos(t1 + t2)


def _mountain_car_terminated(s: Array, a: Array, s2: Array) -> Array:
    return (s2[..., 0] >= MOUNTAIN_CAR_GOAL) & (s2[..., 1] >= 0.0)


def _never(s: Array, a: Array, s2: Array) -> Array:
    return jnp.zeros(s2.shape[:-1], bool)


def _one_per_step(s: Array, a: Array, s2: Array) -> Array:
    return jnp.ones_like(s2[..., 0])


def _minus_one_per_step(s: Array, a: Array, s2: Array) -> Array:
    return -jnp.ones_like(s2[..., 0])


def _acrobot_reward(s: Array, a: Array, s2: Array) -> Array:
    return jnp.where(_acrobot_terminated(s, a, s2), 0.0, _minus_one_per_step(s, a, s2))


def _pendulum_reward(s: Array, a: Array, s2: Array) -> Array:
    cost = jnp.square(jnp.arctan2(s[..., 1], s[..., 0])) + 0.1 * jnp.square(s[..., 2])  # of the angle from upright, and its rate
    return -(cost + 0.001 * jnp.square(PENDULUM_TORQUE * jnp.clip(a[..., 0], -1.0, 1.0)))


def _cartpole_inner(s: Array) -> Mapping[str, Array]:
    return {"x": s[0], "x_dot": s[1], "theta": s[2], "theta_dot": s[3]}


def _acrobot_inner(s: Array) -> Mapping[str, Array]:
    first, second = jnp.arctan2(s[1], s[0]), jnp.arctan2(s[3], s[2])
    return {"joint_angle1": first, "joint_angle2": second, "velocity_1": s[4], "velocity_2": s[5]}


def _mountain_car_inner(s: Array) -> Mapping[str, Array]:
    return {"position": s[0], "velocity": s[1]}


def _pendulum_inner(s: Array) -> Mapping[str, Array]:
    return {"theta": jnp.arctan2(s[1], s[0]), "theta_dot": s[2]}


_TASKS = {
    "CartPole-v1": _Task((2.4, 2.0, 0.21, 2.0), _one_per_step, _cartpole_terminated, _cartpole_inner),
    "Acrobot-v1": _Task(
        observation_scale=(1.0, 1.0, 1.0, 1.0, 12.57, 28.27),
        reward=_acrobot_reward,
        terminated=_acrobot_terminated,
        inner=_acrobot_inner,
        angles=((0, 1), (2, 3)),
    ),
    "MountainCar-v0": _Task((1.2, 0.07), _minus_one_per_step, _mountain_car_terminated, _mountain_car_inner),
    "Pendulum-v1": _Task(
        observation_scale=(1.0, 1.0, 8.0),
        reward=_pendulum_reward,
        terminated=_never,
        inner=_pendulum_inner,
        action_scale=(PENDULUM_TORQUE,),
        observation_limits=(1.0, 1.0, 8.0),
        angles=((0, 1),),
    ),
}


def make_environment(config: EnvironmentConfig) -> Environment:
    """The task that ``config`` names.

    Raises:
      ConfigError: the task is not one of those that run here, or ``config`` is none.

    """
    if not isinstance(config, EnvironmentConfig):
        raise ConfigError(
            f"environment: {config!r} does not fit; it must be an EnvironmentConfig, as a config has under that name"
        )
    if config.name not in _TASKS:
        raise ConfigError(f"environment.name: {config.name!r} is not known; it must be one of {', '.join(_TASKS)}")
    task = _TASKS[config.name]
    simulator, parameters = _import_gymnax().make(config.name)
    if task.action_scale:
        simulator = simulator.with_transition_gradients()
    if config.time_limit is not None:
        parameters = parameters.replace(max_steps_in_episode=config.time_limit)
    spec = EnvironmentSpec(
        name=config.name,
        observation_size=simulator.observation_space(parameters).shape[0],
        action_count=0 if task.action_scale else simulator.num_actions,
        time_limit=parameters.max_steps_in_episode,
        observation_scale=task.observation_scale,
        action_size=len(task.action_scale),
        observation_limits=task.observation_limits,
        angles=task.angles,
        action_scale=task.action_scale,
    )

    def draw_resets(key: Array, shape: tuple[int, ...]) -> EnvironmentState:
        count = 1
        for size in shape:
            count *= size
        with jax.numpy_dtype_promotion("standard"):
            observations, inner = jax.vmap(simulator.reset_env, in_axes=(0, None))(jax.random.split(key, count), parameters)
        state = EnvironmentState(inner=inner, observation=observations)
        return jax.tree.map(lambda x: _strong(x).reshape(shape + x.shape[1:]), state)

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        unused = jax.random.key(0)  # none of these tasks has noise in its dynamics
        with jax.numpy_dtype_promotion("standard"):
            observation, inner, reward, terminated, _ = simulator.step_env(
                unused, state.inner, in_units(spec, action), parameters
            )
            truncated = simulator.is_truncated(inner, parameters)
        transition = Transition(
            observation=state.observation,
            action=action,
            reward=reward.astype(observation.dtype),
            next_observation=observation,
            terminated=terminated,
            truncated=truncated,
            elapsed=state.inner.time,
        )
        after = jax.tree.map(_strong, EnvironmentState(inner=inner, observation=observation))
        return restart(after, fresh, terminated | truncated), transition

    def dynamics(observation: Array, action: Array) -> Array:
        def one(observation: Array, action: Array) -> Array:
            key = jax.random.key(0)  # neither what a reset draws nor noise that is not there gets into the result
            with jax.numpy_dtype_promotion("standard"):
                inner = simulator.reset_env(key, parameters)[1].replace(**task.inner(observation))
                following = simulator.step_env(key, inner, in_units(spec, action), parameters)[0]
            return following.astype(observation.dtype)

        own = spec.action_shape
        lead = jnp.broadcast_shapes(observation.shape[:-1], action.shape[: action.ndim - len(own)])
        observations = jnp.broadcast_to(observation, (*lead, observation.shape[-1])).reshape(-1, observation.shape[-1])
        following = jax.vmap(one)(observations, jnp.broadcast_to(action, (*lead, *own)).reshape(-1, *own))
        return following.reshape(*lead, observation.shape[-1])

    return Environment(spec, draw_resets, step, task.reward, task.terminated, dynamics)


def _import_gymnax() -> Any:
    """gymnax, without what its tasks are drawn with until one is drawn: that takes two seconds to import."""
    drawing = [name for name in ("seaborn", "matplotlib.pyplot") if name not in sys.modules]
    sys.modules.update({name: _OnDemand(name) for name in drawing})
    try:
        return importlib.import_module("gymnax")
    finally:
        for name in drawing:
            del sys.modules[name]


class _OnDemand(types.ModuleType):
    """Stands for a module that is imported when something in it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself asks a module for
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


Actions = TypeVar("Actions", Array, np.ndarray)


def in_units(spec: EnvironmentSpec, action: Actions) -> Actions:
    """Actions [...] in the task's own units: continuous ones times ``spec.action_scale``, discrete ones as they are.

    Raises:
      ConfigError: the scale does not have a positive number for each number of an action.

    """
    if not spec.action_scale:
        return action
    if len(spec.action_scale) != spec.action_size or min(spec.action_scale) <= 0:
        right = (
            f"{spec.action_size} positive numbers, one for each of an action" if spec.continuous else "() for discrete actions"
        )
        raise ConfigError(f"action_scale: {spec.action_scale!r} of {spec.name} does not fit; it must be {right}")
    scale = np.asarray(spec.action_scale, action.dtype)
    return action * scale.reshape((1,) * (action.ndim - 1) + scale.shape)


def restart(state: EnvironmentState, fresh: EnvironmentState, ended: Array) -> EnvironmentState:
    """``fresh`` where the scalar ``ended`` holds, else ``state``."""
    return jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh, state)


def draw_actions(spec: EnvironmentSpec, key: Array, shape: tuple[int, ...]) -> Array:
    """Actions ``shape`` of the uniform random policy: int32, or [*shape, A] strictly between -1 and 1."""
    if not spec.continuous:
        return draws.integers(key, shape, spec.action_count)
    return draws.symmetric(key, (*shape, spec.action_size))


def _strong(x: Array) -> Array:
    """``x`` without weak typing, so that a state keeps its type through a scan."""
    return jax.lax.convert_element_type(x, x.dtype)


# ------------------------------------------------------------------------------------------------- random data collection


class CollectionDraws(NamedTuple):
    """The random numbers of a collection of N transitions."""

    first: EnvironmentState  # [] where it begins
    actions: Array  # [N]
    resets: EnvironmentState  # [N] where to go on if the episode ends at that step


def draw_collection(environment: Environment, key: Array, transitions: int) -> CollectionDraws:
    """Draw all that :func:`collect` consumes for ``transitions`` steps."""
    key_first, key_actions, key_resets = jax.random.split(key, 3)
    return CollectionDraws(
        first=environment.draw_resets(key_first, ()),
        actions=draw_actions(environment.spec, key_actions, (transitions,)),
        resets=environment.draw_resets(key_resets, (transitions,)),
    )


def collect(environment: Environment, drawn: CollectionDraws) -> tuple[EnvironmentState, Transition, Array]:
    """Act by the uniform random policy.

    Returns:
      The state reached, the transitions [N], and [N] the return of the episode that ended at each step, minus infinity where
      none did: NaN is left to faults, so that ``JAX_DEBUG_NANS`` finds them.

    """

    def step(carry: tuple[EnvironmentState, Array], draw: tuple[Array, EnvironmentState]) -> tuple[Any, Any]:
        state, so_far = carry
        state, transition = environment.step(state, *draw)
        so_far = so_far + transition.reward
        ended = transition.terminated | transition.truncated
        return (state, jnp.where(ended, 0.0, so_far)), (transition, jnp.where(ended, so_far, -jnp.inf))

    start = (drawn.first, jnp.zeros((), drawn.first.observation.dtype))
    (state, _), (transitions, returns) = jax.lax.scan(step, start, (drawn.actions, drawn.resets))
    return state, transitions, returns
