"""Environments of gymnax: classic control as pure functions."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.environments.protocol import Environment, EnvironmentSpec, EnvironmentState, Transition, in_units, restart
from mbrl_jax.environments.registry import TaskView, axis_curve, register


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
CONTINUOUS_GOAL = 0.45  # of MountainCarContinuous
PENDULUM_TORQUE = 2.0  # newton metres


def _cartpole_terminated(s: Array, a: Array, s2: Array) -> Array:
    return (jnp.abs(s2[..., 0]) > CARTPOLE_X) | (jnp.abs(s2[..., 2]) > CARTPOLE_THETA)


def _acrobot_terminated(s: Array, a: Array, s2: Array) -> Array:
    cos1, sin1, cos2, sin2 = (s2[..., i] for i in range(4))
    return -cos1 - (cos1 * cos2 - sin1 * sin2) > 1.0  # height of the tip: -cos(t1) - cos(t1 + t2)


def _mountain_car_terminated(s: Array, a: Array, s2: Array) -> Array:
    return (s2[..., 0] >= MOUNTAIN_CAR_GOAL) & (s2[..., 1] >= 0.0)


def _continuous_terminated(s: Array, a: Array, s2: Array) -> Array:
    return (s2[..., 0] >= CONTINUOUS_GOAL) & (s2[..., 1] >= 0.0)


def _continuous_reward(s: Array, a: Array, s2: Array) -> Array:
    return jnp.where(_continuous_terminated(s, a, s2), 100.0, 0.0) - 0.1 * jnp.square(a[..., 0])


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
    "MountainCarContinuous-v0": _Task(
        observation_scale=(1.2, 0.07),
        reward=_continuous_reward,
        terminated=_continuous_terminated,
        inner=_mountain_car_inner,
        action_scale=(1.0,),
    ),
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


def is_shipped(environment: Environment) -> bool:
    """Whether an environment is a task of this module as it stands, not one that has its name or some of its functions."""
    task, make = _TASKS.get(environment.spec.name), f"{_make.__qualname__}.<locals>"
    if task is None or (environment.reward, environment.terminated) != (task.reward, task.terminated):
        return False
    return all(
        each.__module__ == __name__ and each.__qualname__.startswith(make) for each in (environment.step, environment.draw_resets)
    )


def inner_of(name: str, observation: Array) -> Mapping[str, Array]:
    """The fields of a task's simulator in the state that an observation [D] tells, without its time."""
    return _TASKS[name].inner(observation)


def _strong(x: Array) -> Array:
    """``x`` without weak typing, so that a state keeps its type through a scan."""
    return jax.lax.convert_element_type(x, x.dtype)


def _make(config: EnvironmentConfig) -> Environment:
    """The task of gymnax that ``config`` names."""
    import gymnax  # takes seconds

    task = _TASKS[config.name]
    simulator, parameters = gymnax.make(config.name)
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


def _tip_height(states: np.ndarray) -> np.ndarray:
    cos1, sin1, cos2, sin2 = states[:, :4].T
    return -cos1 - (cos1 * cos2 - sin1 * sin2)


_VIEWS = {
    "CartPole-v1": TaskView(
        "cartpole",
        50,
        ("position", "velocity", "angle", "angular velocity"),
        (0, 2),
        {"pole angle [degrees]": axis_curve(2, 180 / np.pi), "cart position [m]": axis_curve(0)},
    ),
    "Acrobot-v1": TaskView(
        "acrobot",
        15,
        ("cos θ₁", "sin θ₁", "cos θ₂", "sin θ₂", "θ₁ velocity", "θ₂ velocity"),
        (0, 1, 2, 3),
        {"height of the tip": _tip_height, "velocity of the 1st joint": axis_curve(4)},
    ),
    "Pendulum-v1": TaskView(
        "pendulum",
        20,
        ("cos θ", "sin θ", "angular velocity"),
        (0, 1),
        {
            "angle from upright [degrees]": lambda states: np.degrees(np.arctan2(states[:, 1], states[:, 0])),
            "velocity": axis_curve(2),
        },
    ),
    **dict.fromkeys(
        ("MountainCar-v0", "MountainCarContinuous-v0"),
        TaskView("mountain_car", 30, ("position", "velocity"), (0,), {"position": axis_curve(0), "velocity": axis_curve(1)}),
    ),
}
_MARKS: dict[str, tuple[float, ...]] = {
    "CartPole-v1": (195, 475),  # the old v0 bar and v1's
    "Acrobot-v1": (-100,),
    "MountainCar-v0": (-110,),
    "MountainCarContinuous-v0": (90,),
    "Pendulum-v1": (-200,),  # which has no official one: what swings it up from anywhere and holds it
}
for _name in _TASKS:
    register(_name, _make, marks=_MARKS[_name], view=_VIEWS[_name])
